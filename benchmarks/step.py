"""Seconds of one training step: plain PEFT against the folded adapter, BatchNorm trained and frozen.

    python benchmarks/step.py --sizes 64/16 128/16 224/8 --rounds 5 --json step.json
    python benchmarks/step.py --sizes 384/16 384/64 --precision bf16 --ways eager graphs compile --json step.json

Random weights, random images, one process; our variants by the Trainer's own step. The variants take turns within a
round, so other load on the machine hits all of them: read the ratios. Runs from a bare checkout with torch,
torchvision, peft, safetensors, numpy, pillow, scikit-learn and pyyaml.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import nn
from twin import plain_peft

from xray_opt.adapter import attach, set_mode
from xray_opt.backbone import Base, random_base, resolve_device
from xray_opt.config import Config, override
from xray_opt.errors import XrayError
from xray_opt.trainer.choice import choose
from xray_opt.trainer.step import Stepper
from xray_opt.trainer.trainer import make_optimizer

#: Variant → whether it is ours, and BatchNorm's mode. Ratios are to the first.
VARIANTS = {
    "peft": (False, "train"),
    "peft, BatchNorm frozen": (False, "frozen"),
    "folded": (True, "train"),
    "folded, BatchNorm frozen": (True, "frozen"),
}
#: How our variants do the step: settings of the Trainer.
WAYS = {
    "eager": {},
    "graphs": {"training.cuda_graphs": True},
    "compile": {"training.compile": True},
    "both": {"training.cuda_graphs": True, "training.compile": True},
}
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Timing:
    """One variant at one size: seconds a step and what follows from them; memory on CUDA only."""

    variant: str
    size: int
    batch: int
    precision: str
    device: str
    way: str
    median: float
    fastest: float
    slowest: float
    ratio: float
    images_per_second: float
    peak_mib: float | None


def main(arguments: list[str] | None = None) -> None:
    """Measure, print a table, write the JSON."""
    options = parser().parse_args(arguments)
    device = resolve_device(options.device)
    base = random_base(0)
    timings = []
    for precision in options.precision:
        for size, batch in options.sizes:
            found = measure(base, device, precision, size, batch, options)
            print(table(found), flush=True)
            timings += found
    if options.json:
        options.json.write_text(json.dumps([asdict(timing) for timing in timings], indent=2) + "\n")


def parser() -> argparse.ArgumentParser:
    """The options."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--sizes", nargs="+", type=size_and_batch, default=[(64, 16), (128, 16)], metavar="PX/BATCH")
    options.add_argument("--rounds", type=int, default=5, help="Timed steps a variant, after two that are not timed.")
    options.add_argument("--precision", nargs="+", choices=PRECISIONS, default=["fp32"])
    options.add_argument("--rank", type=int, default=8)
    options.add_argument("--stages", choices=["early", "late", "all"], default="all")
    options.add_argument("--device", default="auto")
    options.add_argument("--ways", nargs="+", choices=WAYS, default=["eager"], help="our steps; graphs on CUDA only")
    options.add_argument("--json", type=Path, metavar="FILE")
    return options


def size_and_batch(text: str) -> tuple[int, int]:
    """``128/16`` as (128, 16)."""
    size, _, batch = text.partition("/")
    return int(size), int(batch)


def measure(
    base: Base, device: torch.device, precision: str, size: int, batch: int, options: argparse.Namespace
) -> list[Timing]:
    """Every variant at one size, taking turns."""
    settings = {"lora.rank": options.rank, "lora.stages": options.stages, "image.size": size}
    steps, peaks = {}, {}
    for name, (ours, norm, way) in contenders(options.ways, device).items():
        config = override(Config(), settings | {"model.batch_norm": norm} | WAYS[way])
        before = allocated(device)
        network = (attach if ours else plain_peft)(base, config).to(device, memory_format=torch.channels_last)
        step = make_step(network, config, batch, PRECISIONS[precision], device, ours and norm == "train")
        try:
            peaks[name] = peak_of(step, device, before)
        except XrayError as error:
            print(f"{name}: {error}", flush=True)
            continue
        step()
        steps[name] = step
    seconds = {name: [] for name in steps}
    for _ in range(options.rounds):
        for name, step in steps.items():
            seconds[name].append(timed(step, device))
    first = statistics.median(seconds["peft"])
    return [
        Timing(
            variant=name,
            size=size,
            batch=batch,
            precision=precision,
            device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            way=contenders(options.ways, device)[name][2],
            median=(median := statistics.median(taken)),
            fastest=min(taken),
            slowest=max(taken),
            ratio=first / median,
            images_per_second=batch / median,
            peak_mib=peaks[name],
        )
        for name, taken in seconds.items()
    ]


def contenders(ways: list[str], device: torch.device) -> dict[str, tuple[bool, str, str]]:
    """Name → whether it is ours, BatchNorm's mode, and the way of the step."""
    found = {}
    for name, (ours, norm) in VARIANTS.items():
        for way in ways if ours else ["eager"]:
            if "cuda_graphs" not in str(WAYS[way]) or device.type == "cuda":
                found[name if way == "eager" else f"{name}, {way}"] = ours, norm, way
    return found


def make_step(
    network: nn.Module, config: Config, batch: int, precision: torch.dtype, device: torch.device, statistics: bool
) -> Callable[[], None]:
    """One optimizer step on a batch that stays the same: forward, backward, AdamW."""
    set_mode(network, True)
    gradients = choose(network, config, precision, device, "random weights", print)
    stepper = Stepper(gradients, make_optimizer(network, config.optimizer), batch, statistics, print)
    size = config.image.size
    images = torch.randn(batch, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
    targets = (torch.arange(batch, device=device) % 2).float()

    def step() -> None:
        stepper.step(images, targets)

    return step


def timed(step: Callable[[], None], device: torch.device) -> float:
    """Seconds of one step, to the end of its last kernel."""
    if device.type != "cuda":
        began = time.perf_counter()
        step()
        if device.type == "mps":
            torch.mps.synchronize()
        return time.perf_counter() - began
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    begin.record()
    step()
    end.record()
    torch.cuda.synchronize(device)
    return begin.elapsed_time(end) / 1000


def allocated(device: torch.device) -> int:
    """Bytes of tensors on a CUDA device, 0 elsewhere."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def peak_of(step: Callable[[], None], device: torch.device, before: int) -> float | None:
    """MiB of network, optimizer and the first step at most, beyond what lay there ``before``; CUDA only."""
    if device.type != "cuda":
        step()
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    step()
    torch.cuda.synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


def table(timings: list[Timing]) -> str:
    """The timings of one size as text."""
    head = timings[0]
    lines = [f"{head.size} px, batch {head.batch}, {head.precision}, {head.device}"]
    for timing in timings:
        peak = "" if timing.peak_mib is None else f"  peak {timing.peak_mib:7.0f} MiB"
        spread = f"{timing.fastest:.3f}–{timing.slowest:.3f}"
        taken = f"{timing.median:7.3f} s ({spread})  ratio {timing.ratio:.2f}"
        lines.append(f"  {timing.variant:34} {taken}  {timing.images_per_second:.1f} img/s{peak}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
