"""Where the time of one training step goes: kernels by kind, the device's busy share, bytes against the floor.

    python benchmarks/profile_step.py --device cuda --size 384 --batch 16 --ways eager graphs --out results/profile.json

The Trainer's own step on one resident batch (folded LoRA, BatchNorm frozen), timed first and then recorded by
torch.profiler. On CUDA the rows are kernels, on the CPU PyTorch's operators. The device's busy share is the kernels'
own time over the step's wall time. Runs from a bare checkout with torch, torchvision, peft, safetensors, numpy, pillow,
scikit-learn and pyyaml.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections.abc import Callable
from typing import Any

import torch
from measure import best_precision, machine, parser
from step import PRECISIONS, WAYS, make_step, timed
from torch.profiler import ProfilerActivity, profile

from xray_opt.adapter import attach
from xray_opt.backbone import random_base, resolve_device
from xray_opt.config import Config, override
from xray_opt.errors import XrayError

#: MB an image that a step moves at least (bf16, 384 px; docs/performance.md): as it is done, and with all fused.
MOVED, FLOOR = 1534, 455
#: Kind → what its kernels' and operators' names have; the first that fits.
KINDS = {
    "convolution": r"conv|fprop|dgrad|wgrad|cudnn",
    "matrix product (fold, head)": r"gemm|gemv|nvjet|cutlass|addmm|aten::mm|linear",
    "optimizer": r"adam",
    "norm": r"batch_norm|bn_",
    "copy, fill": r"memcpy|memset|copy|fill|zero|nchw|nhwc|cat|clone|contiguous|_to\b|index",
    "reduce": r"reduce|aten::sum|mean|pool",
    "elementwise": r"elementwise|vectorized|multi_tensor|foreach|silu|sigmoid|mul|add|div|sub|neg|bernoulli|dropout",
}


def main() -> None:
    """Measure, print, write."""
    arguments = parser(__doc__)
    arguments.add_argument("--size", type=int, default=384)
    arguments.add_argument("--batch", type=int, default=16)
    arguments.add_argument("--rank", type=int, default=8)
    arguments.add_argument("--precision", choices=PRECISIONS, help="default: bf16 where the device computes in it")
    arguments.add_argument("--ways", nargs="+", choices=WAYS, default=["eager"])
    arguments.add_argument("--device", default="cpu")
    args = arguments.parse_args()
    if args.toy:
        args.size, args.batch, args.rank, args.rounds = 32, 2, 2, 2
        print("toy size: these figures say nothing about speed")
    device = resolve_device(args.device)
    # Emulated, a convolution is taken apart into a million operators, and the profiler keeps them all.
    args.precision = args.precision or best_precision(args.device)
    found: dict[str, dict[str, Any]] = {}
    for way in args.ways:
        try:
            if way in ("eager", "compile") or on_cuda(device):
                found[way] = one_way(args, device, way)
        except XrayError as error:
            print(f"{way}: {error}", flush=True)
    copying = copy_rate(device) if on_cuda(device) else None
    for way, result in found.items():
        print("\n".join(shown(args, way, result, copying)))
    if args.out:
        arguments_ = {key: str(value) for key, value in vars(args).items()}
        document = {"script": "profile_step.py", "arguments": arguments_, "machine": machine()}
        document |= {"ways": found, "copy_bytes_s": copying}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        print(f"\nraw: {args.out}")


def on_cuda(device: torch.device) -> bool:
    """Whether the device runs kernels of its own."""
    return device.type == "cuda"


def one_way(args: argparse.Namespace, device: torch.device, way: str) -> dict[str, Any]:
    """Median seconds of a step without the profiler, and what the profiler saw of as many."""
    settings = {"lora.rank": args.rank, "image.size": args.size, "model.batch_norm": "frozen"}
    config = override(Config(), settings | WAYS[way])
    network = attach(random_base(0), config).to(device, memory_format=torch.channels_last)
    step = make_step(network, config, args.batch, PRECISIONS[args.precision], device, False)
    for _ in range(3):
        step()
    seconds = statistics.median(timed(step, device) for _ in range(args.rounds))
    return {"seconds": seconds, "img_s": args.batch / seconds, "rows": recorded(step, device, args.rounds)}


def recorded(step: Callable[[], None], device: torch.device, steps: int) -> list[dict[str, Any]]:
    """Name, kind, calls and microseconds a step of each kernel or operator, the longest first."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_cuda(device)
    with profile(activities=activities) as seen:
        for _ in range(steps):
            step()
        if on_cuda(device):
            torch.cuda.synchronize(device)
    rows = []
    for event in seen.key_averages():
        if (event.device_type == torch.autograd.DeviceType.CUDA) != on_cuda(device):
            continue
        spent = event.self_device_time_total if on_cuda(device) else event.self_cpu_time_total
        row = {"name": event.key, "kind": kind_of(event.key), "calls": event.count / steps, "us": spent / steps}
        rows.append(row)
    return sorted(rows, key=lambda row: -row["us"])


def kind_of(name: str) -> str:
    """Which kind of work a kernel or operator does, by its name."""
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, name, re.IGNORECASE)), "other")


def copy_rate(device: torch.device) -> float:
    """Bytes a second, read and written, of a plain copy on the device."""
    source = torch.empty(2**30, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / min(timed(lambda: target.copy_(source), device) for _ in range(10))


def shown(args: argparse.Namespace, way: str, result: dict[str, Any], copying: float | None) -> list[str]:
    """The profile as text of at most 80 columns."""
    rows, total = result["rows"], sum(row["us"] for row in result["rows"])
    calls = sum(row["calls"] for row in rows)
    lines = ["", f"{way}: {args.size} px, batch {args.batch}, {args.precision}, {machine()['device']}"]
    lines += [
        f"a step: {1000 * result['seconds']:.1f} ms, {result['img_s']:.0f} img/s, {calls:.0f} kernels or operators"
    ]
    if copying:
        busy = total / 1e6 / result["seconds"]
        moved = MOVED * 1e6 * result["img_s"] / copying
        lines += [f"device busy {busy:.0%} of the step; the card copies {copying / 1e12:.2f} TB/s"]
        lines += [f"{MOVED} MB an image are {moved:.0%} of that; all fused ({FLOOR} MB): {moved * FLOOR / MOVED:.0%}"]
    lines += ["", f"{'kind':<34}{'ms a step':>12}{'share':>9}{'calls':>10}"]
    for kind in [*KINDS, "other"]:
        some = [row for row in rows if row["kind"] == kind]
        spent = sum(row["us"] for row in some)
        lines += [f"{kind:<34}{spent / 1000:>12.2f}{spent / total:>9.1%}{sum(row['calls'] for row in some):>10.0f}"]
    lines += ["", f"{'longest':<56}{'ms':>8}{'calls':>8}"]
    lines += [f"{row['name'][:55]:<56}{row['us'] / 1000:>8.2f}{row['calls']:>8.0f}" for row in rows[:12]]
    return lines


if __name__ == "__main__":
    sys.exit(main())
