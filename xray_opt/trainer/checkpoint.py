"""The state of an unfinished training on disk: written whole or not at all, verified, with the one before it kept.

A file is a line ``xray-opt checkpoint SHA-256`` and a ``torch.save`` of tensors, numbers and text, read with
``weights_only=True``. There is no state of random numbers in it: every epoch seeds its own.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from xray_opt.config import Config, as_text, flatten
from xray_opt.errors import DiskFault, TrainingError, shortened

_MAGIC = b"xray-opt checkpoint "
_HEADER = len(_MAGIC) + 64 + 1

State = dict[str, Any]
#: What torch's plain RuntimeErrors say where memory or the device is at fault.
_OF_THE_MACHINE = ("CUDA error", "allocate memory", "not enough memory", "out of memory")
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
    """One checkpoint file and its predecessor ``NAME.previous``."""

    def __init__(self, path: Path, identity: dict[str, str], say: Callable[[str], None]) -> None:
        self.path = path
        self.identity = identity
        self._say = say

    @property
    def previous(self) -> Path:
        """The checkpoint of the epoch before."""
        return self.path.with_name(self.path.name + ".previous")

    def save(self, state: State) -> None:
        """Replace the newest checkpoint; a kill at any moment leaves a good one in place.

        Raises:
            DiskFault: the disk refuses.
        """
        temporary = self.path.with_name(self.path.name + ".part")
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
            if self.path.exists():
                os.replace(self.path, self.previous)
            os.replace(temporary, self.path)
        except OSError as error:
            raise DiskFault(
                f"cannot write checkpoint {self.path}: {error.strerror}; nothing is lost: free some space or check "
                "permissions, and run the same command again"
            ) from error

    def load(self) -> State | None:
        """The newest state that is whole, none where there is none.

        Raises:
            TrainingError: it belongs to another training, the file cannot be read or removed, or memory ran out.
        """
        for path in (self.path, self.previous):
            try:
                if not path.exists():
                    continue
                state = _read(path)
                if state is None:
                    path.unlink()
            except OSError as error:
                raise TrainingError(
                    f"cannot read checkpoint {path}: {error.strerror or error}; mend that, or move it away"
                ) from error
            except MemoryError as error:
                raise TrainingError(
                    f"cannot read checkpoint {path}: out of memory; free some and resume, nothing is lost"
                ) from error
            if state is not None:
                self._check(state, path)
                return state
            self._say(f"checkpoint {path} is damaged and was removed; going back to the one before it, if any")
        return None

    def _check(self, state: State, path: Path) -> None:
        stored: dict[str, str] = state["identity"]
        if differing := [name for name in self.identity | stored if self.identity.get(name) != stored.get(name)]:
            name = differing[0]
            old, new = (shortened(str(values.get(name)), 70) for values in (stored, self.identity))
            raise TrainingError(
                f"checkpoint {path} belongs to another training: {shortened(name)} was {old}, now {new}; remove the "
                "file or go back to the old setting"
            )


def is_of_the_machine(error: BaseException) -> bool:
    """Whether an error of torch tells of the machine it met, and nothing of the bytes that were read."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OF_THE_MACHINE)


def has_checkpoint(path: Path) -> bool:
    """Whether there is something to resume from: a checkpoint or its predecessor."""
    return path.exists() or path.with_name(path.name + ".previous").exists()


def discard_checkpoint(path: Path) -> None:
    """Remove a checkpoint, its predecessor and what a kill left half written; there need not be any."""
    for suffix in ("", ".previous", ".part"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


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
        if is_of_the_machine(error):
            raise MemoryError(str(error)) from error
        return None
    identity = state.get("identity") if isinstance(state, dict) else None
    plain = isinstance(identity, dict) and all(isinstance(text, str) for pair in identity.items() for text in pair)
    return state if plain else None
