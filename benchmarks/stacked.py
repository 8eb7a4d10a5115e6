"""Several LoRA adapters of one frozen base in one network: the layers of ``batched_adapters.py``; a study, no product.

Films come adapter after adapter, (M·B, 3, H, W). What is frozen sees one large batch. A convolution with adapters is
computed in one of three ways, all with the gradient of A and B by way of the low rank:

- ``low-rank``: one convolution with the shared weight, and what each adapter adds to its own films;
- ``folded, bmm``: a weight for each adapter, 1×1 convolutions as one batched matrix product, 3×3 one after another;
- ``folded, grouped``: a weight for each adapter, all in one grouped convolution with its films side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from xray_opt.adapter import attach, without_peft
from xray_opt.adapter.folded import computed_in
from xray_opt.adapter.folded_conv import FoldedConv
from xray_opt.backbone import Base
from xray_opt.config import Config


class Stacked(nn.Module):
    """M adapters on one frozen convolution with its norm folded in; (M·B, I, H, W) → (M·B, O, H', W').

    Ranks are padded with zeros to the largest: their gradient is zero, so they stay zero.

    Attributes:
        down: (M, R, h w I) every A, in the order of channels_last.
        up: (M, R, O) every B, turned over.
        factor: (M, 1, O) what a column of ``B A`` is multiplied with.
        matrix: (O, h w I) weight of the base with its norm.
    """

    matrix: Tensor
    shift: Tensor
    factor: Tensor

    def __init__(self, layers: Sequence[FoldedConv]) -> None:
        super().__init__()
        parts = [layer.parts(torch.float32) for layer in layers]
        self.many, self.place = len(parts), parts[0].place
        self.ranks = [len(part.down) for part in parts]
        self.kernel = tuple(parts[0].down.shape[2:])
        wide, narrow = parts[0].matrix.shape[1], parts[0].matrix.shape[0]
        down, up = torch.zeros(self.many, max(self.ranks), wide), torch.zeros(self.many, max(self.ranks), narrow)
        for place, part in enumerate(parts):
            down[place, : self.ranks[place]] = part.rows().detach()
            up[place, : self.ranks[place]] = part.up.detach().flatten(1).T
        self.down, self.up = nn.Parameter(down), nn.Parameter(up)
        self.register_buffer("matrix", parts[0].matrix.clone())
        self.register_buffer("shift", torch.zeros(narrow) if parts[0].shift is None else parts[0].shift.clone())
        self.register_buffer("factor", torch.stack([part.factor.T for part in parts]))
        self._cast: dict[torch.dtype, tuple[Tensor, Tensor]] = {}

    def forward(self, images: Tensor) -> Tensor:
        """Convolution, own adapter and norm of each film."""
        return _Convolution.apply(images, self.down, self.up, self)

    def constants(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(O, I, h, w) shared weight and (O,) shift, cast once."""
        if dtype not in self._cast:
            self._cast[dtype] = self.as_kernel(self.matrix).to(dtype), self.shift.to(dtype)
        return self._cast[dtype]

    def as_kernel(self, matrix: Tensor) -> Tensor:
        """(n, h w I) as (n, I, h, w), a view."""
        height, width = self.kernel
        return matrix.view(len(matrix), height, width, -1).permute(0, 3, 1, 2)

    def flat(self, images: Tensor) -> Tensor:
        """(M·B, C, H, W) in channels_last as (M, B H W, C), a view: an error where it would be a copy."""
        return images.permute(0, 2, 3, 1).view(self.many, -1, images.shape[1])

    def image(self, flat: Tensor, like: Tensor) -> Tensor:
        """(M, B H W, C) as (M·B, C, H, W) with the films and sides of ``like``."""
        films, _, height, width = like.shape
        return flat.view(films, height, width, -1).permute(0, 3, 1, 2)

    def narrow(self, images: Tensor, rows: Tensor) -> Tensor:
        """(M, B H' W', R): what every A makes of its own films."""
        if self.kernel == (1, 1):
            return torch.bmm(self.flat(images), rows.transpose(1, 2))
        own = zip(images.chunk(self.many), rows, strict=True)
        return self.flat(
            torch.cat([functional.conv2d(some, self.as_kernel(row), None, *self.place) for some, row in own])
        )

    def compute(self, images: Tensor, rows: Tensor, up: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The layer's output, and what its backward pass needs beside images and adapters."""
        raise NotImplementedError

    def to_images(self, gradient: Tensor, images: Tensor, kept: Sequence[Tensor]) -> Tensor:
        """Gradient of the images by way of the kept weights."""
        raise NotImplementedError


class LowRank(Stacked):
    """One shared convolution; each adapter adds its own part to its own films."""

    def compute(self, images: Tensor, rows: Tensor, up: Tensor) -> tuple[Tensor, list[Tensor]]:
        """As :class:`Stacked` says."""
        inner = self.narrow(images, rows)
        output = functional.conv2d(images, *self.constants(images.dtype), *self.place)
        self.flat(output).baddbmm_(inner, up)
        return output, [inner]

    def to_images(self, gradient: Tensor, images: Tensor, kept: Sequence[Tensor]) -> Tensor:
        """As :class:`Stacked` says; the adapters' own share is added by the caller."""
        return _to_images(gradient, images, self.constants(images.dtype)[0], self.place)


class FoldedBmm(Stacked):
    """A weight for each adapter; batched matrix products, and 3×3 convolutions one after another."""

    def compute(self, images: Tensor, rows: Tensor, up: Tensor) -> tuple[Tensor, list[Tensor]]:
        """As :class:`Stacked` says."""
        weights, shift = self.weights(images.dtype), self.constants(images.dtype)[1]
        if self.kernel == (1, 1):
            # Not a view: torchvision adds the block's input in place.
            output = _empty(images, weights.shape[1])
            torch.baddbmm(shift, self.flat(images), weights.transpose(1, 2), out=self.flat(output))
            return output, [weights]
        own = zip(images.chunk(self.many), weights, strict=True)
        parts = [functional.conv2d(some, self.as_kernel(weight), shift, *self.place) for some, weight in own]
        return torch.cat(parts), [weights]

    def weights(self, dtype: torch.dtype) -> Tensor:
        """(M, O, h w I), folded in fp32 and cast once."""
        return torch.baddbmm(self.matrix, (self.up * self.factor).transpose(1, 2), self.down).to(dtype)

    def to_images(self, gradient: Tensor, images: Tensor, kept: Sequence[Tensor]) -> Tensor:
        """As :class:`Stacked` says."""
        if self.kernel == (1, 1):
            return self.image(torch.bmm(self.flat(gradient), kept[0]), images)
        own = zip(gradient.chunk(self.many), images.chunk(self.many), kept[0], strict=True)
        return torch.cat([_to_images(some, films, self.as_kernel(w), self.place) for some, films, w in own])


class FoldedGrouped(FoldedBmm):
    """A weight for each adapter; one grouped convolution, for which the films' channels are put side by side."""

    def compute(self, images: Tensor, rows: Tensor, up: Tensor) -> tuple[Tensor, list[Tensor]]:
        """As :class:`Stacked` says."""
        weights = self.weights(images.dtype)
        kernels, shift = self.as_kernel(weights.flatten(0, 1)), self.constants(images.dtype)[1].repeat(self.many)
        output = functional.conv2d(self.beside(images), kernels, shift, *self.place, self.many)
        return self.behind(output), [weights]

    def to_images(self, gradient: Tensor, images: Tensor, kept: Sequence[Tensor]) -> Tensor:
        """As :class:`Stacked` says."""
        kernels = self.as_kernel(kept[0].flatten(0, 1))
        return self.behind(_to_images(self.beside(gradient), self.beside(images), kernels, self.place, self.many))

    def beside(self, images: Tensor) -> Tensor:
        """(M·B, C, H, W) as (B, M·C, H, W), a copy."""
        return torch.cat(images.chunk(self.many), dim=1)

    def behind(self, images: Tensor) -> Tensor:
        """(B, M·C, H, W) as (M·B, C, H, W), a copy."""
        return torch.cat(images.chunk(self.many, dim=1)).contiguous(memory_format=torch.channels_last)


DESIGNS: dict[str, type[Stacked]] = {
    "low-rank": LowRank,
    "folded, bmm": FoldedBmm,
    "folded, grouped": FoldedGrouped,
}


class _Convolution(torch.autograd.Function):
    """A stacked convolution; gradients of every A and B by way of the low rank."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, down: Tensor, up: Tensor, layer: Stacked) -> Tensor:
        dtype = computed_in(images)
        with torch.autocast(images.device.type, enabled=False):
            images = images.to(dtype)
            rows, columns = down.to(dtype), (up * layer.factor).to(dtype)
            output, kept = layer.compute(images, rows, columns)
        ctx.save_for_backward(images, rows, columns, *kept)
        ctx.layer = layer
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:
        images, rows, columns, *kept = ctx.saved_tensors
        layer: Stacked = ctx.layer
        shared = isinstance(layer, LowRank)
        with torch.autocast(images.device.type, enabled=False):
            gradient = gradient.contiguous(memory_format=torch.channels_last)
            inner = kept[0] if shared else layer.narrow(images, rows)
            back = torch.bmm(layer.flat(gradient), columns.transpose(1, 2))
            to_up = torch.bmm(inner.transpose(1, 2), layer.flat(gradient)).to(layer.up.dtype) * layer.factor
            to_images = layer.to_images(gradient, images, kept) if ctx.needs_input_grad[0] else None
            to_down = _to_down(layer, back, gradient, images, rows, to_images if shared else None)
        return to_images, to_down.to(layer.down.dtype), to_up, None


def _to_down(
    layer: Stacked, back: Tensor, gradient: Tensor, images: Tensor, rows: Tensor, to_images: Tensor | None
) -> Tensor:
    """Gradient of every A; adds the adapters' share to ``to_images`` where there is one."""
    if layer.kernel == (1, 1):
        if to_images is not None:
            layer.flat(to_images).baddbmm_(back, rows)
        return torch.bmm(back.transpose(1, 2), layer.flat(images))
    found = []
    wants = (to_images is not None, True, False)
    narrow, films = (whole.chunk(layer.many) for whole in (layer.image(back, gradient), images))
    for place, row in enumerate(rows):
        kernel = layer.as_kernel(row)
        share, to_kernel, _ = _backward(narrow[place], films[place], kernel, layer.place, 1, wants)
        found.append(to_kernel.permute(0, 2, 3, 1).flatten(1))
        if to_images is not None:
            to_images.chunk(layer.many)[place].add_(share)
    return torch.stack(found)


def _empty(images: Tensor, channels: int) -> Tensor:
    """For (M·B, ``channels``, H, W) in the order of channels_last."""
    size = (len(images), channels, *images.shape[2:])
    return torch.empty(size, dtype=images.dtype, device=images.device, memory_format=torch.channels_last)


def _to_images(gradient: Tensor, images: Tensor, kernel: Tensor, place: Any, groups: int = 1) -> Tensor:
    return _backward(gradient, images, kernel, place, groups, (True, False, False))[0]


def _backward(gradient: Tensor, images: Tensor, kernel: Tensor, place: Any, groups: int, wants: Any) -> list[Any]:
    rest = (*place, False, (0, 0), groups, wants)
    return list(torch.ops.aten.convolution_backward(gradient, images, kernel, None, *rest))


class Heads(nn.Module):
    """M heads of one logit; (M·B, F) → (M·B, 1)."""

    def __init__(self, heads: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.stack([head.weight.detach() for head in heads]))
        self.bias = nn.Parameter(torch.stack([head.bias.detach() for head in heads]))

    def forward(self, features: Tensor) -> Tensor:
        """Every film's logit by its own head."""
        own = features.view(len(self.bias), -1, features.shape[1])
        return torch.baddbmm(self.bias[:, :, None], own, self.weight.transpose(1, 2)).view(-1, 1)


def stack(base: Base, config: Config, networks: Sequence[nn.Module], design: str) -> nn.Module:
    """One network with the adapters and heads of ``networks``, which ``attach`` made on ``base`` with frozen norms."""
    host = without_peft(attach(base, config))
    inner = [without_peft(network) for network in networks]
    for name in [name for name, module in host.named_modules() if isinstance(module, FoldedConv)]:
        parent, _, last = name.rpartition(".")
        layer = DESIGNS[design]([network.get_submodule(name) for network in inner])
        setattr(host.get_submodule(parent), last, layer)
    host.classifier[1] = Heads([network.classifier[1] for network in inner])
    for name, parameter in host.named_parameters():
        parameter.requires_grad = name.endswith((".down", ".up")) or name.startswith("classifier")
    return host.to(memory_format=torch.channels_last)


@dataclass(frozen=True)
class Own:
    """One adapter's part of a stacked weight, for an optimizer of its own: contiguous, in the same memory, unpadded."""

    whole: nn.Parameter
    adapter: int
    weight: nn.Parameter

    def take_gradient(self) -> None:
        """Its part of the stacked gradient, in the same memory."""
        assert self.whole.grad is not None
        self.weight.grad = self.whole.grad[self.adapter, : len(self.weight)]


def own_weights(network: nn.Module, adapter: int) -> list[Own]:
    """Every A, B, and the head of one adapter."""
    found = []
    for module in network.modules():
        if isinstance(module, Stacked | Heads):
            rows = module.ranks[adapter] if isinstance(module, Stacked) else None
            for whole in module.parameters():
                found.append(Own(whole, adapter, nn.Parameter(whole.detach()[adapter, :rows])))
    return found
