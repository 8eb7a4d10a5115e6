"""Drift: how unlike a model's training films another set looks, by numbers that need no network.

A film is its size, its greys and a coarse layout of 4 × 4 places; its distance is Mahalanobis' from the training films.
The drift score is the chance that a film of the other set lies farther out than a validation film, which training has
not seen either: .5 is alike, 1 is wholly unlike. Its interval is over patients, so the warning (lower end above .5) is
false for at most 1 in 40 sets that are alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xray_opt.dataset.films import thumbnail
from xray_opt.dataset.manifest import Manifest
from xray_opt.dataset.records import Film
from xray_opt.dataset.shortcuts import SIDE, in_threads
from xray_opt.errors import BadFilm, DataError
from xray_opt.intervals import Interval, Patients, interval, resampled
from xray_opt.metrics import Cases, auc, weighted_scores

Floats = NDArray[np.float64]
#: Share of false warnings among sets that are alike: one side of a 95 % interval.
FALSE_ALARMS = 0.025
#: Places a side of the coarse layout; greys that are looked at besides mean and deviation, in percent of the pixels.
PLACES, SHARES = 4, (5, 25, 50, 75, 95)
#: Part → its columns of :func:`features`, and the difference that is none: in log pixels, in grey levels.
PARTS = {"size": (slice(0, 2), 0.05), "greys": (slice(2, 9), 2.0), "layout": (slice(9, 25), 2.0)}


@dataclass(frozen=True)
class Drift:
    """How unlike training a set looks.

    Attributes:
        score: 0.5 is like the validation films, 1 wholly unlike.
        parts: the same of size, greys and layout alone.
        unlike: whether it is certainly above 0.5.
    """

    score: Interval
    parts: Mapping[str, float] = field(default_factory=dict)
    unlike: bool = False


def drift(own: Manifest, manifest: Manifest, films: Sequence[Film]) -> Drift:
    """The drift of ``films`` of ``manifest`` from the training films of ``own``, beside its validation films.

    Raises:
        DataError: a film can no longer be read.
    """
    train, val = own.of("train"), own.of("val")
    train_facts, val_facts, new_facts = (
        features(where, some) for where, some in ((own, train), (own, val), (manifest, films))
    )
    # Another set may use the same keys for other people.
    groups = [f"own {film.group}" for film in val] + [f"new {film.group}" for film in films]
    return compared(train_facts, val_facts, new_facts, groups)


def features(manifest: Manifest, films: Sequence[Film]) -> Floats:
    """(N, 25) numbers of N films: log width and height; mean, deviation and quantiles of the greys; the layout.

    Raises:
        DataError: a film can no longer be read.
    """
    pixels = np.array(in_threads(lambda film: _thumbnail(manifest, film), films, None), dtype=np.float64)
    pixels = pixels.reshape(-1, SIDE, SIDE)
    sizes = np.log(np.array([[film.width, film.height] for film in films], dtype=np.float64).reshape(-1, 2))
    flat = pixels.reshape(len(films), -1)
    greys = np.column_stack([flat.mean(axis=1), flat.std(axis=1), np.percentile(flat, SHARES, axis=1).T])
    step = SIDE // PLACES
    layout = pixels.reshape(-1, PLACES, step, PLACES, step).mean(axis=(2, 4)).reshape(-1, PLACES**2)
    return np.column_stack([sizes, greys, layout - greys[:, :1]])


def compared(train: Floats, val: Floats, new: Floats, groups: Sequence[str]) -> Drift:
    """The drift of (N, 25) ``new`` from ``train``, beside ``val``; ``groups`` are the patients of val, then of new."""
    whose = Patients(groups)
    labels = np.repeat([0, 1], [len(val), len(new)]).astype(np.int64)
    cases = Cases(labels, _ranks(train, val, new, slice(None)))

    def statistic(weights: Floats) -> Mapping[str, Floats]:
        return {"auc": weighted_scores(cases, weights, 0.5)["auc"]}

    having = [whose.having(labels == label) for label in (0, 1)]
    score = interval("auc", auc(labels, cases.probabilities), resampled(statistic, whose)["auc"], having)
    parts = {name: auc(labels, _ranks(train, val, new, columns)) for name, (columns, _) in PARTS.items()}
    return Drift(score, parts, score.low is not None and score.low > 0.5)


def _ranks(train: Floats, val: Floats, new: Floats, columns: slice) -> Floats:
    """(V + N,) places in [0, 1) of the films of val and new by their distance from train; equal ones share one."""
    from sklearn.covariance import LedoitWolf

    least = np.concatenate([np.full(part.stop - part.start, floor) for part, floor in PARTS.values()])[columns]
    middle = train[:, columns].mean(axis=0)
    scale = np.maximum(train[:, columns].std(axis=0), least)
    spread = LedoitWolf(assume_centered=True).fit((train[:, columns] - middle) / scale)
    distances = spread.mahalanobis((np.concatenate([val, new])[:, columns] - middle) / scale)
    _, places = np.unique(distances, return_inverse=True)
    ranks: Floats = places / (len(distances) + 1)
    return ranks


def _thumbnail(manifest: Manifest, film: Film) -> NDArray[np.uint8]:
    try:
        return thumbnail(Path(manifest.root, film.path), SIDE)
    except BadFilm as error:
        raise DataError(f"{film.path} in {manifest.root}: {error}") from error
