"""Two levels of scores: each film by itself, and each patient by the mean probability of their films."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xray_opt.calibration import logit, probability
from xray_opt.config import LossConfig
from xray_opt.dataset import Film
from xray_opt.intervals import Interval, Patients, scored
from xray_opt.metrics import Cases, focal_losses

Floats = NDArray[np.float64]
#: Kinds of the positive class whose sensitivities are scored apart, where films tell them.
KINDS = ("bacteria", "virus")


@dataclass(frozen=True)
class Level:
    """All scores of films, or of patients.

    Attributes:
        cases, patients: how many; the same number where patients are scored.
        scores: name → score with its 95 % interval.
        confusion: counts of ``true_positive``, ``false_positive``, ``true_negative``, ``false_negative``.
    """

    cases: int
    patients: int
    threshold: float
    scores: Mapping[str, Interval]
    confusion: Mapping[str, int]

    def values(self, prefix: str) -> dict[str, float]:
        """Scores and the ends of their intervals as metrics: ``test.f1``, ``test.f1_low``, ``test.f1_high``."""
        found: dict[str, float] = {}
        for name, one in self.scores.items():
            ends = (("", one.value), ("_low", one.low), ("_high", one.high))
            # NaN is no metric.
            found |= {f"{prefix}.{name}{end}": value for end, value in ends if value is not None and value == value}
        return found


@dataclass(frozen=True)
class FilmCases:
    """Films and patients as cases, in an order that models of the same films share."""

    films: Cases
    whose: Patients
    patients: Cases
    each: Patients


def film_cases(films: Sequence[Film], logits: Floats, temperature: float, loss: LossConfig) -> FilmCases:
    """The cases of (N,) raw ``logits`` of N films.

    A patient's probability is the mean of the films', also of those before calibration, from which the loss follows.
    A patient is positive, or of a kind, if one of the films is.
    """
    labels = np.array([film.label for film in films], dtype=np.int64)
    kinds = {kind: labels * [film.subtype == kind for film in films] == 1 for kind in KINDS}
    kinds = {kind: members for kind, members in kinds.items() if members.any()}
    whose = Patients([film.group for film in films])
    own = Cases(labels, probability(logits, temperature), focal_losses(labels, logits, loss.alpha, loss.gamma), kinds)
    sick = _any(labels == 1, whose).astype(np.int64)
    losses = focal_losses(sick, logit(_mean(probability(logits), whose)), loss.alpha, loss.gamma)
    patient_kinds = {kind: _any(members, whose) for kind, members in kinds.items()}
    each = Patients([f"{number:09d}" for number in range(whose.count)])
    return FilmCases(own, whose, Cases(sick, _mean(own.probabilities, whose), losses, patient_kinds), each)


def levels(cases: FilmCases, threshold: float) -> tuple[Level, Level]:
    """All scores of the films and of the patients."""
    pairs = ((cases.films, cases.whose), (cases.patients, cases.each))
    films, patients = (_level(own, whose, threshold) for own, whose in pairs)
    return films, patients


def _level(cases: Cases, whose: Patients, threshold: float) -> Level:
    truth, called = cases.labels == 1, cases.probabilities >= threshold
    counts = {
        "true_positive": truth & called,
        "false_positive": ~truth & called,
        "true_negative": ~truth & ~called,
        "false_negative": truth & ~called,
    }
    found = scored(cases, whose, threshold)
    confusion = {name: int(members.sum()) for name, members in counts.items()}
    return Level(len(truth), whose.count, threshold, found, confusion)


def _mean(values: Floats, whose: Patients) -> Floats:
    sums: Floats = np.bincount(whose.codes, weights=values, minlength=whose.count) / np.bincount(whose.codes)
    return sums


def _any(members: NDArray[np.bool_], whose: Patients) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = np.bincount(whose.codes, weights=members, minlength=whose.count) > 0
    return found
