"""The calls of ``xray-opt tune`` that share the study; one that ends badly is started again, as Slurm would do."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil

#: A call that ended so is not started again: it says that the study is done.
DONE = 0
#: Seconds before a call is started again; a scheduler takes longer.
PAUSE = 1.0


class Call:
    """One host's ``xray-opt tune`` with its workers, whose output is kept in a file."""

    def __init__(self, name: str, command: list[str], env: dict[str, str], folder: Path) -> None:
        self.name, self.ends = name, list[int]()
        self._command, self._env, self._folder = command, env, folder
        self._log = folder / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, cwd=self._folder, env=self._env, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            )  # fmt: skip

    @property
    def runs(self) -> bool:
        """Whether it was started and its end is not told yet."""
        return self._process is not None

    def poll(self) -> int | None:
        """The exit code of its end, told once; none while it runs or where the end is known."""
        if self._process is None or (code := self._process.poll()) is None:
            return None
        self._process = None
        self.ends.append(code)
        return code

    def tree(self) -> list[psutil.Process]:
        """The call's process and those of its workers; empty while it does not run."""
        if self._process is None:
            return []
        try:
            call = psutil.Process(self._process.pid)
            slots = [child for child in call.children() if _is_slot(child)]
        except psutil.NoSuchProcess:
            return []
        return [call, *sorted(slots, key=lambda slot: slot.pid)]

    def kill(self) -> None:
        for process in self.tree():
            with suppress(psutil.NoSuchProcess):
                process.kill()

    @property
    def text(self) -> str:
        return self._log.read_text(errors="replace")


def _is_slot(process: psutil.Process) -> bool:
    """One that is gone meanwhile is none, and hides no other."""
    try:
        return "xray_opt.launchers.slot" in process.cmdline()
    except psutil.NoSuchProcess:
        return False


class Crew:
    """All calls."""

    def __init__(self, options: list[str], calls: int, env: dict[str, str], folder: Path) -> None:
        command = [sys.executable, "-m", "xray_opt", "tune", *options]
        self.members = [Call(f"call-{number}", command, env, folder) for number in range(calls)]
        self._lock = threading.Lock()

    def calls(self) -> list[tuple[str, psutil.Process]]:
        """Names and processes of the calls that run."""
        with self._lock:
            return [(call.name, tree[0]) for call in self.members if (tree := call.tree())]

    def workers(self) -> list[tuple[str, psutil.Process]]:
        """Names and processes of the workers that run."""
        with self._lock:
            return [(f"{call.name}, worker {one.pid}", one) for call in self.members for one in call.tree()[1:]]

    def run(self, seconds: float) -> bool:
        """Start all, keep them going until each said that the study is done; False where that takes longer."""
        deadline, due = time.monotonic() + seconds, {call.name: 0.0 for call in self.members}
        try:
            while due and time.monotonic() < deadline:
                self._look(due)
                time.sleep(0.2)
        finally:
            for call in self.members:
                call.kill()
        return not due

    def _look(self, due: dict[str, float]) -> None:
        with self._lock:
            for call in self.members:
                code = call.poll()
                if code == DONE:
                    del due[call.name]
                elif code is not None:
                    due[call.name] = time.monotonic() + PAUSE
                elif call.name in due and not call.runs and time.monotonic() >= due[call.name]:
                    call.start()
