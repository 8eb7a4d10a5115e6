"""Cached films on their way to the device: resident there where they fit, else gathered and copied one batch ahead.

A split is uint8 grey (4,200 films of 576 px are 1.4 GB), so on most GPUs it is uploaded once for all trials of a
process. Where it does not fit, and on the CPU, a thread reads the next batch while this one is trained on.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xray_opt.cache import Images, Progress, Split, open_images
from xray_opt.config import Config, Workspace
from xray_opt.dataset import Manifest
from xray_opt.faults import SHORTAGES, out_of_memory

Indices = NDArray[np.int64]

#: Share of a GPU's free memory that resident films may take.
SHARE = 0.4


class Feed:
    """Batches of one split on one device.

    Attributes:
        resident: whether the whole split lies on the device.
    """

    def __init__(self, split: Split, device: torch.device, free: int | None = None) -> None:
        """``free`` are the device's free bytes; none asks CUDA, and keeps films in host memory on other devices."""
        self.device = device
        # No reference back: the split owns its feeds, see feed().
        self._rows, self._pixels = split.rows, split.pixels
        size = len(split.rows) * int(np.prod(split.pixels.shape[1:]))
        if free is None:
            free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
        self.resident = size <= SHARE * free
        # Whoever asks first may be predicting; what is kept must serve training too.
        with torch.inference_mode(False):
            self._labels = torch.from_numpy(split.labels).float().to(device)
            self._films = self._upload(split) if self.resident else None
        self.resident = self._films is not None

    def _upload(self, split: Split) -> Tensor | None:
        """All films on the device, none where another process took the memory meanwhile."""
        try:
            return torch.from_numpy(split.batch(np.arange(len(split)))).to(self.device)
        except SHORTAGES as error:
            if not out_of_memory(error):
                raise
            return None

    def take(self, indices: Indices) -> Tensor:
        """(B, side, side) uint8 pixels of the films at ``indices``, (B,) places in the split."""
        if self._films is not None:
            return self._films[torch.from_numpy(indices).to(self.device)]
        return self._sent(self._read(indices))

    def batches(self, order: Sequence[Indices]) -> Iterator[tuple[Tensor, Tensor]]:
        """For each of ``order`` ((B,) places in the split) its (B, side, side) uint8 pixels and (B,) float labels."""
        if not order:
            return
        # One copy for all of them: each would wait until the device has done all before it.
        whole = torch.from_numpy(np.concatenate(order)).to(self.device)
        chosen = torch.split(whole, [len(indices) for indices in order])
        if self._films is not None:
            for places in chosen:
                yield self._films[places], self._labels[places]
            return
        with ThreadPoolExecutor(1, thread_name_prefix="feed") as reader:
            coming = reader.submit(self._read, order[0])
            for number, places in enumerate(chosen, start=1):
                pixels = coming.result()
                if number < len(order):
                    coming = reader.submit(self._read, order[number])
                yield self._sent(pixels), self._labels[places]

    def _sent(self, pixels: Tensor) -> Tensor:
        # Only from pinned memory, which is CUDA's, may a copy go on behind our back.
        return pixels.to(self.device, non_blocking=self.device.type == "cuda")

    def _read(self, indices: Indices) -> Tensor:
        pixels = torch.from_numpy(np.asarray(self._pixels[self._rows[indices]]))
        return pixels.pin_memory(self.device) if self.device.type == "cuda" else pixels


#: (id of the split, device) → its feed.
_FEEDS: dict[tuple[int, str], Feed] = {}


def feed(split: Split, device: torch.device) -> Feed:
    """The one feed of a split on a device: made at the first call, kept for all trials, dropped with the split."""
    key = (id(split), str(device))
    if key not in _FEEDS:
        _FEEDS[key] = Feed(split, device)
        weakref.finalize(split, _FEEDS.pop, key, None)  # again where it was let go of: that does no harm
    return _FEEDS[key]


class Sizes:
    """The films of a study, decoded once for each image size that its trials may have.

    Attributes:
        first: those of the first size; labels and names are the same for all.
    """

    def __init__(self, images: Mapping[int, Images]) -> None:
        self._images = dict(images)
        self.first = next(iter(self._images.values()))

    @classmethod
    def open(
        cls, manifest: Manifest, sizes: Iterable[int], workspace: Workspace, progress: Progress | None = None
    ) -> Self:
        """Decode what is not cached; raises as :func:`~xray_opt.cache.open_images` does."""
        return cls({size: open_images(manifest, size, workspace, progress) for size in sizes})

    def at(self, config: Config) -> Images:
        """The films for trainings with these settings; those of other sizes leave the device's memory."""
        images = self._images[config.image.size]
        kept = {id(images.train), id(images.val)}
        others = {id(split) for one in self._images.values() for split in (one.train, one.val)} - kept
        for key in [key for key in _FEEDS if key[0] in others]:
            del _FEEDS[key]
        return images

    def side(self, config: Config) -> int:
        """Pixels of the decoded squares for these settings."""
        return self._images[config.image.size].side
