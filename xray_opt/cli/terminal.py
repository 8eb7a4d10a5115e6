"""The terminal that a command is called from, which may be closed while the command goes on."""

from __future__ import annotations

import errno
import io
import os
import signal
import stat
import sys
from types import FrameType
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class _Terminal(io.FileIO):
    """A terminal that may go away: what is written then goes nowhere, and whoever writes does not fail."""

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            leave_terminal()
            return super().write(data)


def bear_a_closed_terminal() -> None:
    """Let standard output and error outlive their terminal, and a terminal that closes (SIGHUP) end the command as
    Ctrl-C does; ``nohup`` keeps it going.

    The signal alone is not enough: a line that is written before it is heard meets an input/output error.
    """
    sys.stdout, sys.stderr = _outliving(sys.stdout), _outliving(sys.stderr)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signal.signal(signal.SIGHUP, _hang_up)


def leave_terminal() -> None:
    """Let the descriptors of standard output and error that are a terminal lead nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        if stat.S_ISCHR(os.fstat(descriptor).st_mode):
            os.dup2(nowhere, descriptor)
    os.close(nowhere)


def _hang_up(number: int, frame: FrameType | None) -> None:
    leave_terminal()
    raise KeyboardInterrupt


def _outliving(stream: TextIO) -> TextIO:
    if not isinstance(stream, io.TextIOWrapper) or not stream.isatty():
        return stream
    raw = _Terminal(stream.fileno(), "w", closefd=False)
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding=stream.encoding, errors=stream.errors, line_buffering=True)
