"""What changes of the films cost a model: scores, the paired change of AUC, flipped decisions, goals, shortcuts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xray_opt.intervals import (
    LEAST,
    Gain,
    Interval,
    Patients,
    bounded,
    gain,
    interval,
    resampled,
    share,
    tallies,
    tally,
)
from xray_opt.metrics import Cases, weighted_scores

Floats = NDArray[np.float64]
#: Share of decisions that re-compression, and a cut of 10 %, may flip.
MOST_FLIPPED = 0.02
#: Goal → beginning of the names of the changes that it is about.
GOALS = {"re-compression": "JPEG", "a cut of 10 %": "edges cut by 10 %"}
#: Loss of AUC by a painted border or painted corners that is certain only to be flagged above this.
LEAST_LOSS = 0.02
AS_IT_IS = "as they are"
HIDDEN, LUNGS = ("border painted out", "corners painted out"), "lungs painted out"


@dataclass(frozen=True)
class Condition:
    """A model on the films under one change; all intervals are over patients.

    Attributes:
        auc, f1: scores under the change, F1 at the fixed threshold.
        auc_change: AUC under the change minus AUC of the films as they are, paired.
        flipped: share of films whose decision at the threshold is another one.
    """

    name: str
    auc: Interval
    f1: Interval
    auc_change: Gain
    flipped: Interval


@dataclass(frozen=True)
class Goal:
    """A goal and whether it is met: ``met``, ``not met``, or ``not told apart by the interval``.

    Attributes:
        flipped: the largest share of flipped decisions among the changes it is about.
    """

    what: str
    limit: float
    flipped: Interval
    verdict: str


@dataclass(frozen=True)
class Robustness:
    """The whole suite.

    Attributes:
        films, patients: how many were read.
        plain: scores of the films as they are; nothing changes and nothing flips there.
        conditions: one a perturbation.
        masks: one a painted part of the film, the corners among them.
        worst: name of the perturbation that flips most decisions, among equals the one of lowest AUC.
        shortcuts: one line a finding: what the model reads outside of the lungs.
        unread: films that could not be read any more, with the reason.
    """

    films: int
    patients: int
    threshold: float
    plain: Condition
    conditions: tuple[Condition, ...]
    masks: tuple[Condition, ...]
    worst: str
    goals: tuple[Goal, ...]
    shortcuts: tuple[str, ...]
    unread: tuple[str, ...] = ()

    @property
    def worst_case(self) -> Condition:
        """The condition that is named ``worst``."""
        return next(one for one in self.conditions if one.name == self.worst)

    def told(self) -> str:
        """The worst case in a line, with intervals and the threshold that its decisions were made at."""
        one = self.worst_case
        auc, flipped = _told(one.auc), _told(one.flipped, 100, 1)
        return f"{one.name}: AUC {auc}, {flipped} % flipped at threshold {self.threshold:.4f}"

    def metrics(self, split: str) -> dict[str, float]:
        """The few numbers that are logged as metrics: ``robust.val.worst_flipped``, …"""
        worst = self.worst_case
        found = {"worst_flipped": worst.flipped.value, "worst_auc": min(one.auc.value for one in self.conditions)}
        found |= {f"flipped_{name}": goal.flipped.value for name, goal in zip(("jpeg", "cut"), self.goals, strict=True)}
        return {f"robust.{split}.{name}": value for name, value in found.items() if value == value}


def _told(one: Interval, factor: float = 1, digits: int = 3) -> str:
    value = f"{factor * one.value:.{digits}f}"
    if one.low is None or one.high is None:
        return value
    return f"{value} ({factor * one.low:.{digits}f} to {factor * one.high:.{digits}f})"


def judge(
    names: Sequence[str],
    masks: Sequence[str],
    probabilities: Floats,
    labels: NDArray[np.int64],
    whose: Patients,
    threshold: float,
    unread: Sequence[str] = (),
) -> Robustness:
    """Judge (1 + changes, N) ``probabilities``, the first row of films as they are, the others named by ``names``.

    Args:
        names: of the changes; ``masks`` are those that hide a part of the film.
        threshold: from which a film is called pneumonia; fixed before.
    """
    found = _conditions((AS_IT_IS, *names), probabilities, labels, whose, threshold)
    plain, rest = found[0], found[1:]
    perturbed = tuple(one for one in rest if one.name not in masks)
    hiding = tuple(one for one in rest if one.name in (*HIDDEN, *masks))
    worst = max(perturbed, key=lambda one: (one.flipped.value, -np.nan_to_num(one.auc.value)))
    enough = min(whose.having(labels == label) for label in (0, 1)) >= LEAST
    goals = tuple(
        _goal(what, [one for one in perturbed if one.name.startswith(start)]) for what, start in GOALS.items()
    )
    return Robustness(
        films=len(labels),
        patients=whose.count,
        threshold=threshold,
        plain=plain,
        conditions=perturbed,
        masks=hiding,
        worst=worst.name,
        goals=goals,
        shortcuts=tuple(_shortcuts(hiding, enough)),
        unread=tuple(unread),
    )


def _conditions(
    names: Sequence[str], probabilities: Floats, labels: NDArray[np.int64], whose: Patients, threshold: float
) -> list[Condition]:
    """All of them under the same resamples of patients."""
    cases = [Cases(labels, row) for row in probabilities]
    flips = (probabilities >= threshold) != (probabilities[:1] >= threshold)

    def statistic(weights: Floats) -> Mapping[str, Floats]:
        values: dict[str, Floats] = {}
        for number, one in enumerate(cases):
            scores = weighted_scores(one, weights, threshold)
            values |= {f"auc.{number}": scores["auc"], f"f1.{number}": scores["f1"]}
            values[f"change.{number}"] = scores["auc"] - values["auc.0"]
        return values

    plain = statistic(np.ones((1, len(labels))))
    drawn = resampled(statistic, whose)
    both, every = [whose.having(labels == 1), whose.having(labels == 0)], np.ones(len(labels), dtype=bool)

    def condition(number: int, name: str) -> Condition:
        values = {score: float(plain[f"{score}.{number}"][0]) for score in ("auc", "f1", "change")}
        f1 = share(tallies(cases[number], whose, threshold)["f1"], values["f1"], both[:1])
        flipped = share(tally(flips[number], every, whose), float(flips[number].mean()), [whose.count])
        area = interval("auc", values["auc"], drawn[f"auc.{number}"], both)
        change = bounded(gain(values["change"], drawn[f"change.{number}"], both))
        return Condition(name, area, f1, change, flipped)

    return [condition(number, name) for number, name in enumerate(names)]


def _goal(what: str, about: Sequence[Condition]) -> Goal:
    """Met where every interval lies below the limit, not met where one lies above."""
    worst = max(about, key=lambda one: one.flipped.value)
    ends = [(one.flipped.low, one.flipped.high) for one in about]
    verdict = "not told apart by the interval"
    if any(low is not None and low > MOST_FLIPPED for low, _ in ends):
        verdict = "not met"
    elif all(high is not None and high < MOST_FLIPPED for _, high in ends):
        verdict = "met"
    return Goal(what, MOST_FLIPPED, worst.flipped, verdict)


def _shortcuts(masks: Sequence[Condition], enough: bool) -> list[str]:
    """What the painted films tell: a loss where no lungs were hidden, and an AUC above chance where they were.

    Where there are ``enough`` patients for an interval and yet a change has none, all resamples agree: its value is
    both ends.
    """
    lines = []
    for one in masks if enough else ():
        where = one.name.removesuffix(" painted out")
        change, auc = one.auc_change, one.auc
        high = change.value if change.high is None else change.high
        if one.name in HIDDEN and high < -LEAST_LOSS:
            lines.append(f"it reads the {where}: AUC {change.value:+.3f} without, at least {-high:.3f} less")
        if one.name == LUNGS and auc.low is not None and auc.low > 0.5:
            lines.append(f"it tells the class without the lungs: AUC {auc.value:.3f}, at least {auc.low:.3f}")
    return lines
