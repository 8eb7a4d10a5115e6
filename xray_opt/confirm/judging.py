"""Judges settings by retrainings that the search has not seen: means, intervals, gaps, and who wins. Pure numbers.

A confirmed score is the mean F1 of a setting's new seeds on the validation films. It is uncertain in two ways that add
up: other patients (the exact interval of a share, which is there at F1 of 1 and 0 too; paired, the same resamples of
patients for both settings) and other seeds, with Welch and Satterthwaite's degrees of freedom. The spread of seeds is
pooled over the settings: two or three seeds of one setting tell too little of it, and the winner would be the one whose
seeds agree by luck. Re-drawn splits share films, so their spread, pooled too, is corrected after Nadeau and Bengio
2003. A setting counts for the lower end of its interval, of the lower one where there are two.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from xray_opt.config.dotted import Scalar
from xray_opt.intervals import Gain, Interval, Patients, Z, bounded, json_ready, share, tally, together

Floats = NDArray[np.float64]
Booleans = NDArray[np.bool_]


@dataclass(frozen=True)
class Retrained:
    """One retraining: its run, validation F1 at 0.5, and on the study's own split which films it called pneumonia."""

    run: str
    f1: float
    called: Booleans | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Candidate:
    """One of the search's best settings with its retrainings; ``search`` is the F1 that the search saw."""

    trial: int
    params: Mapping[str, Scalar]
    search: float
    seeds: tuple[Retrained, ...]
    splits: tuple[Retrained, ...] = ()
    failed: str | None = None


@dataclass(frozen=True)
class _Spread:
    """Variance of one training's F1 within a setting, with its degrees of freedom."""

    variance: float
    freedom: int


@dataclass(frozen=True)
class Setting:
    """What retraining says of a setting.

    Attributes:
        confirmed: mean F1 of the new seeds.
        resplit: mean F1 over re-drawn splits; none where none were asked for.
        gap: the winner's curse: search score minus confirmed score.
        lower: what the setting counts for; none where that is not known, and ``confirmed.why`` says why.
        run: MLflow run of the seed with the median F1, which stands for the setting.
    """

    trial: int
    params: Mapping[str, Scalar]
    search: float
    confirmed: Interval
    resplit: Interval | None
    gap: Gain
    lower: float | None
    run: str
    seeds: tuple[float, ...]
    splits: tuple[float, ...]


@dataclass(frozen=True)
class Confirmation:
    """The verdict on a study's best settings, the search's best first.

    Attributes:
        winner, runner_up: trials of the highest and second highest lower end; none where there is none.
        lead: gain in confirmed F1 of the winner over the runner-up, paired by patient and seed.
    """

    study: str
    settings: tuple[Setting, ...]
    winner: int | None
    runner_up: int | None
    lead: Gain | None

    def of(self, trial: int) -> Setting:
        """The setting of a trial."""
        return next(one for one in self.settings if one.trial == trial)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        plain: dict[str, Any] = json_ready(asdict(self))
        return plain


def judge(
    study: str,
    candidates: Sequence[Candidate],
    labels: NDArray[np.int64],
    patients: Patients,
    films: tuple[int, int] = (1, 1),
) -> Confirmation:
    """Judge settings by their retrainings.

    Args:
        candidates: each that has not failed with at least 2 seeds, and with no splits or at least 2.
        labels: (N,) of the study's validation films; ``patients`` are those of the same films.
        films: number of training and of validation films, for re-drawn splits.
    """
    enough = [patients.having(labels == label) for label in (0, 1)]
    sound = [one for one in candidates if not one.failed]
    spreads = _pooled([one.seeds for one in sound]), _pooled([one.splits for one in sound if one.splits])
    certain = {one.trial: _over_patients(one, labels, patients, enough) for one in sound}
    settings = tuple(_setting(one, certain.get(one.trial), films, spreads) for one in candidates)
    # One that finds no pneumonia at all counts for 0, and wins nothing where all do.
    useful = [one for one in settings if one.lower is not None and one.confirmed.value > 0]
    known = sorted(useful, key=lambda one: -(one.lower or 0.0))
    winner, second = (known[place].trial if len(known) > place else None for place in (0, 1))
    lead = None
    if winner is not None and second is not None:
        first, other = (next(one for one in candidates if one.trial == trial) for trial in (winner, second))
        drawn = [_drawn(one, labels, patients) for one in (first, other)]
        lead = _lead(first, other, drawn[0] - drawn[1])
    return Confirmation(study, settings, winner, second, lead)


def _called(one: Candidate) -> list[Booleans]:
    return [seed.called for seed in one.seeds if seed.called is not None]


def _over_patients(one: Candidate, labels: NDArray[np.int64], patients: Patients, enough: Sequence[int]) -> Interval:
    """The mean F1 of a setting's seeds with its interval over patients alone."""
    truth = labels == 1
    shares = [tally(called & truth, called | truth, patients, f1=True) for called in _called(one)]
    return share(together(shares), float(np.mean([run.f1 for run in one.seeds])), enough)


