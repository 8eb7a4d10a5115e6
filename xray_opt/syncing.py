"""Sends what waits for MLflow in this workspace, and does what was postponed: states of runs, ranking, registration.

Safe to repeat, to kill, and to call while studies are at work: what a living process keeps it sends itself.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from xray_opt import registry
from xray_opt.config import Config, StudyConfig, TrackingConfig, Workspace, override
from xray_opt.errors import DiskFault, TrackingError, XrayError
from xray_opt.kept_base import study_base
from xray_opt.mlflow_client import Connection, connect, without_credentials
from xray_opt.places import Place, known_storages, moved_with
from xray_opt.settling import POSTPONED, agree_all, done_with, note_postponed, parent_of, settle, stamped
from xray_opt.spool import look, spool_files, taken
from xray_opt.tracking import STORAGE, STUDY_ID, LeftBehind, Tracking, is_told, send_left_behind, untold
from xray_opt.tuning import OpenStudy, existing_study, list_studies

Say = Callable[[str], None]


@dataclass
class SyncReport:
    """What a call of ``sync`` did and left.

    Attributes:
        sent: writes sent now.
        at_work: writes that wait in living processes, which send them.
        waiting: all others that still wait.
        settled: studies whose runs were brought to their trials' states.
        registered: study → version of its best adapter.
        problems: lines on what is refused, away, or could not be done.
    """

    sent: int = 0
    at_work: int = 0
    waiting: int = 0
    settled: list[str] = field(default_factory=list)
    registered: dict[str, registry.Version] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def idle(self) -> bool:
        """Whether there was nothing to do, and is nothing left."""
        return not (self.sent or self.at_work or self.waiting or self.settled or self.problems)


def sync(workspace: Workspace, storages: Sequence[str] = (), say: Say = lambda line: None) -> SyncReport:
    """Send what waits, then settle the studies that it belongs to, and those whose settling was postponed.

    Args:
        storages: Optuna storages to look into besides those that the workspace knows.
        say: one line on a study that is left to its workers, or on another call that is waited for.

    Raises:
        DiskFault: the workspace is closed to this user.
    """
    with _one_at_a_time(workspace, say):
        return _sync(workspace, storages, say)


@contextmanager
def _one_at_a_time(workspace: Workspace, say: Say) -> Iterator[None]:
    """Wait for another call in this workspace: while it sends, a study cannot be settled. A dead one's lock is free."""
    if not workspace.mlruns.is_dir():
        yield
        return
    try:
        lock = (workspace.mlruns / ".sync.lock").open("w")
    except OSError as error:
        raise DiskFault(f"cannot write to {workspace.mlruns}: {error.strerror}; check permissions") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another xray-opt sync is at work here: waiting for its end")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _sync(workspace: Workspace, storages: Sequence[str], say: Say) -> SyncReport:
    report, known, problems = SyncReport(), known_storages(workspace, storages), list[str]()
    waiting = {path: look(path) for path in spool_files(workspace.spool)}
    problems += filter(None, (_damage(path) for path, (about, _) in waiting.items() if not is_told(about)))
    for uri in sorted({about["uri"] for about, _ in waiting.values() if is_told(about)}):
        try:
            connection = connect(TrackingConfig(uri=_with_login(uri) or workspace.mlflow_uri), workspace)
            left = send_left_behind(connection, workspace.spool, partial(_remember, connection, known, report))
        except TrackingError as error:
            here = sum(number for about, number in waiting.values() if about.get("uri") == uri)
            left = LeftBehind(waiting=here, stopped=str(error))
        report.sent += left.sent
        report.at_work += left.at_work
        report.waiting += left.waiting - left.at_work
        problems += [*left.refused, *filter(None, [left.stopped])]
    for url in known.values():
        _settle_all(url, workspace, report, say)
    report.problems = list(dict.fromkeys([*problems, *report.problems]))
    return report


def _damage(path: Path) -> str:
    """Why a file does not tell what it is about; empty where that is no fault (it is new, or gone)."""
    try:
        with taken(path) as spool:
            if spool is None or is_told(spool.about) or not len(spool):
                return ""
            return untold(path)
    except DiskFault as error:
        return str(error)


def _with_login(uri: str) -> str:
    """The spool holds no passwords; the environment's URI may carry one."""
    own = os.environ.get("MLFLOW_TRACKING_URI", "")
    return own if without_credentials(own) == uri else uri


def _remember(connection: Connection, known: Mapping[str, str], report: SyncReport, tags: Mapping[str, str]) -> None:
    """Note on a study that its runs are to be looked after, before its writes are sent: this call may be killed."""
    name, url, workspace = tags.get("xray_opt.study"), known.get(tags.get(STORAGE, "")), connection.workspace
    if name is None:  # a single run
        return
    if url is None and connection.artifact_root:
        url = moved_with(workspace, tags.get(STUDY_ID, ""))
    if url is None:
        report.problems.append(f"study {name} is in a storage that is not known here: name it with --storage URL")
        return
    try:
        opened = existing_study(StudyConfig(name, storage=url), workspace)
        note_postponed(opened, partial(stamped, {"tags": dict(tags)}), lambda line: None)
    except XrayError as error:  # deleted, say
        report.problems.append(str(error))


def _settle_all(url: str, workspace: Workspace, report: SyncReport, say: Say) -> None:
    """Settle the studies of a storage that want it."""
    try:
        studies = [study for study in list_studies(workspace, url) if study.notes.get(POSTPONED)]
    except XrayError as error:
        report.problems.append(str(error))
        return
    for study in studies:
        note = study.notes[POSTPONED]
        try:
            config = override(Config(), note.get("settings", {}))
            opened = existing_study(StudyConfig(study.name, config, storage=url), workspace)
            if opened.is_at_work():
                say(f"study {study.name} is at work: its workers settle it")
                continue
            if (version := _settle(opened, note, say)) is not None:
                report.registered[study.name] = version
            report.settled.append(study.name)
        except XrayError as error:
            report.problems.append(f"study {study.name}: {error}")


def _settle(opened: OpenStudy, note: Mapping[str, object], say: Say) -> registry.Version | None:
    """Settle one study; where no call of ``tune`` came to its end, only the states of its runs are looked after."""
    study, tags = opened.config, {str(key): str(value) for key, value in dict(note["tags"]).items()}  # type: ignore[call-overload]
    place = Place(study.name, study.storage).tracking(opened.workspace)
    connection = connect(replace(place, uri=_with_login(place.uri) if place.uri else None), opened.workspace)
    version = None
    whose = parent_of(opened)
    with Tracking.open(connection, study.name, tags, shared=opened.is_at_work, say=say, choose=whose) as tracking:
        agree_all(opened, tracking, say)
        if "settings" in note:
            version = settle(opened, tracking, connection, study_base(opened), tags)
    done_with(note, opened, say)
    return version
