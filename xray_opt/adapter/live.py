"""Folded weights as tensors of their own, so that a compiled training step knows neither rank nor alpha.

Before a step they are folded, in the step they are leaves, behind it their gradient goes to A and B. What is compiled
for one trial therefore serves every other one of the same shapes.
"""

from __future__ import annotations

import torch
from torch import nn

from xray_opt.adapter.folded import FrozenConv
from xray_opt.adapter.folded_conv import FoldedConv


class LiveWeights:
    """The folded weights of all LoRA layers of ``network`` in ``dtype``, at addresses that do not change."""

    @torch.no_grad()
    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        layers = [module for module in network.modules() if isinstance(module, FoldedConv)]
        self._rows = [(layer, layer.parts(dtype)) for layer in layers]
        for layer, parts in self._rows:
            layer.live = parts.weight(parts.columns()).to(dtype).requires_grad_()
            layer.live_shift = parts.shift
        for module in network.modules():
            if isinstance(module, FrozenConv):
                for kind in (dtype, torch.float32):  # training's, and validation's between its epochs
                    module.prepare(kind)

    @torch.no_grad()
    def fold(self) -> None:
        """Take over A and B as they are now."""
        for layer, parts in self._rows:
            assert layer.live is not None
            layer.live.copy_(parts.weight(parts.columns()))
            layer.live.grad = None

    @torch.no_grad()
    def project(self) -> None:
        """Give the gradients that the folded weights got to A and B."""
        for layer, parts in self._rows:
            assert layer.live is not None
            if layer.live.grad is None:
                continue
            parts.down.grad, parts.up.grad = parts.split(layer.live.grad, parts.columns())
            layer.live.grad = None