def _drawn(one: Candidate, labels: NDArray[np.int64], patients: Patients) -> Floats:
    """(B,) mean F1 of a setting's seeds over resamples of patients; the same resamples for every setting."""
    truth = labels == 1
    called = np.stack(_called(one)).T
    parts = []
    for counts in patients.draws():
        weights = counts[:, patients.codes].astype(np.float64)
        positives = (weights @ truth)[:, None] + weights @ called
        hits = weights @ (called & truth[:, None])
        f1 = np.divide(2 * hits, positives, out=np.zeros_like(hits), where=positives > 0)
        parts.append(f1.mean(axis=1))
    return np.concatenate(parts)


def _pooled(groups: Sequence[Sequence[Retrained]]) -> _Spread:
    """The variance within groups: the squares of all of them by all their degrees of freedom."""
    values = [np.array([run.f1 for run in group]) for group in groups]
    freedom = sum(len(group) - 1 for group in values)
    # Less the first one: equal values have a spread of exactly 0.
    squares = sum(float((group - group[0]).var()) * len(group) for group in values)
    return _Spread(squares / freedom if freedom else 0.0, freedom)


def _setting(
    one: Candidate, certain: Interval | None, films: tuple[int, int], spreads: tuple[_Spread, _Spread]
) -> Setting:
    seeds, splits = (tuple(run.f1 for run in runs) for runs in (one.seeds, one.splits))
    if certain is None:
        nothing, gap = Interval(math.nan, why=one.failed), Gain(math.nan, why=one.failed)
        return Setting(one.trial, one.params, one.search, nothing, None, gap, None, "", seeds, splits)
    confirmed = _confirmed(certain, len(seeds), spreads[0])
    resplit = _resplit(np.array(splits), films, spreads[1]) if splits else None
    lower = confirmed.low
    if lower is not None and resplit is not None:
        lower = min(lower, resplit.value if resplit.low is None else resplit.low)
    middle = sorted(one.seeds, key=lambda run: run.f1)[(len(seeds) - 1) // 2]
    gap = _gap(one.search, np.array(seeds), spreads[0])
    return Setting(one.trial, one.params, one.search, confirmed, resplit, gap, lower, middle.run, seeds, splits)


def _confirmed(certain: Interval, seeds: int, spread: _Spread) -> Interval:
    """The interval over patients, widened by the seeds; each side on its own, as the one over patients is lopsided.

    Seeds are uncertain whatever patients say, so a side is at least as long as seeds alone make it: Welch's degrees of
    freedom would make it shorter where patients say more, and a setting with an error better off than one without.
    What seeds add below is taken off as a ratio: cut off at 0, very uncertain settings would all count alike.
    """
    if certain.low is None or certain.high is None:
        return certain
    own = spread.variance / seeds
    added = []
    for side in (certain.value - certain.low, certain.high - certain.value):
        whole = max(half_width((side / Z) ** 2, own, spread.freedom), half_width(0.0, own, spread.freedom))
        added.append(max(whole - side, 0.0))
    low = certain.low * math.exp(-added[0] / certain.low) if certain.low else 0.0
    return Interval(certain.value, low, min(certain.high + added[1], 1.0))


def half_width(patients: float, own: float, freedom: int) -> float:
    """Of a 95 % interval whose variance is that over patients plus an own one with these degrees of freedom."""
    return float(student.ppf(0.975, freedom_of(patients, own, freedom))) * math.sqrt(patients + own)


def freedom_of(patients: float, own: float, freedom: int) -> float:
    """Welch and Satterthwaite: the patients' part is known well, the own one from a few seeds."""
    return (patients + own) ** 2 / (own**2 / freedom) if own > 0 else math.inf


def _resplit(splits: Floats, films: tuple[int, int], spread: _Spread) -> Interval:
    mean = float(splits.mean())
    if not spread.variance:
        return Interval(mean, why="the splits have no spread to judge it by")
    train, val = films
    half = float(student.ppf(0.975, spread.freedom)) * math.sqrt(spread.variance * (1 / len(splits) + val / train))
    return Interval(mean, max(mean - half, 0.0), min(mean + half, 1.0))


def _gap(search: float, seeds: Floats, spread: _Spread) -> Gain:
    """On the same films: only the seeds are uncertain, of which the search's own was one."""
    value = search - float(seeds.mean())
    if not spread.variance:
        return Gain(value, why="the seeds have no spread to judge it by")
    error = math.sqrt(spread.variance * (1 + 1 / len(seeds)))
    half = float(student.ppf(0.975, spread.freedom)) * error
    p = float(2 * student.sf(abs(value) / error, spread.freedom))
    return bounded(Gain(value, value - half, value + half, p))


def _lead(first: Candidate, second: Candidate, drawn: Floats) -> Gain:
    differences = np.array([ours.f1 - theirs.f1 for ours, theirs in zip(first.seeds, second.seeds, strict=True)])
    value, patients = float(differences.mean()), float(drawn.var(ddof=1))
    own = float(differences.var(ddof=1)) / len(differences)
    if patients + own == 0:
        return Gain(value, why="both call every film alike")
    half = half_width(patients, own, len(differences) - 1)
    freedom = freedom_of(patients, own, len(differences) - 1)
    p = float(2 * student.sf(abs(value) / math.sqrt(patients + own), freedom))
    return bounded(Gain(value, value - half, value + half, p))
