"""Which GPUs may be used, and how much memory a slot of them gets.

NVML counts GPUs as ``nvidia-smi`` does and CUDA may count otherwise, so slots get UUIDs; where ``CUDA_VISIBLE_DEVICES``
is set already (by the user, by Slurm), only what it names counts, in its order.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pynvml

from xray_opt.errors import ConfigError

GIGABYTE = 1e9
#: What a process takes of a GPU before the first film: CUDA's context and its libraries' workspaces (bytes).
CONTEXT = int(0.6 * GIGABYTE)
#: Base, adapter, gradients and AdamW's state (bytes): 20 M weights in fp32 and in bf16, at most 5 M trained ones.
WEIGHTS = int(0.3 * GIGABYTE)
#: What a step keeps of one film at 384 px until its backward pass (bytes); see docs/decisions.md for its source.
PER_FILM_384 = int(0.36 * GIGABYTE)
#: Share of its part that a slot's allocator may take; the rest is for fragments.
MARGIN = 0.95


@dataclass(frozen=True)
class Gpu:
    """A GPU: how ``CUDA_VISIBLE_DEVICES`` names it, and its memory in bytes."""

    name: str
    uuid: str
    free: int
    total: int


def visible_gpus(environment: Mapping[str, str] = os.environ) -> list[Gpu]:
    """The GPUs that this process may use, in CUDA's order.

    Raises:
        ConfigError: none is there, or ``CUDA_VISIBLE_DEVICES`` hides them all.
    """
    with _nvml():
        installed = [_gpu(pynvml.nvmlDeviceGetHandleByIndex(i)) for i in range(pynvml.nvmlDeviceGetCount())]
        wanted = environment.get("CUDA_VISIBLE_DEVICES")
        if wanted is None:
            return installed
        names = [name.strip() for name in wanted.split(",")]
        parts = {name: _gpu(pynvml.nvmlDeviceGetHandleByUUID(name)) for name in names if name.startswith("MIG-")}
        return named(names, installed, parts)


def has_gpu(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether there is a GPU that this process may use."""
    try:
        return bool(visible_gpus(environment))
    except ConfigError:
        return False


def named(names: Sequence[str], installed: Sequence[Gpu], parts: Mapping[str, Gpu]) -> list[Gpu]:
    """The GPUs of ``CUDA_VISIBLE_DEVICES``, each under the name that it has there; the first wrong name ends the list,
    as it does for CUDA.

    Args:
        parts: MIG devices by name.
    """
    found = []
    for name in names:
        # The beginning of a UUID is enough for CUDA.
        same = [gpu for gpu in installed if name.startswith("GPU-") and gpu.uuid.startswith(name)]
        if name in parts:
            same = [parts[name]]
        elif name.isdecimal() and int(name) < len(installed):
            same = [installed[int(name)]]
        if not same:
            break
        found.append(Gpu(same[0].name, name, same[0].free, same[0].total))
    if not found:
        raise ConfigError(f"CUDA_VISIBLE_DEVICES={','.join(names)} shows no GPU; unset it, or leave --gpus out")
    return found


def chosen(text: str, gpus: Sequence[Gpu]) -> list[Gpu]:
    """The GPUs that ``--gpus`` names by their places among the visible ones: ``0,1`` or ``all``.

    Raises:
        ConfigError: no such GPU, one named twice, or no numbers.
    """
    if text.strip() == "all":
        return list(gpus)
    places = [place.strip() for place in text.split(",")]
    if not all(place.isdecimal() for place in places):
        raise ConfigError(f"--gpus takes numbers such as 0,1 or all, not {text!r}")
    numbers = [int(place) for place in places]
    if len(set(numbers)) < len(numbers):
        raise ConfigError(f"--gpus {text} names a GPU twice; several slots on one GPU are --per-gpu K")
    if wrong := [number for number in numbers if number >= len(gpus)]:
        seen = f"0 to {len(gpus) - 1}" if len(gpus) > 1 else "0"
        raise ConfigError(f"--gpus {text}: there is no GPU {wrong[0]}; there is {seen}")
    return [gpus[number] for number in numbers]


def need(size: int, films: int) -> int:
    """Bytes of a GPU that a process needs to train at ``size`` px with so many films a forward pass."""
    return CONTEXT + WEIGHTS + int(films * PER_FILM_384 * (size / 384) ** 2)


def require_room(gpu: Gpu, slots: int, size: int, batch: int) -> str:
    """What to say of ``slots`` slots on this GPU; empty where all is well.

    Raises:
        ConfigError: not even one film a slot fits; the line says how many slots would.
    """
    part = gpu.free // slots
    free = f"{gpu.name} has {gpu.free / GIGABYTE:.1f} GB free"
    if part < need(size, 1):
        fitting = gpu.free // need(size, 1)
        way = f"--per-gpu {fitting} would fit" if fitting else "free some of it, or lower image.size"
        raise ConfigError(
            f"--per-gpu {slots} does not fit: {free}, and a slot needs {need(size, 1) / GIGABYTE:.1f} GB at {size} px "
            f"with one film at a time; {way}"
        )
    if part < need(size, batch):
        fitting = max(gpu.free // need(size, batch), 1)
        return (
            f"{free}, {part / GIGABYTE:.1f} GB a slot; a batch of {batch} at {size} px is taken to need "
            f"{need(size, batch) / GIGABYTE:.1f} GB, else it is halved: --per-gpu {fitting} may be faster"
        )
    return ""


def memory_fraction(gpu: Gpu, slots: int) -> float | None:
    """Share of the whole GPU that a slot's allocator may take, so that no slot starves another; none for one slot.

    The allocator does not count the context, and what others hold is not there to be shared.
    """
    if slots == 1:
        return None
    return round(MARGIN * (gpu.free / slots - CONTEXT) / gpu.total, 4)


def shared_how(environment: Mapping[str, str] = os.environ) -> str:
    """How the slots of one GPU share it: a line for the user. No MPS daemon is ever started from here."""
    folder = Path(environment.get("CUDA_MPS_PIPE_DIRECTORY") or "/tmp/nvidia-mps")
    if (folder / "control").exists():
        return f"slots on one GPU run side by side through the MPS daemon of {folder}"
    return "slots on one GPU take turns: no MPS daemon runs (nvidia-cuda-mps-control -d starts one)"


@contextmanager
def _nvml() -> Iterator[None]:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise ConfigError(f"--gpus: no NVIDIA GPU can be used here ({error}); use --workers instead") from error
    try:
        yield
    except pynvml.NVMLError as error:
        raise ConfigError(f"--gpus: the NVIDIA driver does not tell what is there: {error}") from error
    finally:
        pynvml.nvmlShutdown()


def _gpu(handle: Any) -> Gpu:
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    return Gpu(pynvml.nvmlDeviceGetName(handle), pynvml.nvmlDeviceGetUUID(handle), int(memory.free), int(memory.total))
