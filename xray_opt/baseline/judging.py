"""Scores of contenders with several seeds each, and paired gains of one over the others. Pure numbers.

A contender's score is the mean over its seeds. It is uncertain in two ways that add up: other patients (of
shares and F1 the exact interval by patient, else a bootstrap of patients with the same resamples for every model) and
other seeds, s²/S with S - 1 degrees of freedom, as ``confirm`` has it. Spreads are not pooled: a linear probe's seeds
agree, those of a whole network do not. Gains are paired by patient and by seed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from xray_opt.confirm.judging import freedom_of, half_width
from xray_opt.intervals import (
    Gain,
    Interval,
    Patients,
    Tally,
    Z,
    bounded,
    gain,
    having,
    interval,
    resampled,
    share,
    share_difference,
    share_gain,
    sigmoid,
    tallies,
    together,
)
from xray_opt.metrics import Cases, weighted_scores

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Model:
    """What one trained model says of the films, and the threshold fixed for it on validation."""

    cases: Cases
    threshold: float


@dataclass(frozen=True)
class Contender:
    """The models of one way to train, one a seed; a trivial model has one."""

    key: str
    models: tuple[Model, ...]


@dataclass(frozen=True)
class _Drawn:
    """Score → (S,) values of the seeds, (B,) means over seeds under resamples of patients, patients it needs.

    Attributes:
        shares: of the scores that are shares, the mean over seeds.
    """

    values: Mapping[str, Floats]
    means: Mapping[str, Floats]
    having: Mapping[str, list[int]]
    shares: Mapping[str, Tally]


def compare(
    contenders: Sequence[Contender], patients: Patients, first: str
) -> tuple[dict[str, dict[str, Interval]], dict[str, dict[str, Gain]]]:
    """Key → scores of each contender, and key → gains of ``first`` over each other one.

    Args:
        patients: of the films; every model has its films in this order.
    """
    drawn = {one.key: _drawn(one, patients) for one in contenders}
    scores = {key: {name: _mean(name, one) for name in one.values} for key, one in drawn.items()}
    ours = drawn.get(first)
    if ours is None:
        return scores, {}
    gains = {
        key: {name: bounded(_gain(name, ours, one)) for name in ours.values if name in one.values}
        for key, one in drawn.items()
        if key != first
    }
    return scores, gains


def _drawn(one: Contender, patients: Patients) -> _Drawn:
    values, means, needs, shares = [], [], [], []
    for model in one.models:

        def statistic(weights: Floats, model: Model = model) -> Mapping[str, Floats]:
            # Without the loss: the runs keep probabilities, of which a very sure film's logit cannot be had back.
            scores = weighted_scores(model.cases, weights, model.threshold)
            return {name: score for name, score in scores.items() if name != "loss"}

        values.append(statistic(np.ones((1, len(model.cases.labels)))))
        means.append(resampled(statistic, patients))
        needs.append(having(model.cases, patients, model.threshold))
        shares.append(tallies(model.cases, patients, model.threshold))
    return _Drawn(
        {name: np.array([float(each[name][0]) for each in values]) for name in values[0]},
        {name: np.mean([each[name] for each in means], axis=0) for name in values[0]},
        {name: [min(counts) for counts in zip(*(each[name] for each in needs), strict=True)] for name in values[0]},
        {name: together([each[name] for each in shares]) for name in shares[0]},
    )


def _own(values: Floats) -> tuple[float, int]:
    """Variance of the mean of seeds, and its degrees of freedom; one value has none."""
    if len(values) < 2:
        return 0.0, 1
    # Less the first one: equal values have a spread of exactly 0.
    return float((values - values[0]).var(ddof=1)) / len(values), len(values) - 1


def _mean(name: str, one: _Drawn) -> Interval:
    """The interval over patients, widened by the seeds on its own scale: logit, plain for ECE."""
    values = one.values[name]
    mean = float(values.mean())
    found = (
        share(one.shares[name], mean, one.having[name])
        if name in one.shares
        else interval(name, mean, one.means[name], one.having[name])
    )
    own, freedom = _own(values)
    if found.low is None or found.high is None or own == 0 or not math.isfinite(own):
        return found
    if name == "ece" or not (found.low > 0 and found.high < 1):
        half = half_width(((found.high - found.low) / 2 / Z) ** 2, own, freedom)
        middle = (found.low + found.high) / 2
        return Interval(mean, max(min(middle - half, mean), 0.0), min(max(middle + half, mean), 1.0), rough=found.rough)
    own /= (mean * (1 - mean)) ** 2
    low, high = _logit(found.low), _logit(found.high)
    half = half_width(((high - low) / 2 / Z) ** 2, own, freedom)
    return Interval(mean, sigmoid((low + high) / 2 - half), sigmoid((low + high) / 2 + half))


def _gain(name: str, ours: _Drawn, theirs: _Drawn) -> Gain:
    """The gain over patients, widened by the seeds; a model of one seed is the same beside each of ours."""
    differences = ours.values[name] - theirs.values[name]
    needs = [*ours.having[name], *theirs.having[name]]
    value = float(differences.mean())
    shares = (ours.shares[name], theirs.shares[name]) if name in ours.shares and name != "f1" else None
    found = share_gain(*shares, value, needs) if shares else gain(value, ours.means[name] - theirs.means[name], needs)
    own, freedom = _own(differences)
    if found.low is None or found.high is None or own == 0 or not math.isfinite(own):
        return found
    # Of a share around its own centre, as without seeds: else seeds that all but agree would make it surer.
    middle, spread = share_difference(*shares, value) if shares else (value, (found.high - found.low) / 2 / Z)
    half = half_width(spread**2, own, freedom)
    low, high = middle - half, middle + half
    if shares:
        low, high = max(min(low, value), -1.0), min(max(high, value), 1.0)
    p = float(2 * student.sf(abs(middle) / math.sqrt(spread**2 + own), freedom_of(spread**2, own, freedom)))
    return replace(found, low=low, high=high, p=p)


def _logit(share: float) -> float:
    return math.log(share / (1 - share))
