"""A command or script in a process of its own that is forked from the tests': real signals, pipes and exit, without
the imports.

Only for a workspace whose stores this process has not opened: a database bears no fork. A command's slots are forked,
too, but where a ``PYTHONPATH`` is given: that is for interpreters of their own.
"""

import gc
import importlib
import json
import os
import pty
import runpy
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import IO, Any, NoReturn

import forked_slots
import torch
from conftest import Place, apply_environment

#: What ``tune`` imports when it needs it: each child would anew, which takes as long as three trials.
WARM = (
    "xray_opt.workers",
    "xray_opt.cli.tune",
    "xray_opt.launchers.processes",
    "xray_opt.launchers.slot",
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.store.model_registry.sqlalchemy_store",
    "optuna.importance._fanova",
    "optuna_dashboard",
    "peft",
    "sklearn.ensemble",
    "sklearn.linear_model",
    "sklearn.model_selection",
    "sklearn.pipeline",
)
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

    def completed(self, timeout: float) -> subprocess.CompletedProcess[str]:
        """The process after its end, and what it said until then."""
        heard = dict[str, str]()
        readers = [
            threading.Thread(target=lambda name=name, stream=stream: heard.update({name: stream.read()}))
            for name, stream in (("out", self.stdout), ("err", self.stderr))
        ]
        for reader in readers:
            reader.start()
        code = self.wait(timeout)
        for reader in readers:
            reader.join(LONG)
        return subprocess.CompletedProcess((), code, heard["out"], heard["err"])

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def end_all() -> None:
    """End what a test that failed left running."""
    while LEFT:
        LEFT.pop().kill()


@cache
def warm() -> None:
    """Import what the children need: once a process, and not where tests are only collected."""
    for name in WARM:
        importlib.import_module(name)


def fork(place: Place, *arguments: str, **environment: str) -> Forked:
    """Start the command."""
    return _start(lambda: _command(place, arguments, environment))


def fork_in_terminal(place: Place, *arguments: str) -> tuple[int, int]:
    """Start the command in a terminal of its own: its process id, and the other side of the terminal."""
    warm()
    pid, terminal = pty.fork()
    if pid == 0:
        _live(lambda: _command(place, arguments, {}))
    return pid, terminal


def run(place: Place, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return fork(place, *arguments, **environment).completed(LONG)


def run_script(path: Path, *arguments: str, cwd: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a file as ``python PATH ARGUMENTS`` does, to its end."""

    def script() -> None:
        _become(cwd, environment)
        sys.argv = [str(path), *arguments]
        sys.path.insert(0, str(path.parent))
        runpy.run_path(str(path), run_name="__main__")

    return _start(script).completed(3 * LONG)


def ask(question: Callable[[], Any]) -> Any:
    """What a function returns, as JSON: it may open stores that this process then has not opened."""
    done = _start(lambda: print(json.dumps(question()))).completed(LONG)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _start(act: Callable[[], None]) -> Forked:
    warm()
    (out, to_out), (err, to_err) = os.pipe(), os.pipe()
    if (pid := os.fork()) == 0:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(to_out, 1)
        os.dup2(to_err, 2)
        for descriptor in (out, to_out, err, to_err):
            os.close(descriptor)
        _live(act)
    for descriptor in (to_out, to_err):
        os.close(descriptor)
    return Forked(pid, os.fdopen(out), os.fdopen(err))


def _live(act: Callable[[], None]) -> NoReturn:
    """The life of the child, as an interpreter ends it; it must never come back into the tests."""
    code = 70
    try:
        # A file that the tests left in a cycle would close its descriptor when that is found, whoever has it by then.
        gc.freeze()
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        torch.set_num_threads(1)  # those of the tests' own were not taken along
        sys.stdin, sys.stdout = os.fdopen(0, closefd=False), os.fdopen(1, "w", closefd=False)
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
        code = _ending(act)
    finally:
        os._exit(code)


def _ending(act: Callable[[], None]) -> int:
    code = 0
    try:
        act()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except Exception:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def _command(place: Place, arguments: tuple[str, ...], environment: dict[str, str]) -> None:
    from xray_opt.cli import main

    _become(place.workspace.root, place.environment() | environment)
    if "--workers" in arguments and "PYTHONPATH" not in environment:
        forked_slots.install()
    sys.argv = ["xray-opt", *arguments]
    main()


def _become(folder: Path, environment: dict[str, str]) -> None:
    apply_environment({key: environment.get(key) for key in environment.keys() | os.environ.keys()})
    os.chdir(folder)
