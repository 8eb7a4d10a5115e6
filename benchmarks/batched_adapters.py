"""Several adapters in one batched forward over the shared frozen base, against their own steps one after another.

    python benchmarks/batched_adapters.py --sizes 64/16 128/16 224/8 --out results/batched-adapters.json

A study for docs/decisions.md: would a process train M trials faster together than the engine trains them in turn? Each
adapter has its own films, rank, optimizer and head; BatchNorm is frozen, as otherwise trials would share statistics.
First every design is held against separate networks: logits and each adapter's gradients. Then M engine steps one
after another and one step of each design take turns on random images. The three designs are in ``stacked.py``.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence

import torch
from measure import Column, Rounds, Thunk, Values, finish, interleave, parser
from stacked import DESIGNS, own_weights, stack
from step import PRECISIONS, size_and_batch
from torch import Tensor, nn
from twin import lively_base

from xray_opt.adapter import attach, logits, set_mode, without_peft
from xray_opt.adapter.folded_conv import FoldedConv
from xray_opt.backbone import Base
from xray_opt.config import Config, override
from xray_opt.loss import FocalLoss

Step = Callable[[], None]
IN_TURN = "engine, one after another"
#: Largest relative difference of an adapter's gradients (G9).
NEAR = 1e-4


def main() -> None:
    """Check, measure, print, write."""
    args = options()
    base = lively_base()
    for design in DESIGNS:
        far = difference(base, design)
        print(f"{design}: gradients within {far:.1e} of separate training's", flush=True)
        if not far < NEAR:
            raise SystemExit(f"{design} does not compute what separate training computes: nothing is measured")
    sections: dict[str, Rounds] = {}
    columns: dict[str, list[Column]] = {}
    for precision in args.precision:
        for size, batch in args.sizes:
            for many in args.adapters:
                name = f"{precision}, {size} px, batch {batch}, {many} adapters"
                sections[name] = interleave(thunks(base, precision, size, batch, many, args.ranks), args.rounds)
                columns[name] = [Column("s", f"seconds for a step of all: {name}", 3)]
                print(f"measured: {name}", file=sys.stderr, flush=True)
    args.sizes = [f"{size}/{batch}" for size, batch in args.sizes]
    finish(args, sections, columns)


def options() -> argparse.Namespace:
    """The command line."""
    made = parser(__doc__)
    made.add_argument("--sizes", nargs="+", type=size_and_batch, default=[(64, 16)], metavar="PX/BATCH")
    made.add_argument("--adapters", nargs="+", type=int, default=[1, 2, 4], help="trials at once (default: 1 2 4)")
    made.add_argument("--ranks", nargs="+", type=int, default=[8], help="of the adapters, in turn (default: 8)")
    made.add_argument("--precision", nargs="+", choices=PRECISIONS, default=["fp32"])
    args = made.parse_args()
    if args.toy:
        args.sizes, args.adapters, args.rounds = [(32, 2)], [2], 1
    return args


def difference(base: Base, design: str, size: int = 32, films: int = 3) -> float:
    """Largest relative difference, over logits and every gradient of three adapters of different ranks and alphas."""
    plain = {"image.size": size, "model.dropout": 0.0, "model.stochastic_depth": 0.0}
    chosen = [{"lora.rank": rank, "lora.alpha": 4.0 * rank**0.5, "training.seed": rank} for rank in (2, 8, 3)]
    networks = [moved(attach(base, override(Config(), plain | one)), 10 + n) for n, one in enumerate(chosen)]
    together = stack(base, override(Config(), plain), networks, design)
    images = torch.randn(len(networks) * films, 3, size, size, generator=torch.Generator().manual_seed(0))
    images = images.contiguous(memory_format=torch.channels_last)
    for network in (together, *networks):
        set_mode(network, True)
    answer = logits(together, images)
    answer.square().sum().backward()
    worst = 0.0
    for place, (network, some) in enumerate(zip(networks, images.chunk(len(networks)), strict=True)):
        own = logits(network, some)
        own.square().sum().backward()
        pairs = [(answer.detach().chunk(len(networks))[place], own.detach()), *gradients(together, network, place)]
        worst = max(worst, *(float((one - other).norm() / other.norm()) for one, other in pairs))
    return worst


@torch.no_grad()
def moved(network: nn.Module, seed: int) -> nn.Module:
    """``network`` as training leaves it: every B is zero at the start, and so would be every gradient of A."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    return network


