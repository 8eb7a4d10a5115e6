"""A call of ``tune``: makes a study ready, has its trials run, settles it; slots of the call ``join`` what is ready."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

from xray_opt import registry
from xray_opt.backbone import Base
from xray_opt.config import StudyConfig, Workspace
from xray_opt.dataset import Manifest, Pseudonyms, prepared, same_films, settled, shortcut_screen
from xray_opt.errors import AccessRefused, StoreAway, StudyError, TrackingError
from xray_opt.feed import Sizes
from xray_opt.kept_base import fresh_base, log_base, study_base
from xray_opt.mlflow_client import connect
from xray_opt.overlap import OVERLAP, overlap_tags, require_apart
from xray_opt.places import PARENT, STORE, mark_state
from xray_opt.settling import agree_now, parent_of, settle_as_far_as_it_goes
from xray_opt.tracking import STORAGE, STUDY_ID, WAITING, Tracking, data_tags, require_same_store, store_note
from xray_opt.tuning import (
    DATA,
    IDENTITY,
    OpenStudy,
    Tally,
    open_study,
    storage_digest,
    storage_patience,
    storage_url,
    study_notes,
)
from xray_opt.workers.work import Launcher, StudyWatcher, Work, in_process


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
        with work.reaping():
            tally = launcher(work, total or study.trials, timeout)
        return _report(work, tally)


@contextmanager
def ready(study: StudyConfig, workspace: Workspace, watcher: StudyWatcher) -> Iterator[Work]:
    """A study, made or continued, with all that a training for it needs; its run in MLflow is RUNNING meanwhile.

    Raises:
        XrayError: as ``tune`` does.
    """
    # What `data prepare` decided becomes part of the study's own settings: they are recorded, and evaluate reads them.
    study = replace(study, config=replace(study.config, data=settled(study.config.data, workspace)))
    manifest = prepared(study.config.data, workspace, lambda done, n: watcher.progress("index", done, n))
    # Before the study is made: without weights there must be no study that remembers having wanted them.
    fresh = fresh_base(study, workspace)
    if fresh is not None:
        require_apart(fresh, manifest, study.config.model)
    opened = open_study(study, workspace, manifest.sha256, watcher.say)
    mark_state(workspace, study.name, storage_digest(storage_url(workspace, study.storage)))
    base = study_base(opened, fresh)
    if warning := base.warning():
        watcher.say(warning)
    with _at_work(opened, manifest, base, watcher, lambda hurried: _others_at_work(opened, hurried)) as work:
        yield work


@contextmanager
def join(study: StudyConfig, workspace: Workspace, identity: str, watcher: StudyWatcher) -> Iterator[Work]:
    """A study that a call of ``tune`` in another process has made ready, open for work in this one as well.

    Args:
        study: as that call has it (``OpenStudy.config``).
        identity: the study's own id, among its notes.

    Raises:
        XrayError: as ``tune`` does; the study was deleted meanwhile, or the films here are not that call's.
    """
    # It is known to be there: where it does not answer, it restarts.
    patient = storage_patience(workspace, study.storage, watcher.say)
    notes = patient(lambda: study_notes(study.name, workspace, study.storage))
    if notes.get(IDENTITY) != identity:
        raise StudyError(f"study {study.name} was deleted meanwhile: this worker stops")
    manifest = same_films(study.config.data, workspace, str(notes[DATA]))
    opened = patient(lambda: open_study(study, workspace, manifest.sha256, watcher.say))
    # The study is at work: a login that is refused by now stops nothing, see docs/decisions.md.
    with _at_work(
        opened, manifest, study_base(opened), watcher, lambda hurried: True, (StoreAway, AccessRefused)
    ) as work:
        yield work


@contextmanager
def _at_work(
    opened: OpenStudy,
    manifest: Manifest,
    base: Base,
    watcher: StudyWatcher,
    shared: Callable[[bool], bool],
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
    whose = parent_of(opened)
    with Tracking.open(connection, study.name, tags, True, shared, excused, watcher.say, whose) as tracking:
        tracking.carry(manifest)
        opened.annotate(STORE, store_note(connection))
        if overlap is not None:
            opened.annotate(OVERLAP, overlap.to_dict())
        yield Work(opened, films, base, tracking, connection, tags, Pseudonyms(workspace), watcher)


def _others_at_work(opened: OpenStudy, hurried: bool) -> bool:
    """Whether workers of other calls run trials of the study: the last of them ends the study's run in MLflow."""
    with suppress(StudyError):  # away or deleted: there is nobody to wait for
        return opened.is_at_work(hurried)
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
