"""The training step's network through ``torch.compile``: one graph for all trials of a process.

Rank and alpha stay outside (``LiveWeights``), and only the first batch's shape is compiled: a short last batch runs
uncompiled. With ``lora.dropout`` the layers are PEFT's own, and every rank compiles anew.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException

from xray_opt.adapter import logits, without_peft
from xray_opt.errors import ConfigError, one_line
from xray_opt.loss import FocalLoss
from xray_opt.trainer.eager import Eager

Forward = Callable[[Tensor], Tensor]


class Compiled(Eager):
    """Gradients by way of a compiled network."""

    def __init__(self, network: nn.Module, loss: FocalLoss, precision: torch.dtype, backend: str = "inductor") -> None:
        super().__init__(network, loss, precision)
        # It brings peft, which only LoRA waits for.
        from xray_opt.adapter.live import LiveWeights, halves

        self._live = LiveWeights(network, precision)
        self._adapter = self._live.adapter(network)
        self._halves = halves(self._adapter)
        self._graph = compiled(network, backend)
        self._films = 0

    def restart(self) -> None:
        """Compile the next batch's shape: memory ran out with the one before."""
        self._films = 0

    def begin(self) -> None:
        """Take over the trained weights as they are now, and no gradient of a step that broke off."""
        self._live.fold(self._adapter)
        for tensor in self._live.tensors:
            tensor.grad = None

    def end(self) -> None:
        """Hand the gradients to the trained weights."""
        gradients = [tensor.grad for tensor in self._live.tensors if tensor.grad is not None]
        for half, gradient in zip(self._halves, self._live.project(self._adapter, gradients), strict=True):
            half.grad = gradient

    def _logits(self, images: Tensor) -> Tensor:
        """(B,) logits of (B, 3, H, W) ``images``; the first B is the one that is compiled."""
        self._films = self._films or len(images)
        if len(images) != self._films:
            return logits(self.network, images)
        return self._graph(images)


def compiled(network: nn.Module, backend: str = "inductor") -> Forward:
    """(B, 3, H, W) images → (B,) logits of ``network``, compiled for each shape at its first call.

    The function raises ConfigError where nothing can be compiled.
    """
    graph: Forward = torch.compile(without_peft(network), dynamic=False, backend=backend)

    def forward(images: Tensor) -> Tensor:
        try:
            return graph(images).squeeze(1)
        except (TorchDynamoException, ImportError, OSError) as error:
            raise ConfigError(
                f"training.compile: torch.compile fails here ({one_line(error)}); set training.compile=false"
            ) from error

    return forward
