"""A command in a process of its own that is forked from the tests': real signals, pipes and exit, without the imports.

Only for a workspace whose stores this process has not opened: a database bears no fork.
"""

import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import IO, NoReturn

import torch
from conftest import Place, apply_environment

#: Seconds that anything may take on a loaded machine.
LONG = 300
#: All that were started; see ``end_all``.
LEFT: list["Forked"] = []


class Forked:
    """The part of ``subprocess.Popen`` that tests use."""

    def __init__(self, pid: int, stdout: IO[str], stderr: IO[str]) -> None:
        self.pid, self.stdout, self.stderr = pid, stdout, stderr
        self.returncode: int | None = None
        self._over = threading.Event()
        threading.Thread(target=self._wait, daemon=True).start()
        LEFT.append(self)

    def _wait(self) -> None:
        self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        self._over.set()

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float) -> int:
        if not self._over.wait(timeout):
            raise subprocess.TimeoutExpired("xray-opt", timeout)
        return int(self.returncode or 0)

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def end_all() -> None:
    """End what a test that failed left running."""
    while LEFT:
        LEFT.pop().kill()


def fork(place: Place, *arguments: str, **environment: str) -> Forked:
    """Start the command."""
    (out, to_out), (err, to_err) = os.pipe(), os.pipe()
    if (pid := os.fork()) == 0:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(to_out, 1)
        os.dup2(to_err, 2)
        for descriptor in (out, to_out, err, to_err):
            os.close(descriptor)
        _command(place, arguments, environment)
    for descriptor in (to_out, to_err):
        os.close(descriptor)
    return Forked(pid, os.fdopen(out), os.fdopen(err))


def fork_in_terminal(place: Place, *arguments: str) -> tuple[int, int]:
    """Start the command in a terminal of its own: its process id, and the other side of the terminal."""
    pid, terminal = pty.fork()
    if pid == 0:
        _command(place, arguments, {})
    return pid, terminal


def run(place: Place, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    process, heard = fork(place, *arguments, **environment), dict[str, str]()
    readers = [
        threading.Thread(target=lambda name=name, stream=stream: heard.update({name: stream.read()}))
        for name, stream in (("out", process.stdout), ("err", process.stderr))
    ]
    for reader in readers:
        reader.start()
    code = process.wait(LONG)
    for reader in readers:
        reader.join(LONG)
    return subprocess.CompletedProcess(arguments, code, heard["out"], heard["err"])


def _command(place: Place, arguments: tuple[str, ...], environment: dict[str, str]) -> NoReturn:
    """The life of the child; it must never come back into the tests."""
    code = 70
    try:
        code = _main(place, arguments, environment)
    finally:
        os._exit(code)


def _main(place: Place, arguments: tuple[str, ...], environment: dict[str, str]) -> int:
    from xray_opt.cli import main

    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)  # those of the tests' own were not taken along
    sys.stdin, sys.stdout = os.fdopen(0, closefd=False), os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    wanted = place.environment() | environment
    apply_environment({key: wanted.get(key) for key in wanted.keys() | os.environ.keys()})
    os.chdir(place.workspace.root)
    sys.argv = ["xray-opt", *arguments]
    return _ending(main)


def _ending(main: Callable[[], None]) -> int:
    try:
        main()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    sys.stdout.flush()
    sys.stderr.flush()
    return code
