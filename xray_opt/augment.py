"""Pixels to network input: one batched affine resample for training, one plain resize for everything else.

Random resized crop, horizontal flip and rotation are composed into one affine map a film and sampled once, on
the device, from single-channel uint8. Only the given generator draws, on the CPU, so results do not depend on
the device's own randomness.

What counters shortcuts (greys, JPEG's quantisation, cut borders) is off by default, and then costs and draws nothing.
It is batched as well, keeps every shape, and never waits for the device.
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
#: JPEG's table of quantisation for luminance at quality 50 (ITU-T T.81, annex K).
QUANTISATION = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)


class Augment:
    """Random crop, flip and rotation with the semantics of torchvision's transforms of these names.

    They act in the order RandomResizedCrop, RandomHorizontalFlip, RandomRotation, the rotation about the crop's
    centre. Two differences, both for the better: there is one interpolation instead of two, and corners that the
    rotation opens show the film beyond the crop where there is any, black only beyond the film. With all
    randomness off and ``size`` equal to the side of the pixels the result is :func:`plain`'s.

    Before them come, where ``config`` asks for it, other greys, JPEG's quantisation, and borders cut off.
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
        if self.config.border:
            boxes = _within_borders(boxes, side, self.config.border, generator)
        grey = self._recompressed(self._with_other_greys(pixels, generator), generator)
        theta = affine(boxes, side, signs, degrees)
        return _normalise(_resample(grey, theta, _levels(boxes, self.size), self.size))

    def _with_other_greys(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """(B, 1, side, side) in [0, 1] of ``pixels``: a table of 256 greys a film, where any setting asks for one."""
        films, config = len(pixels), self.config
        if not (config.gamma or config.brightness or config.equalise):
            return _unit(pixels)
        table = (torch.arange(256, device=pixels.device) / 255).expand(films, 256)
        if config.equalise:
            chosen = torch.rand(films, 1, generator=generator) < config.equalise
            table = torch.where(_sent(chosen, pixels.device), equalising(pixels), table)
        if config.gamma:
            either_way = 2 * torch.rand(films, 1, generator=generator) - 1
            table = table ** _sent((1 + config.gamma) ** either_way, pixels.device)
        if config.brightness:
            shift = config.brightness * (2 * torch.rand(films, 1, generator=generator) - 1)
            table = (table + _sent(shift, pixels.device)).clamp(0, 1)
        return table.gather(1, pixels.flatten(1).long()).view_as(pixels).unsqueeze(1)

    def _recompressed(self, grey: Tensor, generator: torch.Generator) -> Tensor:
        config = self.config
        if not config.recompress:
            return grey
        films = len(grey)
        chosen = torch.rand(films, 1, 1, 1, generator=generator) < config.recompress
        quality = torch.randint(config.quality_min, config.quality_max + 1, (films,), generator=generator)
        return torch.where(_sent(chosen, grey.device), recompressed(grey, quality), grey)


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


def equalising(pixels: Tensor) -> Tensor:
    """(B, 256) grey in [0, 1] for each grey of (B, side, side) uint8, as Pillow's ``ImageOps.equalize``."""
    places = pixels.flatten(1).long()
    counts = torch.zeros(len(pixels), 256, device=pixels.device)
    counts.scatter_add_(1, places, torch.ones(1, 1, device=pixels.device).expand_as(places))
    brightest = places.amax(dim=1, keepdim=True)
    step = ((places.shape[1] - counts.gather(1, brightest)) / 255).floor()
    greys = ((step / 2).floor() + counts.cumsum(dim=1) - counts).div(step.clamp(min=1)).floor().clamp(max=255)
    return torch.where(step > 0, greys, torch.arange(256.0, device=pixels.device)) / 255


def recompressed(grey: Tensor, quality: Tensor) -> Tensor:
    """(B, 1, side, side) in [0, 1] after JPEG's loss: blocks of 8 × 8, their cosine transform, rounding by a table.

    ``quality`` (B,) 1 to 100 on the CPU, with the tables of libjpeg. Equal to a grey JPEG but for its integer
    arithmetic.
    """
    side, room = grey.shape[-1], -grey.shape[-1] % 8
    levels = functional.pad((grey * 255).round(), (0, room, 0, room), mode="replicate") - 128
    count = levels.shape[-1] // 8
    blocks = levels.reshape(len(grey), 1, count, 8, count, 8)
    cosines, steps = _cosines(grey.device), _sent(_steps(quality), grey.device)[:, None, None, :, None]
    found = torch.einsum("ij,bcrjsk,lk->bcrisl", cosines, blocks, cosines)
    blocks = torch.einsum("ji,bcrjsk,kl->bcrisl", cosines, (found / steps).round() * steps, cosines)
    levels = blocks.flatten(4, 5).flatten(2, 3)[..., :side, :side] + 128
    return levels.round().clamp(0, 255) / 255


def _steps(quality: Tensor) -> Tensor:
    """(B, 8, 8) float32 steps of quantisation of (B,) qualities."""
    scale = torch.where(quality < 50, 5000 // quality, 200 - 2 * quality)
    return ((torch.tensor(QUANTISATION) * scale[:, None, None] + 50) // 100).clamp(1, 255).float()


@lru_cache
def _cosines(device: torch.device) -> Tensor:
    """(8, 8) orthonormal cosine transform: frequencies down, places across."""
    down, across = torch.arange(8.0)[:, None], torch.arange(8.0)
    waves = torch.cos(math.pi * down * (2 * across + 1) / 16) / 2
    waves[0] /= math.sqrt(2)
    return waves.to(device)


def _within_borders(boxes: Tensor, side: int, most: float, generator: torch.Generator) -> Tensor:
    """``boxes`` in what is left of a film that loses its own share, at most ``most``, at each edge."""
    left, right, top, bottom = (most * torch.rand(4, len(boxes), generator=generator, dtype=torch.float64)).unbind()
    across, down = 1 - left - right, 1 - top - bottom
    return torch.stack([left * side, top * side, 0 * left, 0 * top], dim=1) + boxes * torch.stack(
        [across, down, across, down], dim=1
    )


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


def _resample(grey: Tensor, theta: Tensor, levels: list[int], size: int) -> Tensor:
    """Sample each film (B, 1, side, side) from its level of the pyramid → (B, 1, size, size), black beyond the film."""
    theta = _sent(theta, grey.device)
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
