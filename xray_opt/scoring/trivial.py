"""Models that look at no lungs, on the films that a model is scored on: what it gains over them, paired by patient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from xray_opt.calibration import logit
from xray_opt.config import LossConfig
from xray_opt.dataset import Film, Manifest, trivial_models
from xray_opt.errors import DataError
from xray_opt.intervals import Gain, gains
from xray_opt.metrics import best_threshold
from xray_opt.scoring.levels import FilmCases, Level, film_cases, levels


@dataclass(frozen=True)
class Baseline:
    """A trivial model on the same films.

    Attributes:
        threshold: of best F1 on validation.
        gains: score → gain of the scored model over this one, paired by patient.
    """

    name: str
    threshold: float
    image: Level
    gains: Mapping[str, Gain]


@dataclass(frozen=True)
class Beside:
    """The trivial models beside a model, best AUC first, or ``why`` there are none."""

    models: tuple[Baseline, ...] = ()
    why: str = ""


def beside(
    own: Manifest | None, manifest: Manifest, films: Sequence[Film], ours: FilmCases, threshold: float, loss: LossConfig
) -> Beside:
    """As :func:`baselines`, or why they cannot be had.

    Args:
        own: what the model was made on; none where it is not known here.
    """
    if own is None:
        return Beside(why="the model's own films are not known here, and trivial models are fitted to them")
    if any(film.split == "train" for film in films) and manifest is own:
        return Beside(why="trivial models are fitted to these very films")
    try:
        return Beside(baselines(own, manifest, films, ours, threshold, loss))
    except DataError as error:
        return Beside(why=f"trivial models cannot be fitted here: {error}")


def baselines(
    own: Manifest, manifest: Manifest, films: Sequence[Film], ours: FilmCases, threshold: float, loss: LossConfig
) -> tuple[Baseline, ...]:
    """The trivial models beside a model, best AUC first: chosen on these films, which is to their advantage.

    Args:
        own: what the model was made on.
        films: of ``manifest``; ``ours`` is what the model says of them, and ``threshold`` its own.

    Raises:
        DataError: a film can no longer be read, or train has one class only.
    """
    found = []
    for name, (theirs, cases) in trivial_cases(own, manifest, films, loss).items():
        paired = gains(ours.films, cases.films, ours.whose, (threshold, theirs))
        found.append(Baseline(name, theirs, levels(cases, theirs)[0], paired))
    return tuple(sorted(found, key=lambda one: -np.nan_to_num(one.image.scores["auc"].value)))


def trivial_cases(
    own: Manifest, manifest: Manifest, films: Sequence[Film], loss: LossConfig
) -> dict[str, tuple[float, FilmCases]]:
    """Trivial model, fitted to train of ``own`` → its threshold of best F1 on validation, what it says of ``films``.

    Raises:
        DataError: as :func:`baselines`.
    """
    val = own.of("val")
    found = {}
    for name, probabilities in trivial_models(own, (own, val), (manifest, films)).items():
        threshold = best_threshold([film.label for film in val], probabilities[: len(val)])
        found[name] = threshold, film_cases(films, logit(probabilities[len(val) :]), 1.0, loss)
    return found
