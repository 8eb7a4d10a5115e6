"""Seconds of one training step: plain PEFT against the folded adapter, BatchNorm trained and frozen.

    python benchmarks/step.py --sizes 64/16 128/16 224/8 --rounds 5 --json step.json

Random weights, random images, one process. The variants take turns within a round, so other load on the machine hits
all of them: read the ratios. Runs from a bare checkout with torch, torchvision, peft and numpy.
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

from xray_opt.adapter import attach, logits, set_mode
from xray_opt.backbone import Base, random_base, resolve_device
from xray_opt.config import Config, override
from xray_opt.loss import FocalLoss

#: Variant → whether it is ours, and BatchNorm's mode. Ratios are to the first.
VARIANTS = {
    "peft": (False, "train"),
    "peft, BatchNorm frozen": (False, "frozen"),
    "folded": (True, "train"),
    "folded, BatchNorm frozen": (True, "frozen"),
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
    graph: bool
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
    options.add_argument("--rounds", type=int, default=5, help="Timed steps a variant, after one that is not timed.")
    options.add_argument("--precision", nargs="+", choices=PRECISIONS, default=["fp32"])
    options.add_argument("--rank", type=int, default=8)
    options.add_argument("--stages", choices=["early", "late", "all"], default="all")
    options.add_argument("--device", default="auto")
    options.add_argument("--graphs", action="store_true", help="CUDA: replay each step as one graph.")
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
    steps, peaks, seconds = {}, {}, {name: [] for name in VARIANTS}
    graph = options.graphs and device.type == "cuda"
    for name, (ours, norm) in VARIANTS.items():
        config = override(Config(), settings | {"model.batch_norm": norm})
        before = allocated(device)
        network = (attach if ours else plain_peft)(base, config).to(device, memory_format=torch.channels_last)
        step = make_step(network, size, batch, PRECISIONS[precision], device, graph)
        step()  # makes the optimizer's state
        peaks[name] = peak_of(step, device, before)
        steps[name] = capture(step, device) if graph else step
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
            graph=graph,
            median=(median := statistics.median(taken)),
            fastest=min(taken),
            slowest=max(taken),
            ratio=first / median,
            images_per_second=batch / median,
            peak_mib=peaks[name],
        )
        for name, taken in seconds.items()
    ]


def make_step(
    network: nn.Module, size: int, batch: int, precision: torch.dtype, device: torch.device, graph: bool
) -> Callable[[], None]:
    """One optimizer step on a batch that stays the same: forward, backward, AdamW."""
    set_mode(network, True)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True, capturable=graph)
    loss = FocalLoss(0.25, 2.0)
    images = torch.randn(batch, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
    targets = (torch.arange(batch, device=device) % 2).float()

    def step() -> None:
        # A graph must not find casts of weights that were made outside of it.
        with torch.autocast(device.type, precision, enabled=precision != torch.float32, cache_enabled=not graph):
            answer = logits(network, images)
        loss(answer.float(), targets).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def capture(step: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """``step`` as one CUDA graph: warm-up on a side stream, then capture (PyTorch's notes on CUDA semantics)."""
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


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
    """MiB of network, optimizer and one step at most, beyond the bytes that lay there ``before``; CUDA only."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    step()
    torch.cuda.synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


def table(timings: list[Timing]) -> str:
    """The timings of one size as text."""
    head = timings[0]
    where = head.device + (", CUDA graph" if head.graph else "")
    lines = [f"{head.size} px, batch {head.batch}, {head.precision}, {where}"]
    for timing in timings:
        peak = "" if timing.peak_mib is None else f"  peak {timing.peak_mib:7.0f} MiB"
        spread = f"{timing.fastest:.3f}–{timing.slowest:.3f}"
        lines.append(f"  {timing.variant:26} {timing.median:7.3f} s ({spread})  ratio {timing.ratio:.2f}{peak}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
