"""Folded weights as tensors of their own, so that a compiled or captured training step knows neither rank nor alpha.

Before a step they are folded, in the step they are leaves, behind it their gradient goes to A and B. What is compiled
or captured for one trial therefore serves every other one of the same shapes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from xray_opt.adapter.folded import FrozenConv
from xray_opt.adapter.folded_conv import FoldedConv, Parts


class LiveWeights:
    """The folded weights of all LoRA layers of a network in one type, at addresses that do not change.

    What they are folded from is given with each call: the network's own adapter, or that of another trial.

    Attributes:
        tensors: (O, I, h, w) leaves, a layer each, in the network's order.
    """

    @torch.no_grad()
    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self.tensors: list[Tensor] = []
        for layer, parts in zip(_layers(network), self.adapter(network), strict=True):
            layer.live = parts.weight(parts.columns()).to(dtype).requires_grad_()
            layer.live_shift = parts.shift
            self.tensors.append(layer.live)
        for module in network.modules():
            if isinstance(module, FrozenConv):
                for kind in (dtype, torch.float32):  # training's, and validation's between its epochs
                    module.prepare(kind)

    def adapter(self, network: nn.Module) -> list[Parts]:
        """A, B and constants of each LoRA layer of ``network``, which has the layers of this one at any rank."""
        return [layer.parts(self._dtype) for layer in _layers(network)]

    @torch.no_grad()
    def fold(self, adapter: Sequence[Parts]) -> None:
        """Take over A and B as they are now."""
        for tensor, parts in zip(self.tensors, adapter, strict=True):
            tensor.copy_(parts.weight(parts.columns()))

    @torch.no_grad()
    def project(self, adapter: Sequence[Parts], gradients: Sequence[Tensor]) -> list[Tensor]:
        """Gradients of A, B, A, B, … from those of :attr:`tensors`."""
        pairs = [parts.split(found, parts.columns()) for parts, found in zip(adapter, gradients, strict=True)]
        return [half for pair in pairs for half in pair]


def halves(adapter: Sequence[Parts]) -> list[Tensor]:
    """A, B, A, B, … of the layers of an adapter."""
    return [half for parts in adapter for half in (parts.down, parts.up)]


def _layers(network: nn.Module) -> list[FoldedConv]:
    return [module for module in network.modules() if isinstance(module, FoldedConv)]
