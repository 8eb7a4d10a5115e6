"""Every score of a model with its 95 % interval, and every paired gain.

Shares, F1 among them, have exact intervals by patient (:mod:`xray_opt.intervals.shares`). The others have a bootstrap
of patients: symmetric on the logit scale (the log scale for a loss), with the resamples' standard deviation, of the
methods tried the one that covers best near 1 (docs/statistics.md), and never nearer 0 or 1 than a perfect score's
(:mod:`xray_opt.intervals.edges`). Where an interval would be invented it is not given: see :class:`Interval`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from xray_opt.intervals.edges import nearest
from xray_opt.intervals.patients import RESAMPLES, Patients, resampled
from xray_opt.intervals.records import Floats, Gain, Interval, Z, bounded, sigmoid, why_none
from xray_opt.intervals.shares import share, share_gain, tallies
from xray_opt.metrics import Cases, weighted_scores

#: Scores that are no shares: any positive number. Scores that are sums of absolute values, which noise only adds to.
UNBOUNDED, BIASED = ("loss",), ("ece",)
#: Why there is no interval where resamples tell of no spread.
SAME = "it is the same in every resample"


def scored(cases: Cases, patients: Patients, threshold: float, resamples: int = RESAMPLES) -> dict[str, Interval]:
    """Every score of ``cases`` at ``threshold`` with its interval; see ``metrics.weighted_scores``."""
    drawn = resampled(lambda weights: weighted_scores(cases, weights, threshold), patients, resamples)
    return ends(cases, patients, threshold, drawn)


def ends(cases: Cases, patients: Patients, threshold: float, drawn: Mapping[str, Floats]) -> dict[str, Interval]:
    """As :func:`scored`, from the (B,) values of each score over resamples."""
    plain = weighted_scores(cases, np.ones(len(cases.labels)), threshold)
    needs, shares = having(cases, patients, threshold), tallies(cases, patients, threshold)
    return {
        name: share(shares[name], float(value[0]), needs[name])
        if name in shares
        else interval(name, float(value[0]), drawn[name], needs[name])
        for name, value in plain.items()
    }


def having(cases: Cases, patients: Patients, threshold: float) -> dict[str, list[int]]:
    """Score → how many patients there are of each class that the score needs; positives first."""
    needs = _needs(cases, threshold)
    return {name: [patients.having(some) for some in films] for name, films in needs.items()}


def _needs(cases: Cases, threshold: float) -> dict[str, list[NDArray[np.bool_]]]:
    """Score → the films of which it needs enough patients each."""
    every = np.ones(len(cases.labels), dtype=bool)
    positive, called = cases.labels == 1, cases.probabilities >= threshold
    both = [positive, ~positive]
    needs = {"f1": [positive], "auc": both, "auprc": both, "sensitivity": [positive], "specificity": [~positive]}
    needs |= {"accuracy": [every], "precision": [called], "loss": [every], "brier": [every], "ece": [every]}
    return needs | {f"sensitivity.{kind}": [members] for kind, members in cases.kinds.items()}


def interval(name: str, value: float, drawn: Floats, having: Sequence[int]) -> Interval:
    """The interval of a score that is no share from its (B,) values over resamples.

    Args:
        name: ``auc``, ``auprc``, ``brier``, ``ece`` or ``loss``; it tells the scale.
        having: patients of each class that the score needs; positives first.
    """
    known = drawn[~np.isnan(drawn)]
    if why := why_none(value, having, known.size / drawn.size):
        return Interval(value, why=why)
    sure = name in BIASED and not _spread(known)  # of films that are all right, or all wrong, as sure as can be
    if value in (0.0, 1.0) and (sure or name not in (*BIASED, *UNBOUNDED)):
        edge = nearest(name, having)
        return Interval(value, edge, 1.0) if value else Interval(value, 0.0, 1 - edge)
    if not _spread(known) and value:  # one answer for every film: an interval of no length would claim to know it
        return Interval(value, why=SAME)
    if name in BIASED:
        return _without_bias(value, known)
    if name in UNBOUNDED:
        return _of_a_loss(value, known)
    edge = nearest(name, having)
    inside = _inside(np.append(known, value))
    logits = np.log(inside / (1 - inside))
    middle, half = float(logits[-1]), Z * float(logits[:-1].std(ddof=1))
    return Interval(value, min(sigmoid(middle - half), edge), max(sigmoid(middle + half), 1 - edge))


def _inside(values: Floats) -> Floats:
    """Draws of exactly 0 or 1, which have no logit, moved to half way between the edge and the nearest draw."""
    low, high = values[values > 0].min(initial=1.0), values[values < 1].max(initial=0.0)
    return np.clip(values, low / 2, (1 + high) / 2)


def _of_a_loss(value: float, drawn: Floats) -> Interval:
    if value <= 0:
        return Interval(value, why="a loss has no upper limit, and all resamples have none of it")
    factor = math.exp(Z * float(np.log(drawn).std(ddof=1)))
    return Interval(value, value / factor, value * factor)


def _without_bias(value: float, drawn: Floats) -> Interval:
    """Resampling adds to such a score what sampling has added already: the interval is moved down by that much.

    The best of those tried, and yet not what it promises: it is marked as rough.
    """
    middle, half = 2 * value - float(drawn.mean()), Z * float(drawn.std(ddof=1))
    return Interval(value, max(min(middle - half, value), 0.0), max(middle + half, value), rough=True)


def gains(
    ours: Cases, theirs: Cases, patients: Patients, thresholds: tuple[float, float], resamples: int = RESAMPLES
) -> dict[str, Gain]:
    """Score → gain of ``ours`` over ``theirs`` (positive: ours is higher), from the same resamples for both.

    Args:
        thresholds: of ours and of theirs.
    """

    def statistic(weights: Floats) -> Mapping[str, Floats]:
        first = weighted_scores(ours, weights, thresholds[0])
        second = weighted_scores(theirs, weights, thresholds[1])
        return {name: first[name] - second[name] for name in first if name in second}

    plain = statistic(np.ones((1, len(ours.labels))))
    drawn = resampled(statistic, patients, resamples)
    pairs = list(zip((ours, theirs), thresholds, strict=True))
    needs = [having(cases, patients, threshold) for cases, threshold in pairs]
    shares = [tallies(cases, patients, threshold) for cases, threshold in pairs]
    found = {}
    for name, value in plain.items():
        counts = [count for one in needs for count in one[name]]
        if name in shares[0] and name != "f1":
            found[name] = share_gain(shares[0][name], shares[1][name], float(value[0]), counts)
        else:
            one = gain(float(value[0]), drawn[name], counts)
            found[name] = one if name in UNBOUNDED else bounded(one)
    return found


def gain(value: float, drawn: Floats, having: Sequence[int]) -> Gain:
    """The gain from its (B,) values over resamples; normal, with their standard deviation.

    Args:
        having: patients of each class that the score needs, of both models.
    """
    known = drawn[~np.isnan(drawn)]
    if why := why_none(value, having, known.size / drawn.size):
        return Gain(value, why=why)
    spread = _spread(known)
    if not spread:
        return Gain(value, why=SAME)
    p = math.erfc(abs(value) / spread / math.sqrt(2))
    return Gain(value, value - Z * spread, value + Z * spread, p)


def _spread(known: Floats) -> float:
    """Standard deviation over resamples; 0 where rounding alone moves them."""
    same = np.ptp(known) <= 1e-12 * max(float(np.abs(known).max()), 1.0)
    return 0.0 if same else float(known.std(ddof=1))
