"""Frozen BatchNorm folded into the convolution before it: one pass over the activations where there were two.

A norm in evaluation mode is ``y * scale + shift`` with constants of the base, so the convolution takes them over, in
training and in evaluation alike. Names and values of the state dict stay torchvision's. Base weights must not change
after folding: they are the frozen ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops.misc import Conv2dNormActivation


@runtime_checkable
class Foldable(Protocol):
    """A convolution that takes over the norm behind it."""

    def fold_norm(self, scale: Tensor, shift: Tensor) -> None:
        """Compute ``conv(x) * scale + shift`` from now on; both (O,) float64."""


class FrozenConv(nn.Module):
    """A convolution nobody trains, with the norm behind it folded in; (B, I, H, W) → (B, O, H', W').

    Weight and shift are cast once to what autocast computes in, not at every call.
    """

    folded: Tensor
    shift: Tensor

    def __init__(self, conv: nn.Conv2d, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.weight = conv.weight
        self._place: tuple[Any, ...] = (conv.stride, conv.padding, conv.dilation, conv.groups)
        self._cast: dict[torch.dtype, tuple[Tensor, Tensor]] = {}
        folded = (conv.weight.detach().double() * scale[:, None, None, None]).float()
        self.register_buffer("folded", folded.contiguous(memory_format=torch.channels_last), persistent=False)
        self.register_buffer("shift", shift.float(), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Convolution and norm."""
        dtype = computed_in(images)
        if dtype not in self._cast:
            self.prepare(dtype)
        return functional.conv2d(images.to(dtype), *self._cast[dtype], *self._place)

    @torch.inference_mode(False)
    def prepare(self, dtype: torch.dtype) -> None:
        """Cast the constants; at the first call in ``dtype``, or before what compiles would see it happen."""
        self._cast[dtype] = self.folded.to(dtype), self.shift.to(dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = self.folded
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.folded is not before:
            self._cast = {}
        return self


class FoldedNorm(nn.BatchNorm2d):
    """A frozen norm that the convolution before it computes; it keeps the weights of the base and passes on."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, device="meta")
        self.load_state_dict(norm.state_dict(), assign=True)

    def forward(self, images: Tensor) -> Tensor:
        """What comes in, as it is."""
        return images


class Activation(nn.SiLU):
    """SiLU; in place only where no gradient is wanted: in place, autograd copies the input first."""

    def forward(self, images: Tensor) -> Tensor:
        """SiLU of any shape."""
        return functional.silu(images, inplace=not images.requires_grad)


def spare_copies(network: nn.Module) -> None:
    """Put :class:`Activation` where torchvision has SiLU; the values are the same."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if type(child) is nn.SiLU:
                setattr(module, name, Activation())


def computed_in(images: Tensor) -> torch.dtype:
    """What a convolution of ``images`` computes in under the autocast in force."""
    kind = images.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else images.dtype


def fold_norms(network: nn.Module) -> None:
    """Fold every norm of ``network`` whose convolution is frozen or :class:`Foldable`; all norms must be frozen."""
    for block in network.modules():
        if not isinstance(block, Conv2dNormActivation):
            continue
        conv, norm = block[0], block[1]
        scale, shift = _constants(norm)
        if isinstance(conv, Foldable):
            conv.fold_norm(scale, shift)
        elif isinstance(conv, nn.Conv2d):
            block[0] = FrozenConv(conv, scale, shift)
        else:
            continue  # plain LoRA adds its own update to the convolution's output
        block[1] = FoldedNorm(norm)


def _constants(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """(O,) scale and shift of a norm in evaluation mode, in float64."""
    state = {name: value.detach().double() for name, value in norm.state_dict().items()}
    scale = state["weight"] * (state["running_var"] + norm.eps).rsqrt()
    return scale, state["bias"] - state["running_mean"] * scale
