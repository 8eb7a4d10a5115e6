"""Changes of a native film: (H, W) uint8 grey in, (h, w) uint8 out; no chance in them, the same film gives the same.

They come before the model's own preprocessing. That squashes a film to a square, so another aspect ratio by mere
resizing would be undone: here it comes from cutting one pair of edges. What is painted out gets the median of the rest
of the film, so nothing of what was there is left in the colour.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from PIL.JpegImagePlugin import JpegImageFile

Grey = NDArray[np.uint8]
Change = Callable[[Grey], Grey]

#: Bits a pixel at which all films are as strongly compressed: about what JPEG quality 75 needs for a film.
BITS = 1.0
#: Highest quality that the search for a rate tries.
BEST = 95
#: Side of a painted corner and width of a painted border, as a share of each side; markers stand in corners.
CORNER, BORDER = 0.15, 0.1
#: Where the painted lung field begins, as a share of each side.
FIELD = 0.15


def reencoded(grey: Grey, quality: int) -> Grey:
    """The film saved as JPEG of this quality and read again."""
    return np.array(JpegImageFile(io.BytesIO(_encoded(grey, quality))))


def at_rate(grey: Grey, bits: float = BITS) -> Grey:
    """The film as JPEG of the highest quality that takes at most so many bits a pixel (quality 1 where none does)."""
    room = grey.size * bits / 8 + _head()
    low, high = 1, BEST + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if len(_encoded(grey, middle)) <= room else (low, middle)
    return reencoded(grey, low)


def cut(grey: Grey, share: float) -> Grey:
    """The film without this share of each side at all four edges; at least one pixel is left."""
    return _inner(grey, share, share)


def reshaped(grey: Grey, change: float) -> Grey:
    """A film whose width over height is ``1 + change`` times the old: cut left and right, or at top and bottom."""
    factor = 1 + change
    return _inner(grey, 0.0, (1 - factor) / 2) if factor < 1 else _inner(grey, (1 - 1 / factor) / 2, 0.0)


def brighter(grey: Grey, shift: float) -> Grey:
    """Every grey moved by this share of the full scale, cut off at black and white."""
    return _looked_up(grey, np.arange(256) + 255 * shift)


def with_gamma(grey: Grey, gamma: float) -> Grey:
    """Every grey, as a share of white, to the power of ``gamma``."""
    return _looked_up(grey, 255 * (np.arange(256) / 255) ** gamma)


def equalised(grey: Grey) -> Grey:
    """The film with a flat histogram."""
    return np.array(ImageOps.equalize(Image.fromarray(grey)))


def without_corners(grey: Grey) -> Grey:
    """The four corners painted out, and so the markers in them."""
    high, wide = _edge(grey.shape[0], CORNER), _edge(grey.shape[1], CORNER)
    hidden = np.zeros(grey.shape, dtype=bool)
    for rows in (slice(None, high), slice(-high, None)):
        for columns in (slice(None, wide), slice(-wide, None)):
            hidden[rows, columns] = True
    return _painted(grey, hidden)


def without_border(grey: Grey) -> Grey:
    """All that lies near the edges painted out."""
    high, wide = _edge(grey.shape[0], BORDER), _edge(grey.shape[1], BORDER)
    hidden = np.ones(grey.shape, dtype=bool)
    hidden[high:-high, wide:-wide] = False
    return _painted(grey, hidden)


def without_lungs(grey: Grey) -> Grey:
    """The middle painted out, where the lungs are."""
    high, wide = _edge(grey.shape[0], FIELD), _edge(grey.shape[1], FIELD)
    hidden = np.zeros(grey.shape, dtype=bool)
    hidden[high:-high, wide:-wide] = True
    return _painted(grey, hidden)


#: Name → what may happen to a film without changing what a radiologist says of it.
PERTURBATIONS: Mapping[str, Change] = {
    **{f"JPEG quality {quality}": partial(reencoded, quality=quality) for quality in (30, 50, 75, 95)},
    "JPEG 1 bit a pixel": at_rate,
    **{f"edges cut by {percent} %": partial(cut, share=percent / 100) for percent in (5, 10, 15)},
    **{f"aspect {percent:+d} %": partial(reshaped, change=percent / 100) for percent in (-20, -10, 10, 20)},
    **{f"brightness {percent:+d} %": partial(brighter, shift=percent / 100) for percent in (-10, 10)},
    **{f"gamma {gamma:g}": partial(with_gamma, gamma=gamma) for gamma in (0.8, 1.25)},
    "equalised": equalised,
    "corners painted out": without_corners,
}
#: Name → what hides a part of the film; together with the painted corners the shortcut test.
MASKS: Mapping[str, Change] = {"border painted out": without_border, "lungs painted out": without_lungs}


def _encoded(grey: Grey, quality: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


@lru_cache
def _head() -> int:
    """Bytes of a grey JPEG that are not its pixels': those of a film of one block."""
    return len(_encoded(np.zeros((8, 8), dtype=np.uint8), BEST))


def _edge(side: int, share: float) -> int:
    return max(round(side * share), 1)


def _inner(grey: Grey, down: float, across: float) -> Grey:
    """The middle of the film, ``down`` off the top and the bottom and ``across`` off left and right, as shares."""
    margins = [
        min(round(side * share), (side - 1) // 2) for side, share in zip(grey.shape, (down, across), strict=True)
    ]
    rows, columns = (slice(margin, side - margin) for margin, side in zip(margins, grey.shape, strict=True))
    return np.ascontiguousarray(grey[rows, columns])


def _looked_up(grey: Grey, table: NDArray[np.floating[Any]]) -> Grey:
    greys: Grey = np.rint(np.clip(table, 0, 255)).astype(np.uint8)
    return greys[grey]


def _painted(grey: Grey, hidden: NDArray[np.bool_]) -> Grey:
    counts = np.bincount(grey[~hidden], minlength=256)
    median = int(np.searchsorted(np.cumsum(counts), counts.sum() / 2))
    return np.where(hidden, np.uint8(median), grey)
