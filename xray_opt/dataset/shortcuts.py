"""The shortcut screen: how well the class can be told without looking at lungs.

Two baselines that no network is needed for: the file's metadata (bytes per pixel, width, height, aspect, mode), and a
16×16 grey thumbnail. Where they score high, a network's score alone proves little, so every study reports them beside
its own. Cross-validated by group; see Geirhos et al. 2020 (shortcut learning) and DeGrave et al. 2021 (chest films).
scikit-learn is imported where it is used: a served model decodes films but screens none.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from xray_opt.dataset.films import thumbnail
from xray_opt.dataset.manifest import Manifest
from xray_opt.dataset.names import LABELS
from xray_opt.dataset.records import Film
from xray_opt.errors import BadFilm, DataError
from xray_opt.metrics import Scores, scores

Progress = Callable[[int, int], None]
Thumbnails = NDArray[np.uint8]
Item = TypeVar("Item")
Result = TypeVar("Result")

#: Side in pixels of the thumbnails that the near-duplicate screen and, halved, this screen look at.
SIDE = 32
_FOLDS = 5
#: The two models that look at no lungs, in the order of ``_models``.
BASELINES = ("file metadata", "16×16 thumbnail")


@dataclass(frozen=True)
class Shortcut:
    """Out-of-fold scores of the two baselines; none where there are too few groups to cross-validate.

    Attributes:
        metadata_auc, metadata_f1: gradient boosting on what the file is; F1 at probability 0.5.
        thumbnail_auc, thumbnail_f1: logistic regression on 16×16 grey pixels.
        always_f1: F1 of always saying pneumonia.
        films: films of the train and val splits that were used.
        folds: folds of the cross-validation, 0 where there was none.
        positive: name of the positive class.
    """

    metadata_auc: float | None
    thumbnail_auc: float | None
    metadata_f1: float | None
    thumbnail_f1: float | None
    always_f1: float
    films: int
    folds: int
    positive: str = LABELS[1]

    def metrics(self) -> dict[str, float]:
        """The scores that exist, under the names that tracking logs."""
        found = {
            f"shortcut.{name}": value
            for name, value in dataclasses.asdict(self).items()
            if name.endswith(("auc", "f1"))
        }
        return {name: value for name, value in found.items() if value is not None}

    def lines(self) -> list[str]:
        """A short report of at most 80 columns."""
        if not self.folds:
            return [f"shortcut screen: too few patient groups among {self.films} films of train and val"]
        return [
            f"shortcut screen, {self.folds}-fold by patient group, {self.films} films of train and val:",
            f"  file metadata alone        AUC {_text(self.metadata_auc)}  F1 {_text(self.metadata_f1)}",
            f"  16×16 thumbnail alone      AUC {_text(self.thumbnail_auc)}  F1 {_text(self.thumbnail_f1)}",
            f"  {'always saying ' + self.positive.lower():37.37} F1 {_text(self.always_f1)}",
        ]


def shortcut_screen(manifest: Manifest, progress: Progress | None = None) -> Shortcut:
    """Screen the films of train and val; the test split is sealed, so neither its labels nor its films are read.

    Deterministic. Takes a few seconds for 5,000 films of 224 pixels.

    Raises:
        DataError: a film can no longer be read.
    """
    films = open_films(manifest)
    try:
        results = in_threads(lambda film: _thumbnail(manifest, film), films, progress)
    except DataError as error:
        raise DataError(f"{error}; run xray-opt data prepare again") from error
    return screen(films, np.array(results, dtype=np.uint8).reshape(-1, SIDE, SIDE), manifest.classes[1])


def open_films(manifest: Manifest) -> tuple[Film, ...]:
    """The films whose labels may be read: those of train and val."""
    return manifest.of("train") + manifest.of("val")


def screen(films: Sequence[Film], thumbnails: Thumbnails, positive: str = LABELS[1]) -> Shortcut:
    """As ``shortcut_screen``, from (N, 32, 32) uint8 thumbnails of N films that are not of the test split."""
    labels = np.array([film.label for film in films], dtype=np.int64)
    folds = _folds(films, labels)
    always = scores(labels, np.ones(len(labels))).f1
    if not folds:
        return Shortcut(None, None, None, None, always, len(films), 0, positive)
    boosting, logistic = _models()
    metadata = _out_of_fold(boosting, _metadata(films), labels, folds)
    thumbnail = _out_of_fold(logistic, _halved(thumbnails), labels, folds)
    return Shortcut(metadata.auc, thumbnail.auc, metadata.f1, thumbnail.f1, always, len(films), len(folds), positive)


def trivial_models(manifest: Manifest, *wanted: tuple[Manifest, Sequence[Film]]) -> dict[str, NDArray[np.float64]]:
    """Baseline (``file metadata``, ``16×16 thumbnail``) → (N,) probabilities for N films, fitted to train alone.

    Args:
        wanted: the films, with the manifests that tell where they lie.

    Raises:
        DataError: a film can no longer be read, or train has one class only.
    """
    train = manifest.of("train")
    labels = np.array([film.label for film in train], dtype=np.int64)
    if len(set(labels.tolist())) < 2:
        raise DataError(f"all {len(train)} training films are of one class")
    films = [(place, film) for place, own in ((manifest, train), *wanted) for film in own]
    once = {(place.root, film.path): (place, film) for place, film in films}
    read = dict(zip(once, in_threads(lambda one: _thumbnail(*one), [*once.values()], None), strict=True))
    thumbnails = np.array([read[place.root, film.path] for place, film in films], dtype=np.uint8)
    found = {}
    features = (_metadata([film for _, film in films]), _halved(thumbnails))
    for name, model, values in zip(BASELINES, _models(), features, strict=True):
        model.fit(values[: len(train)], labels)
        found[name] = np.asarray(model.predict_proba(values[len(train) :])[:, 1], dtype=np.float64)
    return found


def _models() -> tuple[Any, Any]:
    """Unfitted: gradient boosting for metadata, logistic regression for thumbnails."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    boosting = HistGradientBoostingClassifier(max_iter=100, early_stopping=False, random_state=0)
    return boosting, make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))


