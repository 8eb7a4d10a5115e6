"""The state of an unfinished training on disk: written whole or not at all, verified, with the one before it kept.

A file is a line ``xray-opt checkpoint SHA-256`` and a ``torch.save`` of tensors, numbers and text, read with
``weights_only=True``. There is no state of random numbers in it: every epoch seeds its own.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import io
import logging
import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from xray_opt.config import Config, as_text, flatten
from xray_opt.errors import DiskFault, TrainingError, shortened
from xray_opt.faults import of_the_machine

log = logging.getLogger(__name__)

_MAGIC = b"xray-opt checkpoint "
_HEADER = len(_MAGIC) + 64 + 1
#: What a disk says that is closed to this user, or to writing.
CLOSED = (errno.EACCES, errno.EROFS)

State = dict[str, Any]
#: Settings that a resumed training may have changed, or that its digests stand for.
ELSEWHERE = ("data.", "tracking.", "model.base", "training.device", "training.micro_batch", "training.cuda_graphs")


def identity(config: Config, base_sha256: str, manifest_sha256: str, side: int) -> dict[str, str]:
    """What has to agree between a checkpoint and the training that resumes it.

    ``data.*`` is represented by the manifest's digest and the side of the cached films, ``model.base`` by the base's
    digest; ``tracking.*``, the device, the micro-batch and CUDA graphs do not change what is learned.
    """
    settings = {name: as_text(value) for name, value in flatten(config).items()}
    kept = {name: text for name, text in settings.items() if not name.startswith(ELSEWHERE)}
    return kept | {"base": base_sha256, "manifest": manifest_sha256, "cache side": str(side), "format": "1"}


class Checkpoint:
    """One checkpoint file and its predecessor ``NAME.previous``.

    Attributes:
        found: the file that was loaded.

    Args:
        earlier: asked, where neither is there, for files of which the first whole one is loaded.
    """

    def __init__(
        self,
        path: Path,
        identity: dict[str, str],
        say: Callable[[str], None],
        earlier: Callable[[], Iterable[Path]] = tuple,
    ) -> None:
        self.path = self.found = path
        self.identity = identity
        self._say = say
        self._earlier = earlier

    @property
    def previous(self) -> Path:
        """The checkpoint of the epoch before."""
        return _previous(self.path)

    def save(self, state: State) -> None:
        """Replace the newest checkpoint; a kill at any moment, or a second writer, leaves a good one in place.

        Raises:
            DiskFault: the disk refuses.
        """
        temporary = self.path.with_name(f"{self.path.name}.{secrets.token_hex(4)}.part")
        buffer = io.BytesIO()
        torch.save({"identity": self.identity, **state}, buffer)
        payload = buffer.getbuffer()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                file.write(_MAGIC + hashlib.sha256(payload).hexdigest().encode() + b"\n")
                file.write(payload)
                file.flush()
                os.fsync(file.fileno())
            with suppress(FileNotFoundError):  # the first, or another writer was faster
                os.replace(self.path, self.previous)
            os.replace(temporary, self.path)
        except OSError as error:
            if isinstance(error, FileNotFoundError) and self.path.parent.is_dir():
                return  # discarded: whoever took this training over has ended it
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise DiskFault(
                f"cannot write checkpoint {self.path}: {error.strerror}; nothing is lost: free some space or check "
                "permissions, and run the same command again"
            ) from error

    def load(self) -> State | None:
        """The newest state that is whole, none where there is none; what a failing disk keeps back is passed over.

        Raises:
            DiskFault: the disk is closed to this user, or read-only under a damaged one: says nothing of the training.
            TrainingError: it belongs to another training, it is no file, or memory ran out.
        """
        for path in self._candidates():
            if (state := self._whole(path)) is not None:
                self._check(state, path)
                self.found = path
                return state
        return None

    def _candidates(self) -> Iterator[Path]:
        yield self.path
        yield self.previous
        for path in self._earlier():
            yield path
            yield _previous(path)

    def _whole(self, path: Path) -> State | None:
        try:
            state = _read(path)
            if state is None:
                path.unlink()
                self._say(f"checkpoint {path} is damaged and was removed; going back to the one before it, if any")
            return state
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            why = error.strerror or error
            if error.errno in CLOSED:
                raise DiskFault(
                    f"cannot use checkpoint {path}: {why}; nothing is lost: check permissions, and run the same "
                    "command again"
                ) from error
            if error.errno not in (errno.EIO, errno.ESTALE):
                raise TrainingError(f"cannot read checkpoint {path}: {why}; mend that, or move it away") from error
            self._say(f"checkpoint {path} cannot be read ({why}); going back to the one before it, if any")
            return None
        except MemoryError as error:
            raise TrainingError(
                f"cannot read checkpoint {path}: out of memory; free some and resume, nothing is lost"
            ) from error

    def _check(self, state: State, path: Path) -> None:
        stored: dict[str, str] = state["identity"]
        if differing := [name for name in self.identity | stored if self.identity.get(name) != stored.get(name)]:
            name = differing[0]
            old, new = (shortened(str(values.get(name)), 70) for values in (stored, self.identity))
            raise TrainingError(
                f"checkpoint {path} belongs to another training: {shortened(name)} was {old}, now {new}; remove the "
                "file or go back to the old setting"
            )


def has_checkpoint(path: Path) -> bool:
    """Whether there is something to resume from: a checkpoint or its predecessor."""
    return path.exists() or _previous(path).exists()


def discard_checkpoint(path: Path) -> None:
    """Remove a checkpoint, its predecessor and what a kill left half written; there need not be any.

    A disk that refuses keeps them: that must not end what goes on without them, and ``xray-opt gc`` finds them later.
    """
    for file in (path, _previous(path), *path.parent.glob(f"{glob.escape(path.name)}.*.part")):
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            log.warning("checkpoint %s is not needed any more and cannot be removed: %s", file, error.strerror)


def _previous(path: Path) -> Path:
    return path.with_name(path.name + ".previous")


def _read(path: Path) -> State | None:
    """The state in ``path``, none where the file is damaged.

    Raises:
        OSError: the file cannot be read.
        MemoryError: it is as it was written, yet there is no room for it.
    """
    data = memoryview(path.read_bytes())
    header, payload = bytes(data[:_HEADER]), data[_HEADER:]
    if header != _MAGIC + hashlib.sha256(payload).hexdigest().encode() + b"\n":
        return None
    try:
        state: State = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except Exception as error:  # on bytes that are no checkpoint torch raises errors of nearly every kind
        if of_the_machine(error):
            raise MemoryError(str(error)) from error
        return None
    identity = state.get("identity") if isinstance(state, dict) else None
    plain = isinstance(identity, dict) and all(isinstance(text, str) for pair in identity.items() for text in pair)
    return state if plain else None
