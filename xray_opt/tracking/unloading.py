"""Sends what waits in a spool, in order, each entry removed once the server has it; also what dead processes left."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xray_opt.errors import AccessRefused, DiskFault, StoreAway, StoreFault, TrackingError, one_line
from xray_opt.mlflow_client import Connection
from xray_opt.spool import Entry, Spool, look, spool_files, taken
from xray_opt.tracking.sending import DOING, Behind, Sender, Write


@dataclass
class Unloaded:
    """How far a spool was sent.

    Attributes:
        sent: number of entries.
        refused: lines on entries that MLflow does not take.
        stopped: why it was not asked any more; none where all entries were tried.
        last: number of the last entry that was looked at.
    """

    sent: int = 0
    refused: list[str] = field(default_factory=list)
    stopped: TrackingError | None = None
    last: int = 0


def unload(spool: Spool, sender: Sender) -> Unloaded:
    """Send the entries of a spool in order; what is refused stays, and so does what belongs to a run not yet made.

    What a store fails at twice that is well otherwise is refused, too.
    """
    report = Unloaded()
    for entry in spool.entries():
        report.last = entry.number
        try:
            spool.sent(entry, _send(spool, entry, sender))
            report.sent += 1
        except (StoreAway, AccessRefused) as error:
            report.stopped = error
            return report
        except Behind:
            continue
        except TrackingError as error:
            _refuse(spool, entry, str(error), report)
        except (LookupError, TypeError, ValueError, AttributeError) as error:  # bytes that a disk has changed
            line = f"write {entry.number} in {spool.path} is damaged ({one_line(error, 100)}) and cannot be sent"
            _refuse(spool, entry, line, report)
    return report


def _refuse(spool: Spool, entry: Entry, why: str, report: Unloaded) -> None:
    spool.refuse(entry, why)
    report.refused.append(why)


def _send(spool: Spool, entry: Entry, sender: Sender) -> str | None:
    if entry.kind not in DOING:
        raise ValueError("its kind or its content")
    try:
        with tempfile.TemporaryDirectory(prefix="xray-opt-") as folder:
            files = spool.unpack(entry, Path(folder))
            return _sent(Write(entry.kind, entry.run, entry.content, files, again=True), sender)
    except OSError as error:  # of this disk: what MLflow and the network raise is turned by the sender
        raise DiskFault(
            f"cannot unpack what waits for MLflow: {one_line(error)}; free some space or set TMPDIR"
        ) from error


def _sent(write: Write, sender: Sender) -> str | None:
    for _ in range(2):
        try:
            return sender(write)
        except StoreFault as error:
            sender.require_well(write)
            fault = error
    raise TrackingError(str(fault)) from fault


@dataclass
class LeftBehind:
    """What waits in a workspace for one store, after an attempt to send it.

    Attributes:
        sent: entries sent now.
        waiting: entries that still wait, those of living processes included.
        at_work: how many of these are of processes that live, and send them themselves.
        refused: lines on what MLflow does not take, and on files that cannot be used.
        stopped: why no more was sent; empty where all was tried.
    """

    sent: int = 0
    waiting: int = 0
    at_work: int = 0
    refused: list[str] = field(default_factory=list)
    stopped: str = ""


def send_left_behind(
    connection: Connection, workspace_spool: Path, before: Callable[[dict[str, str]], None] = lambda tags: None
) -> LeftBehind:
    """Send what processes that are gone left in the spool for this store; the runs they left RUNNING become FAILED.

    Args:
        before: told the tags of each file's study before the file is sent.

    """
    report = LeftBehind()
    try:
        paths = spool_files(workspace_spool)
    except DiskFault as error:
        return LeftBehind(refused=[str(error)])
    for path in paths:
        try:
            _send_file(connection, path, before, report)
        except DiskFault as error:  # full, closed to this user, or damaged: what is in other files goes on
            report.refused.append(str(error))
    return report


def is_told(about: Mapping[str, Any]) -> bool:
    """Whether a file of the spool tells whose writes wait in it, as every whole one does."""
    return isinstance(about.get("uri"), str) and isinstance(about.get("tags"), dict) and "experiment" in about


def untold(path: Path) -> str:
    """What is said of a file that does not, once however many meet it."""
    return f"{path} is damaged: it does not tell whose writes wait there; move it away"


def _send_file(
    connection: Connection, path: Path, before: Callable[[dict[str, str]], None], report: LeftBehind
) -> None:
    with taken(path) as spool:
        if spool is None:
            about, waiting = look(path)
            if about.get("uri") == connection.address:
                report.at_work += waiting
                report.waiting += waiting
            return
        if spool.about.get("uri") != connection.address:
            return
        if not is_told(spool.about):
            raise DiskFault(untold(path))
        before(spool.about["tags"])
        try:
            if not report.stopped:
                _unload_all(connection, spool, report)
        finally:
            report.waiting += len(spool)


def _unload_all(connection: Connection, spool: Spool, report: LeftBehind) -> None:
    """Send a file whose process is gone; what its runs lack then is their end."""
    sender = Sender(connection, spool.about["experiment"], spool.about["tags"], spool.runs)
    done = unload(spool, sender)
    report.sent += done.sent
    if done.stopped is None and not len(spool):
        for run_id in filter(None, map(sender.id_of, dict(spool.runs))):
            spool.append(run_id, "left", {})
        done = unload(spool, sender)
    report.refused += done.refused
    report.stopped = str(done.stopped or "")
