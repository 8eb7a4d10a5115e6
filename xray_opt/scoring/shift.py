"""What is other in an outside folder than in training: how common pneumonia is, and how the films look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from xray_opt.dataset import Drift, Film, Manifest, drift
from xray_opt.errors import DataError
from xray_opt.intervals import Interval, Patients, share, tally


@dataclass(frozen=True)
class Shift:
    """Another set against the model's own.

    Attributes:
        prevalence: share of films with pneumonia, with its interval over patients.
        trained: the same share of the training films; none where they are not known here.
        drift: how unlike training the films look; none where the training films cannot be read here, see ``why``.
    """

    prevalence: Interval
    trained: float | None
    drift: Drift | None
    why: str = ""


def shift(own: Manifest | None, manifest: Manifest, films: Sequence[Film]) -> Shift:
    """Compare ``films`` of ``manifest`` with the films that the model was made on."""
    sick = np.array([film.label == 1 for film in films])
    whose = Patients([film.group for film in films])
    prevalence = share(tally(sick, np.ones(len(sick), dtype=bool), whose), float(sick.mean()), [whose.count])
    if own is None:
        return Shift(prevalence, None, None, "the model's own films are not known here")
    trained = float(np.mean([film.label for film in own.of("train")]))
    try:
        return Shift(prevalence, trained, drift(own, manifest, films))
    except DataError as error:
        return Shift(prevalence, trained, None, f"the model's own films cannot be read here: {error}")
