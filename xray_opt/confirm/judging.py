"""Judges settings by retrainings that the search has not seen: means, intervals, gaps, and who wins. Pure numbers.

A confirmed score is the mean F1 of a setting's new seeds on the validation films. It is uncertain in two ways that add
up: other patients (bootstrap of patients, the same resamples for every setting) and other seeds (their spread), with
Welch and Satterthwaite's degrees of freedom. Re-drawn splits share films, so their spread is corrected after Nadeau and
Bengio 2003. A setting counts for the lower end of its interval, of the lower one where there are two.
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
from xray_opt.intervals import LEAST, Gain, Interval, Patients, json_ready

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
class Setting:
    """What retraining says of a setting.

    Attributes:
        confirmed: mean F1 of the new seeds.
        resplit: mean F1 over re-drawn splits; none where none were asked for.
        gap: the winner's curse: search score minus confirmed score.
        lower: what the setting counts for; none where that is not known.
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
    failed: str | None = None


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
        labels: (N,) of the study's validation films; ``patients`` are those of the same films.
        films: number of training and of validation films, for re-drawn splits.
    """
    enough = [patients.having(labels == label) for label in (0, 1)]
    drawn = {one.trial: _drawn(one, labels, patients) for one in candidates if not one.failed}
    settings = tuple(_setting(one, drawn.get(one.trial), min(enough), films) for one in candidates)
    known = sorted((one for one in settings if one.lower is not None), key=lambda one: -(one.lower or 0.0))
    winner, second = (known[place].trial if len(known) > place else None for place in (0, 1))
    lead = None
    if winner is not None and second is not None:
        first, other = (next(one for one in candidates if one.trial == trial) for trial in (winner, second))
        lead = _lead(first, other, drawn[winner] - drawn[second])
    return Confirmation(study, settings, winner, second, lead)


def _drawn(one: Candidate, labels: NDArray[np.int64], patients: Patients) -> Floats:
    """(B,) mean F1 of a setting's seeds over resamples of patients; the same resamples for every setting."""
    truth = labels == 1
    called = np.stack([seed.called for seed in one.seeds if seed.called is not None]).T
    parts = []
    for counts in patients.draws():
        weights = counts[:, patients.codes].astype(np.float64)
        positives = (weights @ truth)[:, None] + weights @ called
        hits = weights @ (called & truth[:, None])
        f1 = np.divide(2 * hits, positives, out=np.zeros_like(hits), where=positives > 0)
        parts.append(f1.mean(axis=1))
    return np.concatenate(parts)


def _setting(one: Candidate, drawn: Floats | None, enough: int, films: tuple[int, int]) -> Setting:
    seeds, splits = (tuple(run.f1 for run in runs) for runs in (one.seeds, one.splits))
    if drawn is None:
        nothing = Interval(math.nan, why=one.failed)
        gap = Gain(math.nan, why=one.failed)
        return Setting(one.trial, one.params, one.search, nothing, None, gap, None, "", seeds, splits, one.failed)
    confirmed = _confirmed(np.array(seeds), drawn, enough)
    resplit = _resplit(np.array(splits), films) if splits else None
    lower = confirmed.low
    if lower is not None and resplit is not None:
        lower = min(lower, resplit.value if resplit.low is None else resplit.low)
    middle = sorted(one.seeds, key=lambda run: run.f1)[(len(seeds) - 1) // 2]
    gap = _gap(one.search, np.array(seeds))
    return Setting(one.trial, one.params, one.search, confirmed, resplit, gap, lower, middle.run, seeds, splits)


def _confirmed(seeds: Floats, drawn: Floats, enough: int) -> Interval:
    mean = float(seeds.mean())
    if enough < LEAST:
        return Interval(mean, why=f"too few patients for an interval: {enough} of a class, {LEAST} are needed")
    if not 0 < mean < 1:
        return Interval(mean, why=f"it is {mean:.0f} with every seed")
    if len(seeds) < 2:
        return Interval(mean, why="one seed says nothing of others")
    half = _half_width(float(drawn.var(ddof=1)), seeds) / (mean * (1 - mean))
    middle = math.log(mean / (1 - mean))
    low, high = (0.5 * (1 + math.tanh((middle + sign * half) / 2)) for sign in (-1, 1))
    return Interval(mean, low, high)


def _half_width(patients: float, seeds: Floats) -> float:
    """Of a 95 % interval whose variance is that over patients plus that of a mean of these values."""
    own = float(seeds.var(ddof=1)) / len(seeds)
    return _quantile(patients, own, len(seeds)) * math.sqrt(patients + own)


def _quantile(patients: float, own: float, seeds: int) -> float:
    return float(student.ppf(0.975, _freedom(patients, own, seeds)))


def _freedom(patients: float, own: float, seeds: int) -> float:
    """Welch and Satterthwaite: the patients' part is known well, the seeds' from a few."""
    return (patients + own) ** 2 / (own**2 / (seeds - 1)) if own > 0 else math.inf


def _resplit(splits: Floats, films: tuple[int, int]) -> Interval:
    mean = float(splits.mean())
    if len(splits) < 2 or splits.std() == 0:
        return Interval(mean, why="the splits have no spread to judge it by")
    train, val = films
    half = float(student.ppf(0.975, len(splits) - 1) * splits.std(ddof=1) * math.sqrt(1 / len(splits) + val / train))
    return Interval(mean, max(mean - half, 0.0), min(mean + half, 1.0))


def _gap(search: float, seeds: Floats) -> Gain:
    """On the same films: only the seeds are uncertain."""
    value = search - float(seeds.mean())
    if len(seeds) < 2 or seeds.std() == 0:
        return Gain(value, why="the seeds have no spread to judge it by")
    error = float(seeds.std(ddof=1)) / math.sqrt(len(seeds))
    half = float(student.ppf(0.975, len(seeds) - 1)) * error
    return Gain(value, value - half, value + half, float(2 * student.sf(abs(value) / error, len(seeds) - 1)))


def _lead(first: Candidate, second: Candidate, drawn: Floats) -> Gain:
    differences = np.array([ours.f1 - theirs.f1 for ours, theirs in zip(first.seeds, second.seeds, strict=True)])
    value, patients = float(differences.mean()), float(drawn.var(ddof=1))
    own = float(differences.var(ddof=1)) / len(differences)
    if patients + own == 0:
        return Gain(value, why="both call every film alike")
    half = _half_width(patients, differences)
    freedom = _freedom(patients, own, len(differences))
    p = float(2 * student.sf(abs(value) / math.sqrt(patients + own), freedom))
    return Gain(value, value - half, value + half, p)
