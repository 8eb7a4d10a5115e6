"""Focal loss for binary classification (Lin et al., *Focal Loss for Dense Object Detection*, 2017); smoothed labels
(Szegedy et al., *Rethinking the Inception Architecture for Computer Vision*, 2016)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class FocalLoss(nn.Module):
    """Mean over films of ``-alpha_t (1 - p_t)^gamma log p_t``.

    Args:
        alpha: weight of positives; negatives weigh ``1 - alpha``.
        gamma: 0 gives alpha-weighted cross-entropy.
        smoothing: share of each label that is spread evenly over both classes, as torch's ``CrossEntropyLoss`` does it.

    All may be tensors of shape (), which are read at each call.
    """

    def __init__(self, alpha: float | Tensor, gamma: float | Tensor, smoothing: float | Tensor = 0.0) -> None:
        super().__init__()
        self.alpha = alpha
        self.gamma = gamma
        self.smoothing = smoothing

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Scalar loss of (N,) logits against (N,) targets in {0, 1}; computed in fp32 at least.

        ``log(1 - p_t)`` is taken from the logit itself, so neither loss nor gradient is NaN at any finite logit.
        """
        precise = logits if logits.dtype == torch.float64 else logits.float()
        truth = targets.to(precise.dtype)
        half = self.smoothing / 2
        # Without smoothing this is one times the label's own loss and zero times a finite one: that loss to the bit.
        return torch.mean((1 - half) * self._losses(precise, truth) + half * self._losses(precise, 1 - truth))

    def _losses(self, logits: Tensor, truth: Tensor) -> Tensor:
        """(N,) losses of (N,) logits, were these the labels."""
        margin = logits * (2 * truth - 1)
        # p_t = sigmoid(margin), so (1 - p_t)^gamma = exp(gamma * log sigmoid(-margin)).
        focus = torch.exp(self.gamma * functional.logsigmoid(-margin))
        weight = self.alpha * truth + (1 - self.alpha) * (1 - truth)
        return -weight * focus * functional.logsigmoid(margin)
