"""Runs a whole study in this process: data, base weights, tracking, search, ranking, registration.

``tune`` may be called again and again: it does what is missing up to the asked number of trials, and finishes what
a kill left undone (lost trials, their MLflow runs, the registration of the best adapter).
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from xray_opt import registry
from xray_opt.backbone import Base, load_base, read_base, save_base
from xray_opt.cache import Images, open_images
from xray_opt.config import StudyConfig, Workspace
from xray_opt.dataset import Manifest, Pseudonyms, prepared, settled, shortcut_screen
from xray_opt.errors import ModelError
from xray_opt.experiment import ADAPTER_ARTIFACT, Job, run_experiment
from xray_opt.mlflow_client import Connection, connect
from xray_opt.tracking import RankedTrial, Tracking, close_lost, trial_runs
from xray_opt.trainer import Epoch, discard_checkpoint
from xray_opt.tuning import RESUMABLE, OpenStudy, Outcome, Tally, TrialContext, TrialRecord, open_study

#: So many best trials become LoggedModels, which MLflow's UI compares.
RANKED = 5


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
    kept = _kept_base(study.name, workspace)
    fresh = None if kept.is_file() else load_base(study.config.model)
    opened = open_study(study, workspace, manifest.sha256)
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
    if warning := base.warning():
        watcher.say(warning)
    images = open_images(
        manifest, study.config.image.size, workspace, lambda done, n: watcher.progress("decode", done, n)
    )
    tags = {"xray_opt.study": study.name, "xray_opt.data_sha256": manifest.sha256, "xray_opt.base_sha256": base.sha256}
    with Tracking.open(connection, study.name, tags) as tracking:
        opened.annotate("mlflow_parent", tracking.parent_id)
        _describe_once(opened, tracking, manifest, base, watcher)
        objective = _Objective(opened, images, base, tracking, connection, Pseudonyms(workspace), tags, watcher)
        tally = opened.tune(
            objective,
            total,
            timeout,
            lost=lambda record: _close_runs(connection, study.name, record, record.reason or "worker-lost"),
            ended=objective.ended,
            say=watcher.say,
        )
        version = _settle(opened, tracking, connection, base, tags)
        aliases = registry.aliases(connection, version.name) if version else {}
        held = tuple(alias for alias, number in aliases.items() if version and number == version.version)
        return TuneReport(study.name, tally, version, held, tracking.experiment_id)


def _study_base(opened: OpenStudy, workspace: Workspace, fresh: Base | None) -> Base:
    """The base weights of the study: those it started with, whatever a path or a library holds by now.

    Random and own weights are kept once a study; ImageNet's are verified by their digest anyway.

    Args:
        fresh: the weights that the settings name, where they have been read already.
    """
    kept = _kept_base(opened.config.name, workspace)
    known = opened.notes.get("base_sha256")
    if known and kept.is_file():
        base = read_base(kept)
    else:
        base = fresh or load_base(opened.config.config.model)
        if base.origin != "imagenet":
            save_base(base, kept)
    if known and base.sha256 != known:
        raise ModelError(
            f"study {opened.config.name} was made on base weights {str(known)[:12]}, these are {base.sha256[:12]}: "
            "give the former with --weights PATH, or start another study with --name"
        )
    opened.annotate("base_sha256", base.sha256)
    origin = str(opened.notes.get("base_origin") or base.origin)
    opened.annotate("base_origin", origin)
    return replace(base, origin=origin)


def _kept_base(study: str, workspace: Workspace) -> Path:
    return workspace.study_folder(study) / "base.safetensors"


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

        self.watcher.trial_started(trial.number, self.opened.config, trial.params)
        job = Job(
            config=trial.config,
            name=f"trial-{trial.number:03d}",
            params=trial.params,
            tags=self.tags | {"xray_opt.trial": str(trial.number)} | _retry_tag(trial),
            checkpoint=trial.checkpoint,
            watch=watch,
            replay=lambda epoch: trial.replay(epoch.number, epoch.val.f1),
            started=lambda run_id: trial.note("mlflow_run", run_id),
            say=self.watcher.say,
        )
        result = run_experiment(job, self.images, self.base, self.tracking, self.pseudonyms)
        scores = result.assessment.scores
        notes = {"val.auc": scores.auc, "val.accuracy": scores.accuracy, "val.precision": scores.precision}
        notes |= {"val.recall": scores.recall, "best_epoch": result.best_epoch, "seconds": round(result.seconds, 2)}
        return Outcome(scores.f1, notes)

    def ended(self, record: TrialRecord, checkpoint: Path) -> None:
        """A trial has its final state: its checkpoint is not needed any more unless another one resumes it."""
        if record.state == "FAIL":
            _close_runs(self.connection, self.opened.config.name, record, record.reason or "error")
        if record.reason not in RESUMABLE:
            discard_checkpoint(checkpoint)
        self.watcher.trial_ended(record)


def _retry_tag(trial: TrialContext) -> dict[str, str]:
    return {} if trial.retry_of is None else {"xray_opt.retry_of": str(trial.retry_of)}


def _close_runs(connection: Connection, study: str, record: TrialRecord, reason: str) -> None:
    """Bring the runs of a failed trial to FAILED; found by tag, as a kill may come before the trial knows its run."""
    for run_id in trial_runs(connection, study, record.number):
        close_lost(connection, run_id, reason)


def _settle(
    opened: OpenStudy, tracking: Tracking, connection: Connection, base: Base, tags: dict[str, str]
) -> registry.Version | None:
    """Rank the best trials and register the best one; both are safe to repeat, so a kill here loses nothing."""
    record = opened.read()
    ranked = sorted((t for t in record.trials if t.state == "COMPLETE"), key=lambda t: (-(t.value or 0), t.number))
    tracking.rank_models([RankedTrial(str(t.notes["mlflow_run"]), t.number, t.value or 0.0) for t in ranked[:RANKED]])
    tracking.log_metrics({"trials.complete": len(ranked), "trials.pruned": record.count("PRUNED")})
    if not ranked:
        return None
    best = ranked[0]
    tracking.log_metrics({"best.f1": best.value or 0.0})
    tracking.note(leaderboard(record.trials))
    run_id = str(best.notes["mlflow_run"])
    name = opened.config.config.tracking.registered_model
    facts = tags | {"xray_opt.trial": str(best.number), "val.f1": f"{best.value:.6f}"}
    with tempfile.TemporaryDirectory(prefix="xray-opt-") as folder:
        bundle = tracking.download(run_id, ADAPTER_ARTIFACT, Path(folder))
        return registry.register(connection, run_id, bundle, base, name, facts, example_film())


def leaderboard(trials: tuple[TrialRecord, ...]) -> str:
    """Markdown table of the finished trials, best first, for the note of the study's run in MLflow."""
    done = sorted((t for t in trials if t.state == "COMPLETE"), key=lambda t: (-(t.value or 0), t.number))
    names = sorted({name for trial in done for name in trial.params})
    rows = [["trial", "val F1", "val AUC", *names]]
    rows += [
        [str(t.number), f"{t.value:.4f}", f"{t.notes.get('val.auc', float('nan')):.4f}"]
        + [f"{value:.3g}" if isinstance(value := t.params.get(name, ""), float) else str(value) for name in names]
        for t in done
    ]
    rows.insert(1, ["---"] * len(rows[0]))
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def example_film() -> bytes:
    """A made-up film (64×64 grey PNG) as the input example of the registered model: never a patient's."""
    side = np.linspace(-1, 1, 64)
    glow = np.exp(-((side[:, None] ** 2) + side[None, :] ** 2))
    buffer = io.BytesIO()
    Image.fromarray((glow * 200).astype(np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()
