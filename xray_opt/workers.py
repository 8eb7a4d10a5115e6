"""Runs a whole study in this process: data, base weights, tracking, search, ranking, registration.

``tune`` may be called again and again: it does what is missing up to the asked number of trials, and finishes what
a kill left undone (lost trials, their MLflow runs, the registration of the best adapter).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from xray_opt import registry
from xray_opt.backbone import Base, load_base, read_base, save_base
from xray_opt.cache import Images, open_images
from xray_opt.config import StudyConfig, Workspace
from xray_opt.dataset import Manifest, Pseudonyms, prepared, settled, shortcut_screen
from xray_opt.errors import ModelError
from xray_opt.experiment import Job, run_experiment
from xray_opt.mlflow_client import Connection, connect
from xray_opt.places import PARENT, STORE, mark_state
from xray_opt.settling import settle
from xray_opt.tracking import (
    STORAGE,
    STUDY_ID,
    Tracking,
    TrialEnd,
    data_tags,
    page_tags,
    require_same_store,
    run_page,
    store_note,
)
from xray_opt.trainer import Epoch, discard_checkpoint
from xray_opt.tuning import (
    IDENTITY,
    RESUMABLE,
    OpenStudy,
    Outcome,
    Tally,
    TrialContext,
    TrialRecord,
    list_studies,
    open_study,
    storage_digest,
    storage_url,
)


@dataclass(frozen=True)
class StudyWatcher:
    """What a caller may see of a running study; every part may be left out."""

    say: Callable[[str], None] = lambda line: None
    progress: Callable[[str, int, int], None] = lambda what, done, total: None
    known: Callable[[int, TrialRecord | None], None] = lambda counted, best: None
    trial_started: Callable[[int, StudyConfig, Mapping[str, object]], None] = lambda number, study, params: None
    epoch: Callable[[int, Epoch], None] = lambda number, epoch: None
    trial_ended: Callable[[TrialRecord], None] = lambda record: None


@dataclass(frozen=True)
class TuneReport:
    """How a call of ``tune`` ended: counts and best trial, and the registered version if there is one."""

    study: str
    tally: Tally
    version: registry.Version | None
    aliases: tuple[str, ...]
    experiment_id: str


def tune(
    study: StudyConfig,
    workspace: Workspace,
    total: int | None = None,
    timeout: float | None = None,
    watcher: StudyWatcher = StudyWatcher(),
) -> TuneReport:
    """Bring ``study`` to ``total`` trials (COMPLETE + PRUNED over all calls; none means the study's own number).

    Args:
        timeout: seconds after which no new trial starts.

    Raises:
        XrayError: what stops the whole study, as one line; a single failing trial does not.
    """
    # What `data prepare` decided becomes part of the study's own settings: they are recorded, and evaluate reads them.
    data = settled(study.config.data, workspace)
    study = replace(study, config=replace(study.config, data=data))
    manifest = prepared(data, workspace, lambda done, n: watcher.progress("index", done, n))
    # Before the study is made: without weights there must be no study that remembers having wanted them.
    kept = _known_base(study, workspace)
    fresh = None if kept and kept.is_file() else load_base(study.config.model)
    opened = open_study(study, workspace, manifest.sha256)
    mark_state(workspace, study.name, storage_digest(storage_url(workspace, study.storage)))
    base = _study_base(opened, workspace, fresh)
    before = opened.read()
    watcher.known(before.counted, before.best)
    return _tune(opened, manifest, base, workspace, total or study.trials, timeout, watcher)


def _tune(
    opened: OpenStudy,
    manifest: Manifest,
    base: Base,
    workspace: Workspace,
    total: int,
    timeout: float | None,
    watcher: StudyWatcher,
) -> TuneReport:
    study = opened.config
    connection = connect(study.config.tracking, workspace)
    require_same_store(connection, study.name, opened.notes.get(STORE), opened.notes.get(PARENT))
    if warning := base.warning():
        watcher.say(warning)
    images = open_images(
        manifest, study.config.image.size, workspace, lambda done, n: watcher.progress("decode", done, n)
    )
    tags = {
        "xray_opt.study": study.name,
        STUDY_ID: str(opened.notes[IDENTITY]),
        STORAGE: storage_digest(storage_url(workspace, study.storage)),
    }
    tags |= data_tags(manifest) | {"xray_opt.base_sha256": base.sha256}
    with Tracking.open(connection, study.name, tags) as tracking:
        opened.annotate(STORE, store_note(connection))
        opened.annotate(PARENT, tracking.parent_id)
        _describe_once(opened, tracking, manifest, base, watcher)
        _agree(opened, tracking, watcher)
        objective = _Objective(opened, images, base, tracking, connection, Pseudonyms(workspace), tags, watcher)
        tally = opened.tune(
            objective,
            total,
            timeout,
            lost=lambda record: tracking.close_trial(record.number, record.reason or "worker-lost"),
            ended=objective.ended,
            say=watcher.say,
        )
        _agree(opened, tracking, watcher)
        version = settle(opened, tracking, connection, base, tags)
        aliases = registry.aliases(connection, version.name) if version else {}
        held = tuple(alias for alias, number in aliases.items() if version and number == version.version)
        return TuneReport(study.name, tally, version, held, tracking.experiment_id)


def _agree(opened: OpenStudy, tracking: Tracking, watcher: StudyWatcher) -> None:
    """Repair runs whose state is not their trial's: an earlier call was killed between the two, or MLflow was away."""
    trials = [TrialEnd(t.number, t.state, t.reason, max(t.intermediate, default=0)) for t in opened.read().trials]
    for state, count in tracking.agree(trials).items():
        watcher.say(f"{count} MLflow run{'s' * (count > 1)} brought to {state}, as Optuna has it")


def _study_base(opened: OpenStudy, workspace: Workspace, fresh: Base | None) -> Base:
    """The base weights of the study: those it started with, whatever a path or a library holds by now.

    Random and own weights are kept once a study; ImageNet's are verified by their digest anyway.

    Args:
        fresh: the weights that the settings name, where they have been read already.
    """
    known = opened.notes.get("base_sha256")
    kept = known and _kept_base(opened.config.name, workspace, str(known))
    if kept and kept.is_file():
        base = read_base(kept)
    else:
        base = fresh or load_base(opened.config.config.model)
        if base.origin != "imagenet":
            save_base(base, _kept_base(opened.config.name, workspace, base.sha256))
    if known and base.sha256 != known:
        raise ModelError(
            f"study {opened.config.name} was made on base weights {str(known)[:12]}, these are {base.sha256[:12]}: "
            "give the former with --weights PATH, or start another study with --name"
        )
    opened.annotate("base_sha256", base.sha256)
    origin = str(opened.notes.get("base_origin") or base.origin)
    opened.annotate("base_origin", origin)
    return replace(base, origin=origin)


def _known_base(study: StudyConfig, workspace: Workspace) -> Path | None:
    """Where the base weights of a study that was made before are kept, if they are; none for a new study."""
    names = {record.name: record for record in list_studies(workspace, study.storage)}
    known = names[study.name].notes.get("base_sha256") if study.name in names else None
    return _kept_base(study.name, workspace, str(known)) if known else None


def _kept_base(study: str, workspace: Workspace, sha256: str) -> Path:
    """By digest: studies of one name in two storages share the folder."""
    return workspace.study_folder(study) / f"base-{sha256[:16]}.safetensors"


def _describe_once(
    opened: OpenStudy, tracking: Tracking, manifest: Manifest, base: Base, watcher: StudyWatcher
) -> None:
    """Log what the study stands on, once: data set, shortcut screen, base weights that cannot be fetched again."""
    if opened.notes.get("described") == tracking.parent_id:
        return
    tracking.log_dataset(manifest)
    watcher.say("shortcut screen: how well do file metadata and a thumbnail alone tell the class?")
    shortcut = shortcut_screen(manifest)
    for line in shortcut.lines():
        watcher.say(line)
    tracking.log_metrics(shortcut.metrics())
    if base.origin != "imagenet":
        with tempfile.TemporaryDirectory(prefix="xray-opt-") as folder:
            tracking.log_file(save_base(base, Path(folder) / "base.safetensors"), "base")
    opened.annotate("described", tracking.parent_id)


@dataclass(frozen=True)
class _Objective:
    """Trains one trial; called by tuning."""

    opened: OpenStudy
    images: Images
    base: Base
    tracking: Tracking
    connection: Connection
    pseudonyms: Pseudonyms
    tags: dict[str, str]
    watcher: StudyWatcher

    def __call__(self, trial: TrialContext) -> Outcome:
        def watch(epoch: Epoch) -> None:
            self.watcher.epoch(trial.number, epoch)
            trial.report(epoch.number, epoch.val.f1)

        def started(run_id: str) -> None:
            trial.note("mlflow_run", run_id)
            trial.link(run_page(self.connection, self.tracking.experiment_id, run_id))

        self.watcher.trial_started(trial.number, self.opened.config, trial.params)
        job = Job(
            config=trial.config,
            name=f"trial-{trial.number:03d}",
            params=trial.params,
            tags=self.tags | self._own_tags(trial),
            checkpoint=trial.checkpoint,
            watch=watch,
            replay=lambda epoch: trial.replay(epoch.number, epoch.val.f1),
            started=started,
            say=self.watcher.say,
        )
        result = run_experiment(job, self.images, self.base, self.tracking, self.pseudonyms)
        scores = result.assessment.scores
        notes = {"val.auc": scores.auc, "val.accuracy": scores.accuracy, "val.precision": scores.precision}
        notes |= {"val.recall": scores.recall, "best_epoch": result.best_epoch, "seconds": round(result.seconds, 2)}
        return Outcome(scores.f1, notes)

    def _own_tags(self, trial: TrialContext) -> dict[str, str]:
        page = self.opened.trial_page(trial.number)
        resumed = {} if trial.retry_of is None else {"xray_opt.retry_of": str(trial.retry_of)}
        return {"xray_opt.trial": str(trial.number)} | page_tags(self.opened.config.name, trial.number, page) | resumed

    def ended(self, record: TrialRecord, checkpoint: Path) -> None:
        """A trial has its final state: its checkpoint is not needed any more unless another one resumes it."""
        if record.state == "FAIL":
            self.tracking.close_trial(record.number, record.reason or "error")
        if record.reason not in RESUMABLE:
            discard_checkpoint(checkpoint)
        self.watcher.trial_ended(record)
