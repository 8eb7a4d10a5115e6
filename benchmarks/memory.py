"""Memory of one training step: what the backward pass keeps an image, and on CUDA the measured peak (G10).

    python benchmarks/memory.py --out results/memory.json
    python benchmarks/memory.py --device cuda --out results/memory-gpu.json

Everywhere: bytes that autograd saves for the backward pass, from its own hooks; what a batch of two saves beyond a
batch of one is an image's share, the rest (folded weights) is a step's. That estimates the activations: a step also
holds weights, gradients, and what is in the making. On CUDA: peak memory of whole steps for each micro-batch, and which
micro-batch the automatic choice comes to in cards of 4, 8 and 16 GB, simulated by a limit on a process.
Runs from a bare checkout with torch, torchvision, peft, safetensors, numpy, pillow, scikit-learn and pyyaml.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from measure import HERE, Absent, Column, Rounds, Thunk, Values, child, finish, interleave, parser
from step import PRECISIONS, VARIANTS, plain_peft
from torch import Tensor, nn

from xray_opt.adapter import attach, logits, set_mode
from xray_opt.backbone import random_base
from xray_opt.config import Config, override

MICRO_BATCHES = (1, 2, 4, 8, 16, 32, 64)
BUDGETS = (4, 8, 16)
#: Measured on CUDA: variant of ``step.py`` and way of the step.
MEASURED = {
    "plain peft": ("peft", "eager"),
    "folded, BatchNorm frozen": ("folded, BatchNorm frozen", "eager"),
    "… as a CUDA graph": ("folded, BatchNorm frozen", "graphs"),
}


def main() -> None:
    """Measure, print, write."""
    arguments = parser(__doc__)
    arguments.add_argument("--size", type=int, default=384, help="side in pixels (default: 384)")
    arguments.add_argument("--rank", type=int, default=8, help="rank of the adapter (default: 8)")
    arguments.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    arguments.add_argument("--micro-batches", nargs="+", type=int, default=MICRO_BATCHES)
    args = arguments.parse_args()
    if args.toy:
        args.size, args.rank, args.micro_batches = 64, 2, (1, 2)
    sections: dict[str, Rounds] = {"saved": saved(args.size, args.rank)}
    columns = {
        "saved": [
            Column("mib", f"saved for backward at {args.size} px, MiB an image"),
            Column("step_mib", "saved for backward, MiB a step besides"),
            Column("gib16", "saved for backward at batch 16, GiB"),
        ]
    }
    sections["peak"] = interleave(peaks(args), 1, {})
    shown = args.micro_batches if args.device != "cpu" else ()
    columns["peak"] = [Column(f"b{films}", f"peak MiB of a step of {films} films", 0) for films in shown]
    columns["peak"] += [Column("reserved16", "peak MiB that the process reserved, 16 films", 0)]
    sections["automatic"] = interleave(choices(args), 1, {})
    columns["automatic"] = [Column("micro_batch", "micro-batch the automatic choice comes to, from 64", 0)]
    finish(args, sections, columns)


def saved(size: int, rank: int) -> Rounds:
    """Every variant of ``step.py`` in both precisions, on the CPU."""
    base, found = random_base(0), Rounds()
    for name, (ours, norm) in VARIANTS.items():
        config = override(Config(), {"lora.rank": rank, "image.size": size, "model.batch_norm": norm})
        network = (attach if ours else plain_peft)(base, config).to(memory_format=torch.channels_last)
        set_mode(network, True)
        for precision, kind in PRECISIONS.items():
            one, two = (saved_bytes(network, films, size, kind) / 2**20 for films in (1, 2))
            values = {"mib": two - one, "step_mib": 2 * one - two, "gib16": (16 * (two - one) + 2 * one - two) / 1024}
            found.samples[f"{name}, {precision}"] = [values]
    return found


def saved_bytes(network: nn.Module, films: int, size: int, precision: torch.dtype) -> int:
    """Bytes of distinct memory that a forward pass keeps for the backward pass, weights of the network left out."""
    own = {value.untyped_storage().data_ptr() for value in (*network.parameters(), *network.buffers())}
    kept: dict[int, int] = {}
    alive: list[Tensor] = []

    def pack(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(value)  # its address must not be given to another
        return value

    images = torch.randn(films, 3, size, size).contiguous(memory_format=torch.channels_last)
    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value)
    with hooks, torch.autocast("cpu", precision, enabled=precision != torch.float32):
        answer = logits(network, images)
    assert answer.requires_grad
    return sum(kept.values())


def peaks(args: Any) -> dict[str, Thunk]:
    """Each variant in a process of its own, from the smallest micro-batch to the largest that fits."""
    job = {"size": args.size, "rank": args.rank, "device": args.device, "batches": list(args.micro_batches)}
    return {name: partial(measured, job, variant, way) for name, (variant, way) in MEASURED.items()}


def choices(args: Any) -> dict[str, Thunk]:
    """The Trainer's step, asked for 64 films at once, within each budget."""
    job = {"size": args.size, "rank": args.rank, "device": args.device}
    found: dict[str, Thunk] = {}
    for budget in BUDGETS:
        for name, (variant, way) in MEASURED.items():
            found[f"{budget} GB: {name}"] = partial(measured, job | {"budget": budget * 10**9}, variant, way)
    return found


def measured(job: dict[str, Any], variant: str, way: str) -> Values:
    """What the child process tells; Absent without CUDA."""
    if not torch.cuda.is_available() or job["device"] == "cpu":
        raise Absent("not measured on a CPU" if job["device"] == "cpu" else "no CUDA GPU here")
    return child(HERE / "memory_child.py", job | {"variant": variant, "way": way})


if __name__ == "__main__":
    main()
