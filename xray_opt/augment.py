"""Pixels to network input: one batched affine resample for training, one plain resize for everything else.

Random resized crop, horizontal flip and rotation are composed into one affine map a film and sampled once, on
the device, from single-channel uint8. Only the given generator draws, on the CPU, so results do not depend on
the device's own randomness.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as functional
from torch import Tensor

from xray_opt.config import AugmentConfig

#: What ImageNet weights of torchvision expect, per RGB channel of [0, 1].
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

#: Draws of a crop before the central fallback, as in torchvision.
TRIES = 10


class Augment:
    """Random crop, flip and rotation with the semantics of torchvision's transforms of these names.

    They act in the order RandomResizedCrop, RandomHorizontalFlip, RandomRotation, the rotation about the crop's
    centre. Two differences, both for the better: there is one interpolation instead of two, and corners that the
    rotation opens show the film beyond the crop where there is any, black only beyond the film. With all
    randomness off and ``size`` equal to the side of the pixels the result is :func:`plain`'s.
    """

    def __init__(self, config: AugmentConfig, size: int) -> None:
        self.config = config
        self.size = size

    def __call__(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """``pixels`` (B, side, side) uint8 on any device → (B, 3, size, size) float32, channels_last.

        ``generator`` is a CPU generator; equal states give equal results.
        """
        films, side = pixels.shape[0], pixels.shape[-1]
        boxes = crop_boxes(films, side, self.config, generator)
        signs = 1 - 2 * (torch.rand(films, generator=generator) < self.config.flip).double()
        degrees = (2 * torch.rand(films, generator=generator).double() - 1) * self.config.rotation
        theta = affine(boxes, side, signs, degrees)
        return _normalise(_resample(pixels, theta, _levels(boxes, self.size), self.size))


def plain(pixels: Tensor, size: int) -> Tensor:
    """``pixels`` (B, side, side) uint8 → (B, 3, size, size) float32, channels_last: antialiased resize, no chance.

    A film's result does not depend on the films beside it.
    """
    grey = _unit(pixels)
    if grey.shape[-1] != size:
        grey = functional.interpolate(grey, (size, size), mode="bilinear", antialias=True)
    return _normalise(grey)


def crop_boxes(films: int, side: int, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """(B, 4) float64 boxes ``left, top, width, height`` in whole pixels of a square film of ``side``.

    As torchvision's ``RandomResizedCrop.get_params``: uniform share of the area, log-uniform aspect ratio, the
    first of ten draws that fits, else the largest central box with the nearest allowed ratio.
    """
    drawn = torch.rand(4, films, TRIES, generator=generator, dtype=torch.float64)
    area = side * side * (config.scale_min + drawn[0] * (config.scale_max - config.scale_min))
    low, high = math.log(config.ratio_min), math.log(config.ratio_max)
    ratio = torch.exp(low + drawn[1] * (high - low))
    width, height = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (width > 0) & (width <= side) & (height > 0) & (height <= side)
    left, top = (drawn[2] * (side - width + 1)).floor(), (drawn[3] * (side - height + 1)).floor()
    first = fits.int().argmax(dim=1, keepdim=True)
    boxes = torch.stack([value.gather(1, first)[:, 0] for value in (left, top, width, height)], dim=1)
    return torch.where(fits.any(dim=1, keepdim=True), boxes, _central_box(side, config))


def affine(boxes: Tensor, side: int, signs: Tensor, degrees: Tensor) -> Tensor:
    """(B, 2, 3) float32 map from output to input coordinates in [-1, 1] (``align_corners=False``).

    ``boxes`` (B, 4) from :func:`crop_boxes`; ``signs`` (B,) is -1 where the film is flipped; ``degrees`` (B,) turn
    counter-clockwise. The rotation comes after crop and flip, so its inverse is applied first.
    """
    left, top, width, height = (boxes / side).unbind(dim=1)
    cosine, sine = torch.cos(torch.deg2rad(degrees)), torch.sin(torch.deg2rad(degrees))
    across = torch.stack([width * signs * cosine, -width * signs * sine, 2 * left + width - 1], dim=1)
    down = torch.stack([height * sine, height * cosine, 2 * top + height - 1], dim=1)
    return torch.stack([across, down], dim=1).float()


def _central_box(side: int, config: AugmentConfig) -> Tensor:
    width = height = side
    if config.ratio_min > 1:
        height = max(1, round(side / config.ratio_min))
    elif config.ratio_max < 1:
        width = max(1, round(side * config.ratio_max))
    return torch.tensor([(side - width) // 2, (side - height) // 2, width, height], dtype=torch.float64)


def _levels(boxes: Tensor, size: int) -> list[int]:
    """How often a film is halved before sampling: bilinear sampling alone is free of gaps below a factor of 2."""
    factors = boxes[:, 2:].amax(dim=1) / size
    levels: list[int] = factors.log2().floor().clamp(min=0).int().tolist()
    return levels


def _resample(pixels: Tensor, theta: Tensor, levels: list[int], size: int) -> Tensor:
    """Sample each film from its level of the pyramid → (B, 1, size, size) in [0, 1], black beyond the film."""
    grey, theta = _unit(pixels), _sent(theta, pixels.device)
    if len(set(levels)) == 1:
        return _sample(_halved(grey, levels[0]), theta, size)
    sampled = grey.new_empty(len(levels), 1, size, size)
    for level in set(levels):
        chosen = _sent(torch.tensor([film for film, own in enumerate(levels) if own == level]), grey.device)
        sampled[chosen] = _sample(_halved(grey[chosen], level), theta[chosen], size)
    return sampled


def _halved(grey: Tensor, level: int) -> Tensor:
    if level == 0:
        return grey
    return functional.interpolate(grey, scale_factor=0.5**level, mode="area")


def _sample(grey: Tensor, theta: Tensor, size: int) -> Tensor:
    grid = functional.affine_grid(theta, [theta.shape[0], 1, size, size], align_corners=False)
    return functional.grid_sample(grey, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _sent(values: Tensor, device: torch.device) -> Tensor:
    """``values`` on the device, without waiting for what it is doing: so the copy has to come from pinned memory."""
    if device.type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def _unit(pixels: Tensor) -> Tensor:
    return pixels.unsqueeze(1).float() / 255


def _normalise(grey: Tensor) -> Tensor:
    """(B, 1, s, s) in [0, 1] → (B, 3, s, s), written once and already in channels_last order."""
    gain, offset = _channels(grey.device)
    return torch.addcmul(offset, grey.permute(0, 2, 3, 1), gain).permute(0, 3, 1, 2)


@lru_cache
def _channels(device: torch.device) -> tuple[Tensor, Tensor]:
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    return (1 / std).to(device), (-mean / std).to(device)
