"""The two stores of a team, as real servers that can be ended and started again: PostgreSQL and MLflow on top of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from mlflow_stores import QUIET, free_port
from postgres_server import Server, postgres


class Database:
    """A PostgreSQL with a database for Optuna and one for MLflow."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.optuna, self.mlflow = server.database("optuna"), server.database("mlflow")

    def stop(self, mode: str) -> None:
        """End it; ``mode`` is pg_ctl's: ``fast`` ends connections, ``immediate`` is a crash."""
        self._server.control("stop", "-m", mode)

    def start(self) -> None:
        self._server.control("start")

    def hang(self, seconds: float) -> None:
        """Neither an answer nor an end of any connection for so long: server and sessions are stopped."""
        postmaster = psutil.Process(self._server.pid)
        stopped = list[psutil.Process]()
        try:
            for process in (postmaster, *postmaster.children(recursive=True)):  # it makes no new ones, once it stands
                with suppress(psutil.NoSuchProcess):
                    process.suspend()
                    stopped.append(process)
            time.sleep(seconds)
        finally:
            for process in reversed(stopped):
                with suppress(psutil.NoSuchProcess):
                    process.resume()


class Tracking:
    """``mlflow server`` on a port of its own, with its databases in PostgreSQL and its artifacts in a folder.

    It is kept going as a service manager does: it ends by itself where PostgreSQL is away when it starts.
    """

    def __init__(self, database: str, folder: Path) -> None:
        self._port, self._keeper, self._lock, self._wanted = free_port(), None, threading.Lock(), False
        self.uri = f"http://127.0.0.1:{self._port}"
        self._command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", database]
        self._command += ["--serve-artifacts", "--artifacts-destination", str(folder / "artifacts")]
        self._command += ["--host", "127.0.0.1", "--port", str(self._port), "--workers", "1"]
        self._log = folder / "mlflow.log"

    def start(self) -> None:
        """Start it; it answers some seconds later."""
        self._wanted = True
        self._launch()
        self._keeper = threading.Thread(target=self._keep, daemon=True)
        self._keeper.start()

    def _launch(self) -> bool:
        with self._lock, self._log.open("ab") as log:
            if self._wanted:
                self._process = subprocess.Popen(
                    self._command, stdout=log, stderr=log, env=os.environ | QUIET, start_new_session=True
                )
            return self._wanted

    def _keep(self) -> None:
        wanted = True
        while wanted:
            self._process.wait()
            time.sleep(1)
            wanted = self._launch()

    def wait(self, seconds: float = 180) -> None:
        """Wait until it answers."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=5):
                return
            time.sleep(0.3)
        raise AssertionError(f"MLflow does not answer; its log ends:\n{self._log.read_text()[-2000:]}")

    def signal(self, number: int) -> None:
        """Send a signal to the server and its workers."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def kill(self) -> None:
        """End it, until it is started again."""
        with self._lock:
            self._wanted = False
            self.signal(signal.SIGKILL)
        self._keeper.join()


@contextmanager
def stores(folder: Path) -> Iterator[tuple[Database, Tracking]]:
    """Both, ready, inside the block."""
    with postgres() as server:
        database = Database(server)
        tracking = Tracking(database.mlflow, folder)
        tracking.start()
        try:
            tracking.wait()
            yield database, tracking
        finally:
            tracking.kill()
