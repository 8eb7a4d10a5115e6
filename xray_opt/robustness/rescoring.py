"""A model's answers for films as they are and under every change, each film read and decoded once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xray_opt.dataset import decode, in_threads, to_square
from xray_opt.errors import BadFilm
from xray_opt.evaluate import Predictor, predict_logits
from xray_opt.robustness.perturbing import Change, Grey

Progress = Callable[[int, int], None]
#: Films in memory at a time, as squares of all changes; native ones only as many as there are threads.
CHUNK = 16


@dataclass(frozen=True)
class Rescored:
    """Answers for the films that could be read.

    Attributes:
        names: the changes, in order.
        logits: (1 + changes, N) raw logits; the first row is of the films as they are.
        kept: (N,) places of these films among those asked for.
        unread: the other films, each with the reason.
    """

    names: tuple[str, ...]
    logits: NDArray[np.float64]
    kept: NDArray[np.int64]
    unread: tuple[str, ...]


def rescore(
    predictor: Predictor, paths: Sequence[Path], changes: Mapping[str, Change], progress: Progress | None = None
) -> Rescored:
    """Ask a model about the films at ``paths`` as they are and under each of ``changes`` of the native film."""
    side = predictor.bundle.cache_side
    kept: list[int] = []
    unread: list[str] = []
    parts: list[NDArray[np.float64]] = [np.empty((0, 1 + len(changes)))]
    for first in range(0, len(paths), CHUNK):
        chunk = paths[first : first + CHUNK]
        squares = []
        for place, answer in enumerate(in_threads(lambda path: _squares(path, side, changes), chunk, None), first):
            if isinstance(answer, BadFilm):
                unread.append(f"{paths[place].name}: {answer}")
            else:
                kept.append(place)
                squares.append(answer)
        if squares:
            pixels = np.concatenate(squares)
            logits = predict_logits(predictor.network, pixels, predictor.bundle.image_size, predictor.device)
            parts.append(logits.reshape(len(squares), -1))
        if progress:
            progress(first + len(chunk), len(paths))
    return Rescored(tuple(changes), np.concatenate(parts).T, np.array(kept, dtype=np.int64), tuple(unread))


def _squares(path: Path, side: int, changes: Mapping[str, Change]) -> Grey | BadFilm:
    """(1 + changes, side, side) squares of one film, or why it cannot be read."""
    try:
        native = decode(path)
    except BadFilm as error:
        return error
    return np.stack([to_square(native, side), *(to_square(change(native), side) for change in changes.values())])