def gradients(together: nn.Module, network: nn.Module, adapter: int) -> list[tuple[Tensor, Tensor]]:
    """Every gradient of one adapter and its head: in the stacked network, in its own."""
    pairs = []
    for name, module in without_peft(network).named_modules():
        if isinstance(module, FoldedConv):
            layer, parts = together.get_submodule(name), module.parts(torch.float32)
            down, up = parts.down.grad.permute(0, 2, 3, 1).flatten(1), parts.up.grad.flatten(1).T
            pairs += [(layer.down.grad[adapter, : len(down)], down), (layer.up.grad[adapter, : len(up)], up)]
    heads, head = together.classifier[1], without_peft(network).classifier[1]
    return [*pairs, (heads.weight.grad[adapter], head.weight.grad), (heads.bias.grad[adapter], head.bias.grad)]


def thunks(base: Base, precision: str, size: int, batch: int, many: int, ranks: Sequence[int]) -> dict[str, Thunk]:
    """One step of each of ``many`` adapters: in turn, and in every design."""
    settings = [{"image.size": size, "lora.rank": ranks[n % len(ranks)], "training.seed": n} for n in range(many)]
    configs = [override(Config(), chosen) for chosen in settings]
    networks = [attach(base, config).to(memory_format=torch.channels_last) for config in configs]
    kind = PRECISIONS[precision]
    made = {
        design: [stacked_step(stack(base, configs[0], networks, design), size, batch, kind, many)] for design in DESIGNS
    }
    alone = [own_step(network, size, batch, kind) for network in networks]
    return {name: timed(steps) for name, steps in ({IN_TURN: alone} | made).items()}


def timed(steps: list[Step]) -> Thunk:
    """Seconds that all ``steps`` take."""

    def thunk() -> Values:
        began = time.perf_counter()
        for step in steps:
            step()
        return {"s": time.perf_counter() - began}

    return thunk


def own_step(network: nn.Module, size: int, batch: int, precision: torch.dtype) -> Step:
    """One optimizer step of one network."""
    weights = [parameter for parameter in network.parameters() if parameter.requires_grad]
    return make_step(network, weights, lambda: None, 1, size, batch, precision)


def stacked_step(network: nn.Module, size: int, batch: int, precision: torch.dtype, many: int) -> Step:
    """One optimizer step of every adapter, each on films of its own."""
    owned = [part for adapter in range(many) for part in own_weights(network, adapter)]

    def take() -> None:
        for part in owned:
            part.take_gradient()

    return make_step(network, [part.weight for part in owned], take, many, size, batch, precision)


def make_step(
    network: nn.Module,
    weights: list[nn.Parameter],
    take: Step,
    many: int,
    size: int,
    batch: int,
    precision: torch.dtype,
) -> Step:
    """Forward, backward and AdamW on films that stay the same; ``take`` brings the gradients to the ``weights``."""
    set_mode(network, True)
    optimizer = torch.optim.AdamW(weights, lr=1e-4, fused=True)
    loss = FocalLoss(0.25, 2.0)
    images = torch.randn(many * batch, 3, size, size).contiguous(memory_format=torch.channels_last)
    targets = (torch.arange(many * batch) % 2).float()

    def step() -> None:
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            answer = logits(network, images)
        losses = map(loss, answer.float().chunk(many), targets.chunk(many))
        torch.stack(list(losses)).sum().backward()
        take()
        optimizer.step()
        network.zero_grad()

    return step


if __name__ == "__main__":
    main()
