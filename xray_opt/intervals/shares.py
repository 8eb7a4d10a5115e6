"""Intervals and paired gains of shares of films: accuracy, sensitivity, …, flipped decisions, and F1 by way of one.

The exact binomial interval of Clopper and Pearson 1934 for films that come by patient. Each of its ends is that of a
beta distribution with one more case, right for the upper end and wrong for the lower one. Here the case is a patient
with as many films as one has on the average, the mean is the share with that patient, and the spread is that between
patients (a ratio estimate), which tells how many independent films there are in effect: Korn and Graubard's idea
(1998), with the added case of Fay and Feuer (1997), so that it holds for few errors and for none. Where each patient
has one film it is Clopper and Pearson's interval to the digit; nothing is resampled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xray_opt.intervals.patients import Patients
from xray_opt.intervals.records import Floats, Gain, Interval, Z, why_none
from xray_opt.metrics import Cases


@dataclass(frozen=True)
class Tally:
    """A share by patient; films are counted as parts of all those that the share is of.

    Attributes:
        hits: (P,) films that count, which sum to the share.
        films: (P,) films among which they are, which sum to 1.
        f1: the share is that of hits among the films that are positive or were called so, of which F1 is a function.
    """

    hits: Floats
    films: Floats
    f1: bool = False


def tally(hits: NDArray[np.bool_], among: NDArray[np.bool_], patients: Patients, f1: bool = False) -> Tally:
    """The share of (N,) ``hits`` in the films ``among`` which they are."""
    films = patients.number(among)
    whole = max(float(films.sum()), 1.0)
    return Tally(patients.number(hits & among) / whole, films / whole, f1)


def tallies(cases: Cases, patients: Patients, threshold: float) -> dict[str, Tally]:
    """Score → its tally, of the scores that are shares."""
    positive, called = cases.labels == 1, cases.probabilities >= threshold
    right, every = positive == called, np.ones(len(positive), dtype=bool)
    pairs = {"accuracy": (right, every), "precision": (right, called)}
    pairs |= {"sensitivity": (right, positive), "specificity": (right, ~positive)}
    pairs |= {f"sensitivity.{kind}": (called, members) for kind, members in cases.kinds.items()}
    found = {name: tally(hits, among, patients) for name, (hits, among) in pairs.items()}
    return found | {"f1": tally(right, positive | called, patients, f1=True)}


def together(seeds: Sequence[Tally]) -> Tally:
    """The mean over models of the same films."""
    hits, films = (np.mean([getattr(one, part) for one in seeds], axis=0) for part in ("hits", "films"))
    return Tally(hits, films, seeds[0].f1)


def share(one: Tally, value: float, having: Sequence[int]) -> Interval:
    """The interval of a share, at 0 and at 1 too.

    Args:
        value: the score; a mean over seeds of F1 is not quite F1 of the mean share, and the ends are moved by that.
        having: patients of each class that the score needs.
    """
    if why := why_none(value, having):
        return Interval(value, why=why)
    none = _upper(0 * one.films, one.films)
    # Where a patient with far more films than others errs, one error may leave less to doubt than none: it must not.
    low, high = min(1 - _upper(one.films - one.hits, one.films), 1 - none), max(_upper(one.hits, one.films), none)
    found = float(one.hits.sum()), low, high
    middle, low, high = (2 * end / (1 + end) for end in found) if one.f1 else found
    low, high = (min(max(end + value - middle, 0.0), 1.0) for end in (low, high))
    return Interval(value, min(low, value), max(high, value))


def _upper(hits: Floats, films: Floats) -> float:
    """Upper end: with one patient more, of whose films all are hits."""
    from scipy.special import betaincinv

    if not (hits < films).any():
        return 1.0
    mean = float(films[films > 0].mean())
    part = (float(hits.sum()) + mean) / (1 + mean)
    spread = (float(((hits - part * films) ** 2).sum()) + (mean * (1 - part)) ** 2) / (1 + mean) ** 2
    cases = part * (1 - part) / spread
    # Films that are spread unevenly may leave less than one hit in effect; a beta of less than one is too sure.
    return float(betaincinv(max(part * cases, 1.0), (1 - part) * cases, 0.975))


def share_gain(ours: Tally, theirs: Tally, value: float, having: Sequence[int]) -> Gain:
    """The paired gain of one share over another; after Agresti and Min 2005, by patient.

    As if there were two patients more, on one of whom the first model is better and on the other the second, each at
    half weight: with few patients on whom the two differ, the plain normal interval and p-value are too sure.
    """
    if why := why_none(value, having):
        return Gain(value, why=why)
    middle, spread = share_difference(ours, theirs, value)
    p = math.erfc(abs(middle) / spread / math.sqrt(2))
    low, high = (max(min(end, 1.0), -1.0) for end in (middle - Z * spread, middle + Z * spread))
    return Gain(value, min(low, value), max(high, value), p)


def share_difference(ours: Tally, theirs: Tally, value: float) -> tuple[float, float]:
    """Centre and standard error of a paired gain of ``value``, with the two patients of :func:`share_gain`."""
    parts = [one.hits - float(one.hits.sum()) * one.films for one in (ours, theirs)]
    films = (ours.films + theirs.films) / 2
    mean = float(films[films > 0].mean())
    spread = math.sqrt(float(((parts[0] - parts[1]) ** 2).sum()) + mean**2)
    return value / (1 + 2 * mean), spread / (1 + 2 * mean)
