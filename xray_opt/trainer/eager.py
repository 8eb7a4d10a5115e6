"""Forward and backward of a part of a batch, one kernel after the other: the plain way, and what the others share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from xray_opt.adapter import logits
from xray_opt.loss import FocalLoss


class Eager:
    """Puts the gradients of the parts of a batch where the optimizer finds them.

    A step is :meth:`begin`, :meth:`part` for each of its parts, :meth:`end`. One that broke off is begun again.

    Attributes:
        network: what is trained.
    """

    def __init__(self, network: nn.Module, loss: FocalLoss, precision: torch.dtype) -> None:
        self.network = network
        self._loss = loss
        self._precision = precision

    def begin(self) -> None:
        """Before the parts of a step; nothing has a gradient."""

    def part(self, images: Tensor, targets: Tensor, share: float) -> Tensor:
        """Add the gradients of ``share`` times the mean loss of (B, 3, s, s) ``images``; that product, detached, ().

        Raises:
            RuntimeError, MemoryError: the part does not fit.
        """
        with torch.autocast(images.device.type, self._precision, enabled=self._precision != torch.float32):
            answer = self._logits(images)
        loss: Tensor = self._loss(answer.float(), targets) * share
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def end(self) -> None:
        """Behind the parts of a step: every gradient is where it belongs."""

    def restart(self) -> None:
        """Memory ran out: the next parts are smaller ones."""

    def _logits(self, images: Tensor) -> Tensor:
        return logits(self.network, images)
