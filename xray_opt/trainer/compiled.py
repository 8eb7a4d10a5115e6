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


class Compiled:
    """Logits of training batches; :meth:`begin` before a step's forward passes, :meth:`end` behind its backwards."""

    def __init__(self, network: nn.Module, precision: torch.dtype, backend: str = "inductor") -> None:
        self._network = network
        # It brings peft, which only LoRA waits for.
        from xray_opt.adapter.live import LiveWeights

        self._live = LiveWeights(network, precision)
        self._graph: Callable[[Tensor], Tensor] = torch.compile(without_peft(network), dynamic=False, backend=backend)
        self._films = 0

    def __call__(self, images: Tensor) -> Tensor:
        """(B,) logits of (B, 3, H, W) ``images``; the first B is the one that is compiled."""
        self._films = self._films or len(images)
        if len(images) != self._films:
            return logits(self._network, images)
        try:
            return self._graph(images).squeeze(1)
        except (TorchDynamoException, ImportError, OSError) as error:
            raise ConfigError(
                f"training.compile: torch.compile fails here ({one_line(error)}); set training.compile=false"
            ) from error

    def restart(self) -> None:
        """Compile the next batch's shape: memory ran out with the one before."""
        self._films = 0

    def begin(self) -> None:
        """Take over the trained weights as they are now, and no gradient of a step that broke off."""
        self._live.fold()

    def end(self) -> None:
        """Hand the gradients to the trained weights."""
        self._live.project()
