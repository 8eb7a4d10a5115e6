"""A slot and its process, which is started anew, not forked: torch, CUDA and threads bear no fork.

The parent keeps the only end of each slot's standard input: when it dies, the slots see that end and stop. They are in
sessions of their own, so Ctrl-C reaches the parent alone, which passes it on once.
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import IO, Any

from xray_opt.config.environment_file import redacted
from xray_opt.errors import StudyError, XrayError
from xray_opt.launchers.slots import Slot
from xray_opt.launchers.wire import Job, read_event

#: What a slot's interpreter runs.
PROGRAM = ("-m", "xray_opt.launchers.slot")

Event = dict[str, Any]
News = queue.Queue[tuple["Member", Event]]


class Member:
    """A slot and its process."""

    def __init__(self, slot: Slot, news: News) -> None:
        self.slot = slot
        self.restarts = 0
        self.trial: int | None = None
        self.error: XrayError | None = None
        self.stopped_by = ""
        self.code: int | None = None
        self._news = news
        self._threads: list[threading.Thread] = []
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def runs(self) -> bool:
        """Whether it was started and its end was not seen yet."""
        return self._process is not None

    def start(self, job: Job) -> None:
        """Start the slot's process and hand it its job.

        Raises:
            StudyError: the system has no process left, or no memory, file or thread for one.
        """
        try:
            self._process, told = interpreter(PROGRAM, self.slot.environment())
            self._listen(told, read_event)
            self._listen(self._process.stdout, _printed)
        except (OSError, RuntimeError) as error:
            self.kill()
            self._process = None
            why = getattr(error, "strerror", None) or error
            raise StudyError(f"cannot start {self.slot.name}: {why}; use fewer slots") from error
        job = replace(job, study=self.slot.settings(job.study), memory_fraction=self.slot.memory_fraction)
        with suppress(OSError):  # it died at once: its end tells
            _pipe(self._process.stdin).write(job.line())
            _pipe(self._process.stdin).flush()

    def _listen(self, stream: IO[bytes] | None, read: Callable[[bytes], Event | None]) -> None:
        def loop() -> None:
            with _pipe(stream) as lines:
                for line in lines:
                    if (event := read(line)) is not None:
                        self._news.put((self, event))

        thread = threading.Thread(target=loop, name=f"xray-opt-{self.slot.name}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def ended(self) -> bool:
        """Whether the process is over; then all that it told has arrived."""
        if self._process is None or (code := self._process.poll()) is None:
            return False
        for thread in self._threads:
            thread.join(5)  # a process of its own making may hold the pipe
        with suppress(OSError):
            _pipe(self._process.stdin).close()
        self._threads, self._process, self.code = [], None, code
        return True

    def how(self) -> str:
        """How the process ended, for a line that begins with the slot's name."""
        code = self.code or 0
        if code == -signal.SIGKILL:
            return "was killed (SIGKILL; out of memory?)"
        return f"was ended by signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"ended with code {code}"

    def stop(self) -> None:
        """Let the process hand its trial back and end."""
        if self._process is not None:
            self._process.terminate()

    def kill(self) -> None:
        """End the process at once where it still runs, and free its place."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


def _printed(line: bytes) -> Event | None:
    """What a slot's libraries print is passed on."""
    text = line.decode(errors="replace").rstrip()
    return {"event": "say", "line": redacted(text)} if text else None


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    if stream is None:
        raise AssertionError("it was opened as a pipe")
    return stream


def interpreter(program: Sequence[str], variables: Mapping[str, str]) -> tuple[subprocess.Popen[bytes], IO[bytes]]:
    """Start a Python like this one, in a session of its own; and what it tells on the descriptor that is its argument.

    Raises:
        OSError: the system starts none.
    """
    ours, theirs = os.pipe()
    try:
        process = subprocess.Popen(
            [sys.executable, *_like_this_one(), *program, str(theirs)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=(theirs,),
            env=os.environ | variables,
            start_new_session=True,
        )
    except OSError:
        os.close(ours)
        raise
    finally:
        os.close(theirs)
    return process, os.fdopen(ours, "rb")


def _like_this_one() -> list[str]:
    """Whether the current folder is searched for modules is as it is here."""
    return [] if {"", os.getcwd()} & set(sys.path) else ["-P"]
