"""LoRA folded into its convolution: ``W' = W + s B A`` and one convolution, where plain PEFT runs three.

Only how it is computed differs: PEFT makes, names and stores the adapter, and reads it back without this file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Self, cast

import torch
from peft.tuners.lora.layer import Conv2d as PeftConv
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from xray_opt.adapter.folded import computed_in


class Parts(NamedTuple):
    """What a call of one layer needs, looked up once: the adapter, constants of the base, the convolution's numbers.

    Attributes:
        down, up: A (r, I, h, w) and B (O, r, 1, 1).
        matrix: (O, h w I) weight of the base, in the order of channels_last: what is folded needs no copy to get there.
        factor: (O, 1) what a row of ``B A`` is multiplied with.
        shift: (O,) bias in ``dtype``, or none.
        place: stride, padding, dilation.
        dtype: what the convolution computes in.
        sparing: whether the gradient of A and B costs less by way of the low rank than by way of the whole weight.
    """

    down: Tensor
    up: Tensor
    matrix: Tensor
    factor: Tensor
    shift: Tensor | None
    place: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
    dtype: torch.dtype
    sparing: bool

    def columns(self) -> Tensor:
        """(O, r) of the update."""
        return self.up.flatten(1) * self.factor

    def rows(self) -> Tensor:
        """(r, h w I) of the update."""
        return self.down.permute(0, 2, 3, 1).flatten(1)

    def weight(self, columns: Tensor) -> Tensor:
        """(O, I, h, w) in fp32; ``out=`` keeps autocast away from it (PyTorch's notes on autocast)."""
        folded = torch.addmm(self.matrix, columns, self.rows(), out=torch.empty_like(self.matrix))
        return self.as_kernel(folded)

    def split(self, to_weight: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of A and B from the (O, I, h, w) one of the weight."""
        matrix = to_weight.permute(0, 2, 3, 1).flatten(1).to(columns.dtype)
        return self.as_kernel(columns.T @ matrix), self.to_up(matrix @ self.rows().T)

    def to_up(self, to_columns: Tensor) -> Tensor:
        """Gradient of B from that of :meth:`columns`."""
        return (to_columns * self.factor).view_as(self.up)

    def as_kernel(self, matrix: Tensor) -> Tensor:
        """(n, h w I) as (n, I, h, w)."""
        _, inputs, height, width = self.down.shape
        return matrix.view(-1, height, width, inputs).permute(0, 3, 1, 2)


class _Convolution(torch.autograd.Function):
    """One convolution with the folded weight, whose gradient goes to A and B."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, down: Tensor, up: Tensor, parts: Parts) -> Tensor:
        columns = parts.columns()
        weight = parts.weight(columns).to(parts.dtype)
        images = images.to(parts.dtype)
        ctx.save_for_backward(images, weight, columns, down)
        ctx.parts = parts
        return functional.conv2d(images, weight, parts.shift, *parts.place)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:
        images, weight, columns, _ = ctx.saved_tensors  # A is kept so that a change before this is an error
        parts: Parts = ctx.parts
        # What is cast is cast here, by hand: backward may be called under autocast.
        with torch.autocast(images.device.type, enabled=False):
            wants = (ctx.needs_input_grad[0], not parts.sparing, False)
            to_images, to_weight, _ = _backward(gradient, images, weight, parts, wants)
            if to_weight is None:
                down, to_columns = _low_rank(gradient, images, columns, parts)
                return to_images, down, parts.to_up(to_columns), None
            return to_images, *parts.split(to_weight, columns), None


def _backward(gradient: Tensor, images: Tensor, weight: Tensor, parts: Parts, wants: tuple[bool, ...]) -> list[Any]:
    """Gradients of images and weight, as far as wanted, and none of a bias."""
    if not any(wants):
        return [None, None, None]
    rest = (*parts.place, False, (0, 0), 1, wants)
    return list(torch.ops.aten.convolution_backward(gradient, images, weight, None, *rest))


def _low_rank(gradient: Tensor, images: Tensor, columns: Tensor, parts: Parts) -> tuple[Tensor, Tensor]:
    """Gradients of A and of ``columns`` without the (O, I, h, w) one of the weight: through r channels instead."""
    down, rank = parts.down.to(images.dtype), len(parts.down)
    narrow = functional.conv2d(gradient, columns.T[:, :, None, None].to(images.dtype))
    inner = functional.conv2d(images, down, None, *parts.place).permute(0, 2, 3, 1).reshape(-1, rank)
    pixels = gradient.permute(0, 2, 3, 1).reshape(-1, gradient.shape[1])
    to_columns = (inner.T @ pixels).T  # this way round it takes a quarter of the time
    to_down = _backward(narrow, images, down, parts, (False, True, False))[1]
    return to_down, to_columns.to(columns.dtype)


class FoldedConv(PeftConv):
    """PEFT's LoRA of an ungrouped convolution without dropout; (B, I, H, W) → (B, O, H', W').

    The weight is folded in fp32, whatever autocast is in force, and cast once. There is neither a second convolution
    over the activations nor anything of it kept for the backward pass. Without gradients the folded weight is kept
    until A or B change. Their version counters tell that, but not of fused optimizers and replayed CUDA graphs: so a
    call with gradients and ``train(True)`` forget it as well. PEFT's merging and switching off are not for it.
    """

    matrix: Tensor
    factor: Tensor
    shift: Tensor | None

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)  # type: ignore[no-untyped-call]
        base: Any = self.get_base_layer()
        self._parts: Parts | None = None
        self._kept: tuple[Any, Tensor] | None = None
        #: Set by ``LiveWeights``: what calls with gradients convolve with, instead of A and B.
        self.live: Tensor | None = None
        self.live_shift: Tensor | None = None
        self._place = (base.stride, base.padding, base.dilation)
        self._hold(base.weight, torch.ones(base.out_channels), base.bias)

    def fold_norm(self, scale: Tensor, shift: Tensor) -> None:
        """Compute ``conv(x) * scale + shift`` from now on; both (O,) float64."""
        base: Any = self.get_base_layer()
        self._hold(base.weight.double() * scale[:, None, None, None], scale, shift)

    @torch.no_grad()
    def _hold(self, weight: Tensor, scale: Tensor, shift: Tensor | None) -> None:
        self.register_buffer("matrix", weight.permute(0, 2, 3, 1).flatten(1).float(), persistent=False)
        self.register_buffer("factor", (scale[:, None] * self.scaling["default"]).float(), persistent=False)
        self.register_buffer("shift", None if shift is None else shift.float(), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Convolution, adapter and, where it was folded in, norm."""
        if self.live is not None and torch.is_grad_enabled():
            return functional.conv2d(images.to(self.live.dtype), self.live, self.live_shift, *self._place)
        dtype = computed_in(images)
        parts = self._parts
        if parts is None or parts.dtype is not dtype:
            parts = self._parts = self.parts(dtype)
        if torch.is_grad_enabled():
            self._kept = None
            return cast(Tensor, _Convolution.apply(images, parts.down, parts.up, parts))  # type: ignore[no-untyped-call]
        state = parts.down._version, parts.up._version, dtype
        if self._kept is None or self._kept[0] != state:
            self._kept = state, parts.weight(parts.columns()).to(dtype)
        return functional.conv2d(images, self._kept[1], parts.shift, *parts.place)

    def parts(self, dtype: torch.dtype) -> Parts:
        """What a call in ``dtype`` needs."""
        down, up = (cast(Tensor, half["default"].weight) for half in (self.lora_A, self.lora_B))
        with torch.inference_mode(False):
            shift = None if self.shift is None else self.shift.to(dtype)
        # On a CPU arithmetic counts and not memory traffic; thin products run at about half of a wide one's rate.
        outputs, inputs = self.matrix.shape
        sparing = down.device.type == "cpu" and 4 * len(down) * (inputs + outputs) < inputs * outputs
        return Parts(down, up, self.matrix, self.factor, shift, self._place, dtype, sparing)

    def train(self, mode: bool = True) -> Self:
        """Training or evaluation mode."""
        if mode:
            self._kept = None
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = self.matrix
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.matrix is not before:
            self._parts = self._kept = None
        return self
