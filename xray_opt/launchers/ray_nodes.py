"""How the nodes of a Ray cluster are divided into slots. Imports no Ray: see ``ray_driver``."""

from __future__ import annotations

from dataclasses import dataclass

from xray_opt.errors import ConfigError
from xray_opt.launchers.keeper import Share


@dataclass(frozen=True)
class Nodes:
    """The living nodes of a cluster: cores and GPUs of each, and on how many machines they are."""

    resources: tuple[tuple[float, float], ...]
    machines: int = 1

    def cpu_share(self, count: int) -> Share:
        """As many whole cores as each of ``count`` slots can have.

        Raises:
            ConfigError: there are fewer cores than slots.
        """
        most = int(max((cpus for cpus, _ in self.resources), default=0))
        for cores in range(most, 0, -1):
            if sum(int(cpus // cores) for cpus, _ in self.resources) >= count:
                return Share(float(cores))
        total = sum(int(cpus) for cpus, _ in self.resources)
        raise ConfigError(f"--workers {count} need a core each: the Ray cluster has {total} on {self.shown}")

    def gpu_slots(self, per_gpu: int) -> tuple[int, Share]:
        """Number of slots, ``per_gpu`` on each GPU, and what each gets.

        Raises:
            ConfigError: there is no GPU, or there are too few cores for so many slots.
        """
        count = sum(int(gpus) for _, gpus in self.resources) * per_gpu
        if not count:
            raise ConfigError(f"--gpus: the Ray cluster has no GPU on {self.shown}; use --workers instead")
        if any(cpus < int(gpus) * per_gpu for cpus, gpus in self.resources):
            raise ConfigError(f"--per-gpu {per_gpu} needs a core a slot, and a node of the Ray cluster has too few")
        cores = min(int(cpus // (int(gpus) * per_gpu)) for cpus, gpus in self.resources if int(gpus))
        return count, Share(float(cores), 1 / per_gpu, per_gpu)

    @property
    def shown(self) -> str:
        """How many there are, in words."""
        return f"{len(self.resources)} node{'s' * (len(self.resources) != 1)}"
