"""Samples CPU, memory and GPU use in a thread of its own and hands each sample on; it never disturbs training."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import psutil
import pynvml

log = logging.getLogger(__name__)

MEGABYTE = 1e6


class SystemSampler:
    """Calls ``send(sample, index)`` every ``interval`` seconds, at once first, from ``start`` to ``stop``.

    Names are those of MLflow's own system metrics (``system/cpu_utilization_percentage``, …), sizes are in MB.
    A sample or a ``send`` that fails is logged as a warning, once; sampling goes on.
    """

    def __init__(self, send: Callable[[dict[str, float], int], None], interval: float) -> None:
        self._send = send
        self._interval = interval
        self._ended = threading.Event()
        self._warned = False
        self._thread = threading.Thread(target=self._loop, name="system-metrics", daemon=True)

    def start(self) -> None:
        """Begin to sample; with an interval of 0 nothing is sampled."""
        if self._interval > 0:
            self._thread.start()

    def stop(self, patience: float = 2.0) -> None:
        """End sampling; a ``send`` that hangs longer than ``patience`` seconds is left behind (a daemon thread)."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(patience)

    def _loop(self) -> None:
        with Gpus() as gpus:
            psutil.cpu_percent(interval=0.1)
            index = 0
            while True:
                self._try(gpus, index)
                index += 1
                if self._ended.wait(self._interval):
                    return

    def _try(self, gpus: Gpus, index: int) -> None:
        try:
            self._send(machine() | gpus.sample(), index)
        except Exception as error:
            if not self._warned:
                log.warning("a sample of system metrics was lost (further ones are not reported): %s", error)
            self._warned = True


def machine() -> dict[str, float]:
    """CPU use since the last call, and memory in use."""
    memory = psutil.virtual_memory()
    return {
        "system/cpu_utilization_percentage": psutil.cpu_percent(),
        "system/system_memory_usage_megabytes": memory.used / MEGABYTE,
        "system/system_memory_usage_percentage": memory.percent,
    }


class Gpus:
    """NVIDIA GPUs as NVML shows them; none where it is missing. A context manager, as NVML wants to be shut down."""

    def __init__(self) -> None:
        self._handles: list[object] = []
        self._open = False

    def __enter__(self) -> Gpus:
        try:
            pynvml.nvmlInit()
            self._open = True
            self._handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        except pynvml.NVMLError as error:
            log.debug("no GPU metrics: %s", error)
        return self

    def __exit__(self, *_: object) -> None:
        if self._open:
            pynvml.nvmlShutdown()

    def sample(self) -> dict[str, float]:
        """Use and memory of each GPU."""
        values = {}
        for number, handle in enumerate(self._handles):
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
            values[f"system/gpu_{number}_utilization_percentage"] = float(
                pynvml.nvmlDeviceGetUtilizationRates(handle).gpu
            )
            values[f"system/gpu_{number}_memory_usage_megabytes"] = memory.used / MEGABYTE
            values[f"system/gpu_{number}_memory_usage_percentage"] = 100 * memory.used / memory.total
        return values
