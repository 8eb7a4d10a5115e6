"""The slots of a call: how many, on what, and with which share of the machine; one line where that cannot be."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import psutil

from xray_opt.config import StudyConfig, override
from xray_opt.errors import ConfigError
from xray_opt.launchers.gpus import chosen, has_gpu, memory_fraction, require_room, shared_how, visible_gpus

#: Memory that a slot takes for its libraries and the base weights alone (bytes).
LEAST_MEMORY = 0.5e9


@dataclass(frozen=True)
class Slot:
    """One place where trials run, one at a time, in a process of its own.

    Attributes:
        gpu: what ``CUDA_VISIBLE_DEVICES`` is in it; none leaves that as it is.
        memory_fraction: share of the GPU's memory that it may take; none means all.
    """

    name: str
    threads: int
    gpu: str | None = None
    memory_fraction: float | None = None

    def environment(self) -> dict[str, str]:
        """Variables of the slot's process."""
        return {"OMP_NUM_THREADS": str(self.threads)} | ({"CUDA_VISIBLE_DEVICES": self.gpu} if self.gpu else {})

    def settings(self, study: StudyConfig) -> StudyConfig:
        """The study as this slot runs it: one that has a GPU must not fall back to the processor."""
        if self.gpu is None:
            return study
        return replace(study, config=override(study.config, {"training.device": "cuda"}))


def cpu_slots(count: int, study: StudyConfig) -> tuple[Slot, ...]:
    """``count`` slots on this machine's processor.

    Raises:
        ConfigError: they would crowd a GPU, or cannot fit into memory.
    """
    device = study.config.training.device
    if device.startswith("cuda") or (device == "auto" and has_gpu()):
        raise ConfigError(
            f"--workers {count} would put them all on one GPU: use --gpus all --per-gpu {count}, or --device cpu"
        )
    if psutil.virtual_memory().available < count * LEAST_MEMORY:
        fitting = int(psutil.virtual_memory().available // LEAST_MEMORY)
        raise ConfigError(f"--workers {count} do not fit into memory: there is room for {fitting} at most")
    return tuple(Slot(f"slot {index}", threads_for(count)) for index in range(count))


def gpu_slots(
    gpus: str, per_gpu: int, study: StudyConfig, say: Callable[[str], None] = lambda line: None
) -> tuple[Slot, ...]:
    """``per_gpu`` slots on each of the GPUs named (``0,1`` or ``all``).

    Raises:
        ConfigError: no such GPUs, or so many slots cannot fit into their memory.
    """
    device = study.config.training.device
    if device not in ("auto", "cuda"):
        raise ConfigError(f"--gpus chooses the devices itself: leave training.device at auto, not {device}")
    found = chosen(gpus, visible_gpus())
    if per_gpu > 1:
        training = study.config.training
        lines = [
            require_room(gpu, per_gpu, max(study.image_sizes), training.micro_batch or training.batch_size)
            for gpu in found
        ]
        for line in dict.fromkeys((*filter(None, lines), shared_how())):
            say(line)
    threads = threads_for(len(found) * per_gpu)
    return tuple(
        Slot(f"slot {row * per_gpu + index} (GPU {gpu.uuid[:12]})", threads, gpu.uuid, memory_fraction(gpu, per_gpu))
        for row, gpu in enumerate(found)
        for index in range(per_gpu)
    )


def threads_for(count: int, environment: Mapping[str, str] = os.environ) -> int:
    """Threads of each of ``count`` slots: an equal share of the cores, no more than ``OMP_NUM_THREADS`` says."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    own = environment.get("OMP_NUM_THREADS", "").partition(",")[0]
    return max(min(cores // count, int(own) if own.isdecimal() else cores), 1)
