"""Grad-CAM (Selvaraju et al. 2017) of the last convolution, for whatever strategy a network was trained with.

Behind the features come only a mean over places and a linear head. So the map is exact in one sense: its sum is the
logit, but for the head's bias. What it cannot show is why a feature is there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from xray_opt.adapter import without_peft
from xray_opt.augment import plain
from xray_opt.errors import OutOfMemory
from xray_opt.evaluate import evaluating, exact, whole_fp32
from xray_opt.faults import SHORTAGES, out_of_memory

Floats = NDArray[np.float64]
#: Films a pass.
BATCH = 16


def grad_cam(
    network: nn.Module, pixels: NDArray[np.uint8], image_size: int, device: torch.device
) -> tuple[Floats, Floats]:
    """(N,) logits and (N, h, w) maps of (N, side, side) films, in fp32; positive places speak for pneumonia.

    Raises:
        OutOfMemory: the films of one pass do not fit.
    """
    network.to(device)
    logits, maps = [], []
    for first in range(0, len(pixels), BATCH):
        try:
            answer, found = _one_pass(network, torch.from_numpy(pixels[first : first + BATCH]), image_size, device)
        except SHORTAGES as error:
            if not out_of_memory(error):
                raise
            raise OutOfMemory(
                f"no memory for {BATCH} films of {image_size} px on {device}; use --device cpu"
            ) from error
        logits.append(answer)
        maps.append(found)
    return np.concatenate(logits), np.concatenate(maps)


def towards(maps: Floats, signs: NDArray[np.int64]) -> Floats:
    """(N, h, w) in [0, 1]: what speaks for pneumonia (sign 1) or for normal (-1), each film by its own maximum."""
    heat = np.maximum(maps * signs[:, None, None], 0)
    top = heat.max(axis=(1, 2), keepdims=True)
    shares: Floats = np.divide(heat, top, out=np.zeros_like(heat), where=top > 0)
    return shares


def _one_pass(network: nn.Module, pixels: torch.Tensor, image_size: int, device: torch.device) -> tuple[Floats, Floats]:
    inner: Any = without_peft(network)
    with exact(network, device):
        features = inner.features(plain(pixels.to(device), image_size))
    features = features.clone().requires_grad_()  # an ordinary tensor again: only the head is differentiated
    with evaluating(network), torch.autocast(device.type, enabled=False), whole_fp32(device), torch.enable_grad():
        answer = inner.classifier(torch.flatten(inner.avgpool(features), 1)).squeeze(1)
        (gradient,) = torch.autograd.grad(answer.sum(), features)
    weights = gradient.mean(dim=(2, 3), keepdim=True)
    maps = (weights * features.detach()).sum(dim=1)
    return answer.detach().cpu().double().numpy(), maps.cpu().double().numpy()
