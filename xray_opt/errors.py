"""Every error that a user may cause or meet, as one tree.

    XrayError                 exit code 1
    ├── ConfigError           2   a setting, a study file or an option is wrong
    ├── DataError             3   films, manifests, caches
    │   ├── BadFilm               one film cannot be used (the reason says why)
    │   └── AuditError            the audit found a leak or unusable films
    ├── ModelError            4   base weights and adapter bundles
    │   └── BaseMismatch          an adapter met another base than the one it was trained on
    ├── TrainingError         5   a training run ended without a result; ``reason`` names the kind
    │   ├── NotFinite             reason ``nan``
    │   └── OutOfMemory           reason ``oom``
    ├── StudyError            6   the search: changed rules, its storage is away
    │   └── TooManyFailures  11   so many trials failed that the next ones would: mend the cause first
    ├── TrackingError         7   MLflow: tracking server, registry
    │   ├── StoreAway             it does not answer, or not now: the same may work later
    │   │   └── StoreFault            it answers, that it failed at this (500)
    │   └── AccessRefused         it wants another login
    ├── ServiceError          8   the tracking service: Docker, its containers
    ├── DeviceFault           9   a GPU failed under this process: only another process can use it again
    └── DiskFault            10   a disk is full, read-only or closed to this user
    Pruned                        not an error: a watcher ends a trial that is not worth finishing

The message says what is wrong, where, and what to do next, in one line. ``cli`` turns it into that line and
the exit code, once. Ctrl-C exits with 130.
"""

from __future__ import annotations

import errno
import re
import reprlib
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class XrayError(Exception):
    """Base of all errors with one clear line for the user; names and foreign texts in it cannot break the line."""

    exit_code = 1

    def __init__(self, message: object = "") -> None:
        super().__init__(printable(str(message)))


class ConfigError(XrayError):
    """A setting, a study file or an option is wrong."""

    exit_code = 2


class DataError(XrayError):
    """Films, manifests or caches cannot be used as they are."""

    exit_code = 3


class BadFilm(DataError):
    """One film cannot be used; rooms that open one film say the reason alone, those that open many name the film."""


class AuditError(DataError):
    """The audit found a leak across splits or films that cannot be used."""


class ModelError(XrayError):
    """Base weights or an adapter bundle cannot be used."""

    exit_code = 4


class BaseMismatch(ModelError):
    """An adapter bundle was given another base than the one it was trained on."""


class TrainingError(XrayError):
    """A training run ended without a result; ``reason`` is its short kind for MLflow's tag ``reason``."""

    exit_code = 5
    reason = "error"


class NotFinite(TrainingError):
    """The loss or a score became NaN or infinite."""

    reason = "nan"


class OutOfMemory(TrainingError):
    """Memory ran out even at a micro-batch of one film."""

    reason = "oom"


class StudyError(XrayError):
    """The search cannot go on: its rules changed, or its storage is away."""

    exit_code = 6


class TooManyFailures(StudyError):
    """So many trials failed that the next ones would as well: to start again at once, as schedulers do, is no help."""

    exit_code = 11


class TrackingError(XrayError):
    """The tracking server or the model registry refused or cannot be reached."""

    exit_code = 7


class StoreAway(TrackingError):
    """MLflow does not answer, not in time, or not now (5xx, 429): the same may work later."""


class StoreFault(StoreAway):
    """MLflow answers that it failed (500): it is ill, or this is what it cannot do."""


class AccessRefused(TrackingError):
    """MLflow refuses this user (401, 403): login or rights must be mended first."""


class ServiceError(XrayError):
    """The tracking service cannot be started, stopped or looked at: Docker, its containers, their ports."""

    exit_code = 8


class DeviceFault(XrayError):
    """A GPU failed under this process, which cannot use it any more: its trial is tried again by another one."""

    exit_code = 9


class DiskFault(XrayError):
    """A disk refuses to be written: full, read-only or no permission. It says nothing of the trial that met it."""

    exit_code = 10


class Pruned(Exception):
    """Raised by a watcher of epochs to end a trial that is not worth finishing.

    Args:
        epoch: the last epoch (counted from 1) that was trained.
    """

    def __init__(self, epoch: int) -> None:
        super().__init__(f"pruned after epoch {epoch}")
        self.epoch = epoch


#: What the system says of a disk that refuses: full, read-only, over its quota, failing, gone from its server, closed.
REFUSALS = (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.EACCES)


@contextmanager
def disk_refusals() -> Iterator[None]:
    """Turn what the system says of a disk that refuses into one line, wherever in the block it was met.

    Raises:
        DiskFault: it refuses.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        where = "a disk" if error.filename is None else str(error.filename)
        raise DiskFault(
            f"cannot use {where}: {error.strerror}; free some space or check permissions, and run it again"
        ) from error


def printable(text: str) -> str:
    """``text`` on one line: line breaks and tabs as spaces, whatever else a terminal would not print as an escape."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else " " if char in "\n\r\t" else char.encode("unicode_escape").decode()
        for char in text
    )


#: A password among options, as drivers repeat them.
_PASSWORD = re.compile(r"(?i)(password(?:=|%3D))[^&\s\"')]+")


def one_line(error: BaseException, most: int = 160) -> str:
    """What another library's error says, on one line of at most so many characters; its class where it says nothing.

    Passwords that stand there as options are left out.
    """
    said = _PASSWORD.sub(r"\1***", " ".join(str(error).split()))
    return printable(said)[:most] or type(error).__name__


def shortened(text: str, most: int = 80) -> str:
    """``text`` on one line, its middle left out where it is longer than ``most`` characters."""
    line = printable(text)
    half = (most - 1) // 2
    return line if len(line) <= most else f"{line[: most - 1 - half]}…{line[len(line) - half :]}"


class _Brief(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxdict, self.maxlist, self.maxtuple = 2, 3, 4, 4
        self.maxstring, self.maxlong, self.maxother = 80, 40, 60

    def repr_int(self, x: int, level: int) -> str:
        # Python refuses to spell a number of more than 4,300 digits.
        return f"a whole number of {x.bit_length()} bits" if x.bit_length() > 10_000 else super().repr_int(x, level)


def brief(value: object) -> str:
    """``repr`` of a value that somebody gave, in at most 160 characters: aliases nest a gigabyte in few lines."""
    return shortened(_Brief().repr(value), 160)
