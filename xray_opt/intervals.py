"""How far a score may be off: 95 % intervals from a bootstrap of patients, vectorised.

Films of one patient are alike, so patients are drawn, not films (cluster bootstrap, Field and Welsh 2007): a resample
is a count for each patient, and a score under a resample is that score with films weighted by counts. Thousands of
them are a few matrix products.

The interval is symmetric on the logit scale (the log scale for a loss), with the resamples' standard deviation: of the
methods tried this one covers best near 1 (docs/statistics.md). Where an interval would be invented it is not given:
see :class:`Interval`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from xray_opt.metrics import Cases, weighted_scores

Floats = NDArray[np.float64]
#: Score → (B,) values under (B, N) weights of the films.
Statistic = Callable[[Floats], Mapping[str, Floats]]

RESAMPLES = 2000
#: Share of resamples without a value (a class was not drawn) above which there is no interval.
MOST_UNDEFINED = 0.05
#: Patients below which there is no interval: of each class that a score needs.
LEAST = 10
#: Numbers in one block of weights: about 32 MB.
BLOCK = 4_000_000
Z = 1.959964
#: Scores that are no shares: any positive number. Scores that are sums of absolute values, which noise only adds to.
UNBOUNDED, BIASED = ("loss",), ("ece",)
#: Beginnings of the names of scores that are a share of films each.
SHARES = ("accuracy", "precision", "sensitivity", "specificity", "flipped", "prevalence")


@dataclass(frozen=True)
class Interval:
    """A score and its 95 % interval; ``why`` says why there is none.

    Attributes:
        value: the score itself, NaN where it is not defined.
        low, high: none where an interval is not to be had.
    """

    value: float
    low: float | None = None
    high: float | None = None
    why: str | None = None


class Patients:
    """Who was filmed: draws resamples of patients, the same ones whatever is scored.

    Attributes:
        codes: (N,) patient of each film, counted from 0.
        count: number of patients.
    """

    def __init__(self, groups: Sequence[str], seed: int = 0) -> None:
        names, codes = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
        self.codes: NDArray[np.int64] = codes.astype(np.int64)
        self.count = len(names)
        self.seed = seed

    def draws(self, resamples: int = RESAMPLES) -> Iterator[NDArray[np.int64]]:
        """(b, P) blocks of counts, ``resamples`` rows in all; equal seeds give equal rows."""
        chance = np.random.default_rng(self.seed)
        rows = max(1, BLOCK // max(len(self.codes), 1))
        for first in range(0, resamples, rows):
            block = min(rows, resamples - first)
            drawn = chance.integers(0, self.count, (block, self.count)) + self.count * np.arange(block)[:, None]
            yield np.bincount(drawn.ravel(), minlength=block * self.count).reshape(block, self.count)

    def having(self, films: ArrayLike) -> int:
        """Number of patients with one of these films; (N,) booleans."""
        return len(np.unique(self.codes[np.asarray(films, dtype=bool)]))


def resampled(statistic: Statistic, patients: Patients, resamples: int = RESAMPLES) -> dict[str, Floats]:
    """Score → (B,) values of a statistic over resamples of patients."""
    blocks = [statistic(counts[:, patients.codes].astype(np.float64)) for counts in patients.draws(resamples)]
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def scored(cases: Cases, patients: Patients, threshold: float, resamples: int = RESAMPLES) -> dict[str, Interval]:
    """Every score of ``cases`` at ``threshold`` with its interval; see ``metrics.weighted_scores``."""

    def statistic(weights: Floats) -> Mapping[str, Floats]:
        return weighted_scores(cases, weights, threshold)

    plain = statistic(np.ones((1, len(cases.labels))))
    drawn = resampled(statistic, patients, resamples)
    needs = having(cases, patients, threshold)
    return {name: interval(name, float(plain[name][0]), drawn[name], needs[name]) for name in plain}


def having(cases: Cases, patients: Patients, threshold: float) -> dict[str, list[int]]:
    """Score → how many patients there are of each class that the score needs."""
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
    """The interval of a score from its (B,) values over resamples.

    Args:
        name: of the score; it tells the scale.
        having: patients of each class that the score needs.
    """
    known = drawn[~np.isnan(drawn)]
    if why := _why_none(value, known.size / drawn.size, having):
        return Interval(value, why=why)
    if name in BIASED:
        return _without_bias(value, known)
    if name in UNBOUNDED and value > 0:
        factor = math.exp(Z * float(np.log(known).std(ddof=1)))
        return Interval(value, value / factor, value * factor)
    if value in (0.0, 1.0):
        return _at_the_edge(name, value, min(having))
    inside = _inside(np.append(known, value))
    logits = np.log(inside / (1 - inside))
    middle, half = float(logits[-1]), Z * float(logits[:-1].std(ddof=1))
    return Interval(value, sigmoid(middle - half), sigmoid(middle + half))


def _why_none(value: float, known: float, having: Sequence[int]) -> str | None:
    """Why a score or a gain has no interval, if it has none; ``known`` is the share of resamples that have a value."""
    if math.isnan(value):
        return "a class is missing that it needs"
    if min(having) < LEAST:
        return f"too few patients for an interval: {min(having)}, at least {LEAST} are needed"
    return "a class is missing in too many resamples" if known < 1 - MOST_UNDEFINED else None


def _inside(values: Floats) -> Floats:
    """Draws of exactly 0 or 1, which have no logit, moved to half way between the edge and the nearest draw."""
    low, high = values[values > 0].min(initial=1.0), values[values < 1].max(initial=0.0)
    return np.clip(values, low / 2, (1 + high) / 2)


def _without_bias(value: float, drawn: Floats) -> Interval:
    """Resampling adds to such a score what sampling has added already: the interval is moved down by that much."""
    middle, half = 2 * value - float(drawn.mean()), Z * float(drawn.std(ddof=1))
    return Interval(value, max(min(middle - half, value), 0.0), max(middle + half, value))


def _at_the_edge(name: str, value: float, patients: int) -> Interval:
    """Where all went right (or wrong) no resample differs. For a share the exact bound of so many patients is known."""
    if not name.startswith(SHARES):
        return Interval(value, why=f"it is {value:.0f} in every resample")
    bound = (0.05 / 2) ** (1 / patients)
    return Interval(value, bound, 1.0) if value else Interval(value, 0.0, 1 - bound)


def sigmoid(x: float) -> float:
    """The share whose logit is ``x``, without overflow."""
    return 0.5 * (1 + math.tanh(x / 2))


@dataclass(frozen=True)
class Gain:
    """How much one model is better than another on the same films, paired; ``p`` is of no difference, two-sided."""

    value: float
    low: float | None = None
    high: float | None = None
    p: float | None = None
    why: str | None = None


def gains(ours: Cases, theirs: Cases, patients: Patients, thresholds: tuple[float, float]) -> dict[str, Gain]:
    """Score → gain of ``ours`` over ``theirs`` (positive: ours is higher), from the same resamples for both.

    Args:
        thresholds: of ours and of theirs.
    """

    def statistic(weights: Floats) -> Mapping[str, Floats]:
        first = weighted_scores(ours, weights, thresholds[0])
        second = weighted_scores(theirs, weights, thresholds[1])
        return {name: first[name] - second[name] for name in first if name in second}

    plain = statistic(np.ones((1, len(ours.labels))))
    drawn = resampled(statistic, patients)
    needs = [having(cases, patients, threshold) for cases, threshold in zip((ours, theirs), thresholds, strict=True)]
    return {
        name: gain(float(plain[name][0]), drawn[name], [count for one in needs for count in one[name]])
        for name in plain
    }


def gain(value: float, drawn: Floats, having: Sequence[int]) -> Gain:
    """The gain from its (B,) values over resamples; normal, with their standard deviation.

    Args:
        having: patients of each class that the score needs, of both models.
    """
    known = drawn[~np.isnan(drawn)]
    if why := _why_none(value, known.size / drawn.size, having):
        return Gain(value, why=why)
    spread = float(known.std(ddof=1))
    if not spread:
        return Gain(value, why="it is the same in every resample")
    p = math.erfc(abs(value) / spread / math.sqrt(2))
    return Gain(value, value - Z * spread, value + Z * spread, p)


def json_ready(value: Any) -> Any:
    """Nested dicts and lists with none in place of NaN, which JSON has not."""
    if isinstance(value, Mapping):
        return {name: json_ready(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_ready(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
