"""Who reads a command's lines, a terminal or the other end of a pipe: either may go away while the command goes on."""

from __future__ import annotations

import errno
import io
import os
import signal
import stat
import sys
import threading
from contextlib import suppress
from types import FrameType
from typing import TYPE_CHECKING, TextIO

from xray_opt.errors import REFUSALS
from xray_opt.interrupts import insist

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class _Lines(io.FileIO):
    """Where lines go, which may go away: what is written then goes nowhere, and whoever writes does not fail.

    A pipe whose reader is gone is a terminal that was closed. A line that meets a full disk is lost, that is all: a log
    is not worth a training.
    """

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno == errno.EPIPE:
                _lead_nowhere(self.fileno())
                if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
                    # Whichever thread wrote; nobody sends the signal for a pipe.
                    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGHUP)
            elif error.errno == errno.EIO:
                leave_terminal()
            elif error.errno not in REFUSALS:
                raise
        return memoryview(data).nbytes


def bear_a_closed_terminal() -> None:
    """Let standard error, and what else is a terminal, outlive whoever reads it; and let SIGTERM, a terminal that
    closes (SIGHUP) and a reader that goes away end the command as Ctrl-C does; ``nohup`` keeps it going.

    The signal alone is not enough: a line that is written before it is heard meets an input/output error. Standard
    output that is no terminal is the result: whoever writes it must know where it does not arrive.
    """
    sys.stderr = _outliving(sys.stderr)
    if os.isatty(1):
        sys.stdout = _outliving(sys.stdout)
    signal.signal(signal.SIGTERM, _interrupt)
    insist()
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _interrupt)


def leave_terminal() -> None:
    """Let the descriptors of standard output and error that are a terminal lead nowhere."""
    for descriptor in (1, 2):
        with suppress(OSError):  # a command may be called without one
            if stat.S_ISCHR(os.fstat(descriptor).st_mode):
                _lead_nowhere(descriptor)


def _lead_nowhere(descriptor: int) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


def undisturbed() -> None:
    """From now on a terminal or a reader that goes away interrupts nothing: the command is ending anyway."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Ctrl-C in a terminal ends ``tee`` as well, so the lines of the end may find nobody: that must not be a second
    one, which would cut the end short.
    """
    undisturbed()
    if number == signal.SIGHUP:
        leave_terminal()
    raise KeyboardInterrupt


def _outliving(stream: TextIO) -> TextIO:
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    raw = _Lines(stream.fileno(), "w", closefd=False)
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding=stream.encoding, errors=stream.errors, line_buffering=True)
