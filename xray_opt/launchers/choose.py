"""Which launcher the options of ``tune`` ask for."""

from __future__ import annotations

from collections.abc import Callable

from xray_opt.config import StudyConfig
from xray_opt.errors import ConfigError
from xray_opt.launchers.processes import Processes
from xray_opt.launchers.slots import cpu_slots, gpu_slots
from xray_opt.workers import Launcher, in_process


def launcher_for(
    study: StudyConfig,
    workers: int | None = None,
    gpus: str | None = None,
    per_gpu: int | None = None,
    ray: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Launcher:
    """The launcher for ``workers`` processes, or for ``per_gpu`` slots on each of ``gpus``; without any, this process.

    Args:
        ray: address of the Ray cluster whose nodes and GPUs are meant; none means this machine.

    Raises:
        ConfigError: the options contradict each other, or the machine has not got what they ask for.
    """
    if gpus is not None and workers is not None:
        raise ConfigError("--workers and --gpus exclude each other: --gpus starts --per-gpu slots on each of its GPUs")
    if ray is not None:
        from xray_opt.launchers.on_ray import ray_launcher

        return ray_launcher(ray, study, workers, gpus, per_gpu, say)
    if gpus is not None:
        return Processes(gpu_slots(gpus, per_gpu or 1, study, say))
    if per_gpu is not None:
        raise ConfigError("--per-gpu counts the slots on each GPU: name these with --gpus 0,1 or --gpus all")
    if workers is None or workers == 1:
        return in_process
    return Processes(cpu_slots(workers, study))
