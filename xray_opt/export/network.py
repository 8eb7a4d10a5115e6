"""The network that is exported: from squares of grey bytes to a calibrated probability, preprocessing inside.

Outside stays only what is no arithmetic of tensors: decoding a file and squashing it to the square.
"""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from xray_opt.adapter import Bundle, merged
from xray_opt.augment import IMAGENET_MEAN, IMAGENET_STD


class FilmNetwork(nn.Module):
    """(N, side, side) uint8 grey squares → (N,) calibrated probability and (N,) raw logit, float32.

    The antialiased resize of a square of known side is a product with a constant matrix on either side, so that no
    runtime's own idea of "bilinear" is asked.
    """

    rows: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, bundle: Bundle) -> None:
        super().__init__()
        self.network = merged(network)
        self.temperature = float(bundle.temperature)
        self.resized = bundle.cache_side != bundle.image_size
        self.register_buffer("rows", resizing(bundle.cache_side, bundle.image_size))
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1))
        self.eval().requires_grad_(False)

    def forward(self, films: Tensor) -> tuple[Tensor, Tensor]:
        """Probability and logit."""
        grey = films.to(torch.float32).unsqueeze(1) / 255
        if self.resized:
            grey = self.rows @ grey @ self.rows.T
        logit: Tensor = self.network((grey - self.mean) / self.std).squeeze(1)
        return torch.sigmoid(logit / self.temperature), logit


def resizing(side: int, size: int) -> Tensor:
    """(size, side) matrix R: ``R x Rᵀ`` is the antialiased bilinear resize of a (side, side) x."""
    columns = torch.eye(side)[None, None]
    return functional.interpolate(columns, (size, side), mode="bilinear", antialias=True)[0, 0].contiguous()