def _halved(thumbnails: Thumbnails) -> NDArray[np.float64]:
    """(N, 256) of (N, 32, 32)."""
    halves: NDArray[np.float64] = thumbnails.reshape(-1, SIDE // 2, 2, SIDE // 2, 2).mean(axis=(2, 4))
    return halves.reshape(len(thumbnails), -1)


def in_threads(work: Callable[[Item], Result], items: Sequence[Item], progress: Progress | None) -> list[Result]:
    """``work`` on every item, in order. Decoders release the lock, so threads help; Ctrl-C waits for none."""
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        return list(_counted(pool.map(work, items), len(items), progress))
    finally:
        pool.shutdown(cancel_futures=True)


def _counted(results: Iterable[Result], total: int, progress: Progress | None) -> Iterator[Result]:
    for done, result in enumerate(results, start=1):
        yield result
        if progress:
            progress(done, total)


def _thumbnail(manifest: Manifest, film: Film) -> Thumbnails:
    try:
        return thumbnail(Path(manifest.root, film.path), SIDE)
    except BadFilm as error:
        raise DataError(f"{film.path} in {manifest.root}: {error}") from error


def _metadata(films: Sequence[Film]) -> NDArray[np.float64]:
    """(N, 4 + modes): bytes per pixel, width, height, aspect, one column a mode."""
    modes = sorted({film.mode for film in films})
    return np.array(
        [
            [film.bytes / (film.width * film.height), film.width, film.height, film.width / film.height]
            + [float(film.mode == mode) for mode in modes]
            for film in films
        ]
    )


def _folds(films: Sequence[Film], labels: NDArray[np.int64]) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Pairs of (train, held out) indices; no group stands in both. Empty where no two folds hold both classes."""
    from sklearn.model_selection import StratifiedGroupKFold

    groups = np.array([film.group for film in films])
    wanted = min([_FOLDS, *(len(set(groups[labels == label])) for label in (0, 1))])
    if wanted < 2:
        return []
    splitter = StratifiedGroupKFold(wanted, shuffle=True, random_state=0)
    folds = list(splitter.split(labels, labels, groups))
    return folds if all(len(set(labels[train])) == 2 for train, _ in folds) else []


def _out_of_fold(
    model: Any, features: NDArray[np.float64], labels: NDArray[np.int64], folds: Iterable[tuple[Any, Any]]
) -> Scores:
    probabilities = np.zeros(len(labels))
    for train, held_out in folds:
        model.fit(features[train], labels[train])
        probabilities[held_out] = model.predict_proba(features[held_out])[:, 1]
    return scores(labels, probabilities)


def _text(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"
