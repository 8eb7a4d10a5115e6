"""Near-duplicates: the same picture saved twice, resized, re-compressed or brightened, under two patients' names.

A 64-bit perceptual hash (pHash: signs of the low DCT frequencies of a 32×32 thumbnail) finds candidates; chest films
are all alike at that size, so the correlation of the thumbnails decides. Measured on 5,212 real films: no two of
different patients correlate above .979; copies of one film re-compressed, halved or brightened stay above .989. A
mirrored, turned or visibly cropped copy is not found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xray_opt.dataset.records import Film

#: Bits of 64 in which two hashes may differ, and the correlation that two thumbnails must have.
MOST_BITS, LEAST_CORRELATION = 8, 0.985
_LISTED = 500
_ROWS = 512


@dataclass(frozen=True)
class Pair:
    """Two films of different groups that show nearly the same picture; paths relative to the manifest's root."""

    first: str
    second: str
    bits: int
    correlation: float
    splits: tuple[str, str]


@dataclass(frozen=True)
class NearDuplicates:
    """What the screen found: how many pairs, how many of them across splits, and the 500 most alike."""

    total: int
    across_splits: int
    pairs: tuple[Pair, ...]


def near_duplicates(films: Sequence[Film], thumbnails: NDArray[np.uint8]) -> NearDuplicates:
    """Compare every two films of different groups, given their (N, 32, 32) uint8 thumbnails; under 2 s for 6,000."""
    if not len(films):
        return NearDuplicates(0, 0, ())
    signs, flat = _signs(thumbnails), _standardised(thumbnails)
    _, groups = np.unique([film.group for film in films], return_inverse=True)
    firsts, seconds, bits, correlations = [], [], [], []
    for start in range(0, len(films), _ROWS):
        stop = min(start + _ROWS, len(films))
        differing = (signs.shape[1] - signs[start:stop] @ signs[start:].T) / 2
        close = (differing <= MOST_BITS) & (groups[start:stop, None] != groups[None, start:])
        left, right = np.nonzero(np.triu(close, 1))
        alike = np.einsum("ij,ij->i", flat[start + left], flat[start + right])
        kept = alike >= LEAST_CORRELATION
        firsts.append(start + left[kept])
        seconds.append(start + right[kept])
        bits.append(differing[left[kept], right[kept]])
        correlations.append(alike[kept])
    return _found(films, *(np.concatenate(parts) for parts in (firsts, seconds, bits, correlations)))


def _found(
    films: Sequence[Film],
    firsts: NDArray[np.int64],
    seconds: NDArray[np.int64],
    bits: NDArray[np.float32],
    correlations: NDArray[np.float32],
) -> NearDuplicates:
    splits = np.array([film.split for film in films])
    across = int((splits[firsts] != splits[seconds]).sum())
    order = np.argsort(-correlations, kind="stable")[:_LISTED]
    pairs = tuple(
        Pair(
            films[firsts[i]].path,
            films[seconds[i]].path,
            int(bits[i]),
            round(min(float(correlations[i]), 1.0), 4),
            (films[firsts[i]].split, films[seconds[i]].split),
        )
        for i in order
    )
    return NearDuplicates(len(firsts), across, pairs)


def hashes(thumbnails: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """(N, 64) perceptual hash: which of the 8×8 lowest frequencies lie above their median (the mean left aside)."""
    side = thumbnails.shape[-1]
    angles = np.pi / side * np.outer(np.arange(8), np.arange(side) + 0.5)
    basis = np.cos(angles).astype(np.float32)
    low = (basis @ thumbnails.astype(np.float32) @ basis.T).reshape(len(thumbnails), 64)
    return np.asarray(low > np.median(low[:, 1:], axis=1, keepdims=True))


def _signs(thumbnails: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.where(hashes(thumbnails), 1, -1).astype(np.float32)


def _standardised(thumbnails: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Rows of mean 0 and length 1, so that a product is a correlation; a film of one value stays 0 and is like none."""
    flat = thumbnails.reshape(len(thumbnails), -1).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)
    flat /= np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)
    return flat
