"""The way of one process's writes to MLflow: straight while it answers, through the spool while it does not.

Training never waits for a server for longer than one request takes to fail. What could not be sent is kept, all that
follows goes behind it, and a thread of its own sends it in order once the server is back. What MLflow does not take
(a login, a value) is said once and kept as well: nobody but the user can mend it, and ``xray-opt sync`` tries again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from xray_opt.errors import AccessRefused, DiskFault, StoreAway, TrackingError
from xray_opt.mlflow_client import HURRIED, Connection
from xray_opt.spool import Spool
from xray_opt.tracking.experiments import Choose, first
from xray_opt.tracking.sending import Behind, Sender, Write
from xray_opt.tracking.unloading import unload

#: Seconds before the first and between later looks whether a server is back.
FIRST, LONGEST = 1.0, 30.0


class Outbox:
    """Writes of this process to one experiment; any thread may write.

    Attributes:
        sender: what sends, and knows the ids of runs.

    Args:
        tags: of the study's run, so that whoever sends what is left behind knows whose it is.
        say: told once when the server goes and when it is back, and of each kind of refusal.
        choose: see ``Sender``.
    """

    def __init__(
        self,
        connection: Connection,
        experiment: str,
        tags: Mapping[str, str],
        say: Callable[[str], None],
        choose: Choose = first,
    ) -> None:
        self._connection, self.say = connection, say
        self._about = {"uri": connection.address, "experiment": experiment, "tags": dict(tags)}
        self._spool: Spool | None = None
        self._sending = threading.Lock()
        self._guard = threading.RLock()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self._told: set[str] = set()
        self._up = True
        self.sender = Sender(connection, experiment, tags, {}, choose)

    @property
    def waiting(self) -> int:
        """How many writes of this process wait."""
        with self._guard:
            return 0 if self._spool is None else len(self._spool)

    def write(self, kind: str, run: str, content: Mapping[str, Any], files: Mapping[str, Path] | None = None) -> None:
        """Send a write, or keep it; see ``sending.Write``.

        Raises:
            DiskFault: it can be neither sent nor kept.
        """
        write = Write(kind, run, content, files or {})
        with self._guard:
            if not self._up:
                self._append(write)
                return
        try:
            self.sender(write)
        except TrackingError as error:
            self._keep(write, error)

    def away(self, error: TrackingError | str) -> None:
        """The server does not answer: all that follows goes into the spool until it does."""
        with self._guard:
            self._up = False
            if not self._told & {"away"}:
                self._told.add("away")
                self.say(f"{error}; training goes on, what is logged is kept in {self._connection.workspace.spool}")
            if self._thread is None and not self._closed.is_set():
                self._thread = threading.Thread(target=self._until_back, name="xray-opt-outbox", daemon=True)
                self._thread.start()

    def flush(self, patience: float = 60.0) -> int:
        """Try at once to send what waits; how much still does. ``patience``: seconds for another thread that sends."""
        if self.waiting and self._sending.acquire(timeout=patience):
            try:
                self._unload()
            finally:
                self._sending.release()
        return self.waiting

    def hurry(self) -> None:
        """This process is told to end, and killed if it takes long: a server that does not answer soon is away."""
        self.sender.patience = HURRIED

    def close(self, patience: float = 5.0) -> None:
        """Let go of the spool: what waits in it is for others to send from now on.

        A thread that still sends after ``patience`` seconds lets go of it itself, or dies with the process.
        """
        self._closed.set()
        if self._sending.acquire(timeout=patience):
            try:
                self._let_go()
            finally:
                self._sending.release()

    def _let_go(self) -> None:
        with self._guard:
            if self._spool is not None:
                self._spool.close()
                self._spool = None

    def _keep(self, write: Write, error: TrackingError) -> None:
        """What was not sent: temporarily, or because MLflow does not take it."""
        with self._guard:
            self._append(write)
            if isinstance(error, StoreAway | AccessRefused):
                self.away(error)
            elif not isinstance(error, Behind):
                self._refused(str(error))

    def _refused(self, line: str) -> None:
        if line not in self._told:
            self._told.add(line)
            self.say(f"{line}; it is kept in {self._connection.workspace.spool}, xray-opt sync tries again")

    def _append(self, write: Write) -> None:
        if self._spool is None:
            self._spool = Spool.create(self._connection.workspace.spool, self._about)
            self._spool.runs.update(self.sender.runs)
            self.sender.runs = self._spool.runs
        if write.content.get("replaces"):
            self._spool.supersede(write.run, write.files)
        self._spool.append(write.run, write.kind, write.content, write.files)

    def _until_back(self) -> None:
        pause = FIRST
        while not self._closed.wait(pause):
            with self._sending, suppress(DiskFault):  # the next write says so
                done = self._closed.is_set() or self._unload()
                if self._closed.is_set():
                    self._let_go()
                if done:
                    return
            pause = min(2 * pause, LONGEST)

    def _unload(self) -> bool:
        """Send what waits, in order; whether all was asked. The caller holds ``_sending``."""
        if self._spool is None:
            return self._up  # away, and nothing is kept yet: look again
        sent = 0
        while True:
            report = unload(self._spool, self.sender)
            sent += report.sent
            for line in report.refused:
                self._refused(line)
            if report.stopped is not None:
                if isinstance(report.stopped, AccessRefused):
                    self._refused(str(report.stopped))
                return False
            with self._guard:
                if self._spool.last <= report.last:
                    self._up, self._thread = True, None
                    break
        self._told.discard("away")
        if sent:
            self.say(f"MLflow at {self._connection.shown} is back: {sent} writes that waited were sent")
        return True
