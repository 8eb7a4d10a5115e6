"""Runs a whole study: data, base weights, tracking, search, ranking, registration.

``tune`` may be called again and again: it does what is missing up to the asked number of trials, and finishes what
a kill left undone (lost trials, their MLflow runs, the registration of the best adapter). What must happen once is done
here; who runs the trials is up to a launcher. Its workers ``join`` what is ready.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from xray_opt import registry
from xray_opt.backbone import Base
from xray_opt.cache import Images
from xray_opt.config import StudyConfig, Workspace
from xray_opt.dataset import Manifest, Pseudonyms, prepared, settled, shortcut_screen
from xray_opt.errors import AccessRefused, StoreAway, StudyError, TrackingError
from xray_opt.experiment import Job, run_experiment
from xray_opt.feed import Sizes
from xray_opt.kept_base import fresh_base, log_base, study_base
from xray_opt.mlflow_client import Connection, connect
from xray_opt.overlap import OVERLAP, overlap_tags, require_apart
from xray_opt.places import PARENT, STORE, mark_state
from xray_opt.settling import agree_now, settle_as_far_as_it_goes
from xray_opt.tracking import (
    STORAGE,
    STUDY_ID,
    WAITING,
    Tracking,
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
    Crew,
    OpenStudy,
    Outcome,
    Tally,
    TrialContext,
    TrialRecord,
    open_study,
    storage_digest,
    storage_patience,
    storage_url,
    study_notes,
)


@dataclass(frozen=True)
class StudyWatcher:
    """What a caller may see of a running study; every part may be left out.

    ``placed`` tells in which slot a trial runs before it starts; none: its slot died, the trial is tried again.
    """

    say: Callable[[str], None] = lambda line: None
    progress: Callable[[str, int, int], None] = lambda what, done, total: None
    known: Callable[[int, TrialRecord | None], None] = lambda counted, best: None
    placed: Callable[[int, str | None], None] = lambda number, slot: None
    trial_started: Callable[[int, StudyConfig, Mapping[str, object]], None] = lambda number, study, params: None
    epoch: Callable[[int, Epoch], None] = lambda number, epoch: None
    trial_ended: Callable[[TrialRecord], None] = lambda record: None


@dataclass(frozen=True)
class TuneReport:
    """How a call of ``tune`` ended: counts and best trial, and the registered version if there is one.

    ``experiment_id`` is none where MLflow was away all the time; ``waiting`` writes wait for it.
    """

    study: str
    tally: Tally
    version: registry.Version | None
    aliases: tuple[str, ...]
    experiment_id: str | None
    waiting: int = 0


@dataclass(frozen=True)
class Work:
    """A study that is open for work in this process: all that a trial needs is at hand."""

    opened: OpenStudy
    films: Sizes
    base: Base
    tracking: Tracking
    connection: Connection
    tags: Mapping[str, str]
    pseudonyms: Pseudonyms
    watcher: StudyWatcher

    @property
    def images(self) -> Images:
        """Train and val for whoever wants labels and names alone: they are the same at all image sizes."""
        return self.films.first

    def run(self, total: int, timeout: float | None = None, crew: Crew | None = None) -> Tally:
        """Run trials in this process; see ``OpenStudy.tune``."""
        return self.opened.tune(
            self._train,
            total,
            timeout,
            lost=lambda record: self.tracking.close_trial(record.number, record.reason or "worker-lost"),
            ended=self._ended,
            say=self.watcher.say,
            crew=crew,
        )

    def _train(self, trial: TrialContext) -> Outcome:
        def watch(epoch: Epoch) -> None:
            self.watcher.epoch(trial.number, epoch)
            trial.report(epoch.number, epoch.val.f1)

        def started(run_id: str) -> None:
            trial.note("mlflow_run", run_id)
            experiment = self.tracking.experiment_id
            if experiment is not None and not run_id.startswith(WAITING):
                trial.link(run_page(self.connection, experiment, run_id))

        self.watcher.trial_started(trial.number, self.opened.config, trial.params)
        job = Job(
            config=trial.config,
            name=f"trial-{trial.number:03d}",
            params=trial.params,
            tags={**self.tags, **self._own_tags(trial)},
            checkpoint=trial.checkpoint,
            watch=watch,
            replay=lambda epoch: trial.replay(epoch.number, epoch.val.f1),
            started=started,
            say=self.watcher.say,
            objective=self.opened.config.second,
        )
        result = run_experiment(job, self.films.at(trial.config), self.base, self.tracking, self.pseudonyms)
        if result.was_waiting:
            started(result.run_id)
        scores = result.assessment.scores
        notes = {"val.auc": scores.auc, "val.accuracy": scores.accuracy, "val.precision": scores.precision}
        notes |= {"val.recall": scores.recall, "best_epoch": result.best_epoch, "seconds": round(result.seconds, 2)}
        return Outcome(scores.f1, notes, result.second)

    def _own_tags(self, trial: TrialContext) -> dict[str, str]:
        page = self.opened.trial_page(trial.number)
        resumed = {} if trial.retry_of is None else {"xray_opt.retry_of": str(trial.retry_of)}
        return {"xray_opt.trial": str(trial.number)} | page_tags(self.opened.config.name, trial.number, page) | resumed

    def _ended(self, record: TrialRecord, checkpoint: Path) -> None:
        """A trial has its final state: its checkpoint is not needed any more unless another one resumes it."""
        if record.state == "FAIL":
            self.tracking.close_trial(record.number, record.reason or "error")
        if record.reason not in RESUMABLE:
            discard_checkpoint(checkpoint)
        self.watcher.trial_ended(record)


#: Brings a study that is ready to a number of trials (none starts after so many seconds), in whatever processes.
Launcher = Callable[[Work, int, float | None], Tally]


def in_process(work: Work, total: int, timeout: float | None) -> Tally:
    """The launcher of one worker, which is this process."""
    return work.run(total, timeout)


def tune(
    study: StudyConfig,
    workspace: Workspace,
    total: int | None = None,
    timeout: float | None = None,
    watcher: StudyWatcher = StudyWatcher(),
    launcher: Launcher = in_process,
) -> TuneReport:
    """Bring ``study`` to ``total`` trials (COMPLETE + PRUNED over all calls; none means the study's own number).

    Args:
        timeout: seconds after which no new trial starts.
        launcher: who runs the trials; see ``xray_opt.launchers``.

    Raises:
        XrayError: what stops the whole study, as one line; a failing trial does not, nor MLflow that goes away.
    """
    with ready(study, workspace, watcher) as work:
        before = work.opened.read()
        watcher.known(before.counted, before.best)
        _describe_once(work, work.images.manifest)
        agree_now(work.opened, work.tracking, watcher.say)
        tally = launcher(work, total or study.trials, timeout)
        return _report(work, tally)


@contextmanager
def ready(study: StudyConfig, workspace: Workspace, watcher: StudyWatcher) -> Iterator[Work]:
    """A study, made or continued, with all that a training for it needs; its run in MLflow is RUNNING meanwhile.

    Raises:
        XrayError: as ``tune`` does.
    """
    # What `data prepare` decided becomes part of the study's own settings: they are recorded, and evaluate reads them.
    data = settled(study.config.data, workspace)
    study = replace(study, config=replace(study.config, data=data))
    manifest = prepared(data, workspace, lambda done, n: watcher.progress("index", done, n))
    # Before the study is made: without weights there must be no study that remembers having wanted them.
    fresh = fresh_base(study, workspace)
    if fresh is not None:
        require_apart(fresh, manifest, study.config.model)
    opened = open_study(study, workspace, manifest.sha256, watcher.say)
    mark_state(workspace, study.name, storage_digest(storage_url(workspace, study.storage)))
    base = study_base(opened, fresh)
    if warning := base.warning():
        watcher.say(warning)
    with _at_work(opened, manifest, base, watcher, lambda: _others_at_work(opened)) as work:
        yield work


@contextmanager
def join(study: StudyConfig, workspace: Workspace, identity: str, watcher: StudyWatcher) -> Iterator[Work]:
    """A study that a call of ``tune`` in another process has made ready, open for work in this one as well.

    Args:
        study: as that call has it (``OpenStudy.config``).
        identity: the study's own id, among its notes.

    Raises:
        XrayError: as ``tune`` does; the study was deleted meanwhile.
    """
    # It is known to be there: where it does not answer, it restarts.
    patient = storage_patience(workspace, study.storage, watcher.say)
    if patient(lambda: study_notes(study.name, workspace, study.storage)).get(IDENTITY) != identity:
        raise StudyError(f"study {study.name} was deleted meanwhile: this worker stops")
    manifest = prepared(study.config.data, workspace)
    opened = patient(lambda: open_study(study, workspace, manifest.sha256, watcher.say))
    # The study is at work: a login that is refused by now stops nothing, see docs/decisions.md.
    with _at_work(opened, manifest, study_base(opened), watcher, lambda: True, (StoreAway, AccessRefused)) as work:
        yield work


@contextmanager
def _at_work(
    opened: OpenStudy,
    manifest: Manifest,
    base: Base,
    watcher: StudyWatcher,
    shared: Callable[[], bool],
    excused: tuple[type[TrackingError], ...] = (StoreAway,),
) -> Iterator[Work]:
    study, workspace = opened.config, opened.workspace
    overlap = require_apart(base, manifest, study.config.model, watcher.say)
    connection = connect(study.config.tracking, workspace, excused)
    require_same_store(connection, study.name, opened.notes.get(STORE), opened.notes.get(PARENT))
    films = Sizes.open(manifest, study.image_sizes, workspace, lambda done, n: watcher.progress("decode", done, n))
    url = storage_url(workspace, study.storage)
    storage = storage_patience(workspace, study.storage, watcher.say)(lambda: storage_digest(url))
    tags = {"xray_opt.study": study.name, STUDY_ID: str(opened.notes[IDENTITY]), STORAGE: storage}
    tags |= data_tags(manifest) | {"xray_opt.base_sha256": base.sha256} | overlap_tags(overlap)
    with Tracking.open(connection, study.name, tags, shared=shared, excused=excused, say=watcher.say) as tracking:
        tracking.carry(manifest)
        opened.annotate(STORE, store_note(connection))
        if not tracking.parent_id.startswith(WAITING):
            opened.annotate(PARENT, tracking.parent_id)
        if overlap is not None:
            opened.annotate(OVERLAP, overlap.to_dict())
        yield Work(opened, films, base, tracking, connection, tags, Pseudonyms(workspace), watcher)


def _others_at_work(opened: OpenStudy) -> bool:
    """Whether workers of other calls run trials of the study: the last of them ends the study's run in MLflow."""
    with suppress(StudyError):  # away or deleted: there is nobody to wait for
        return opened.is_at_work()
    return False


def _report(work: Work, tally: Tally) -> TuneReport:
    """Settle the study, and tell how the call ended."""
    done = settle_as_far_as_it_goes(work.opened, work.tracking, work.connection, work.base, work.tags, work.watcher.say)
    experiment = work.tracking.experiment_id
    return TuneReport(work.opened.config.name, tally, done.version, done.aliases, experiment, done.waiting)


def _describe_once(work: Work, manifest: Manifest) -> None:
    """Log what the study stands on, once: data set, shortcut screen, base weights that cannot be fetched again."""
    notes = work.opened.notes
    if notes.get("described") in (work.tracking.parent_id, WAITING + str(notes[IDENTITY])):
        work.opened.annotate("described", work.tracking.parent_id)
        return
    work.tracking.log_dataset(manifest)
    work.watcher.say("shortcut screen: how well do file metadata and a thumbnail alone tell the class?")
    shortcut = shortcut_screen(manifest)
    for line in shortcut.lines():
        work.watcher.say(line)
    work.tracking.log_metrics(shortcut.metrics())
    log_base(work.base, work.tracking.log_file)
    work.opened.annotate("described", work.tracking.parent_id)
