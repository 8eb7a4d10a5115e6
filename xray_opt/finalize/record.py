"""What a finalized model is reported with: plain records that go through JSON and come back equal."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from xray_opt.intervals import Gain, Interval, json_ready, with_nan
from xray_opt.leaderboard import Opening
from xray_opt.robustness import Condition, Goal, Robustness
from xray_opt.scoring import Baseline, Level, Subgroup


@dataclass(frozen=True)
class Changed:
    """What changed films cost the model, in short; the whole suite is an artifact of its run.

    Attributes:
        films: how many were changed: those that could be read.
        worst: the change that flips most decisions.
    """

    films: int
    worst: Condition
    goals: tuple[Goal, ...]

    @classmethod
    def of(cls, suite: Robustness) -> Changed:
        """The short of a suite."""
        return cls(suite.films, suite.worst_case, suite.goals)


@dataclass(frozen=True)
class Final:
    """The scores of one model on the test split.

    Attributes:
        run: MLflow run of the model.
        threshold, temperature: as fixed on validation.
        rule: how the threshold was chosen.
        baselines: trivial models, that of the highest AUC first; the headline is the gain over it.
        openings: how often the study's test split had been opened, this time included.
        looks: how often labels of these films were looked at, for models of whatever study, as test films or as films
            of another folder; the same.
        others: those that this study did not note, a line each: they were for other studies, or for none.
        sensitivity: the one that the threshold was to reach on validation; none for that of best F1.
        subgroups: scores of parts of the films, from the same opening.
        robustness: what changed films cost, where they were scored in it too.
    """

    model: str
    study: str
    run: str
    trial: int | None
    rule: str
    threshold: float
    temperature: float
    image: Level
    patient: Level
    baselines: tuple[Baseline, ...]
    opening: Opening
    openings: int
    looks: int = 1
    others: tuple[str, ...] = ()
    sensitivity: float | None = None
    subgroups: tuple[Subgroup, ...] = ()
    robustness: Changed | None = None

    @property
    def headline(self) -> Gain:
        """Gain in AUC over the best trivial model."""
        return self.baselines[0].gains["auc"]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; NaN becomes none."""
        plain: dict[str, Any] = json_ready(asdict(self))
        return plain | {
            "headline": json_ready(asdict(self.headline)) | {"over": self.baselines[0].name, "score": "auc"}
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Final:
        """The record that :meth:`to_dict` gave."""
        own = {field.name: values[field.name] for field in dataclasses.fields(cls) if field.name in values}
        own |= {"others": tuple(own.get("others", ())), "subgroups": tuple(map(_subgroup, own.get("subgroups", ())))}
        own |= {"image": _level(own["image"]), "patient": _level(own["patient"]), "opening": Opening(**own["opening"])}
        own |= {"robustness": _changed(own.get("robustness"))}
        return cls(**own | {"baselines": tuple(_baseline(item) for item in own["baselines"])})


def _baseline(values: Mapping[str, Any]) -> Baseline:
    gains = {name: Gain(**with_nan(item)) for name, item in values["gains"].items()}
    return Baseline(values["name"], values["threshold"], _level(values["image"]), gains)


def _changed(values: object) -> Changed | None:
    """Records of before kept only whether changed films were scored: nothing of them is known here."""
    if not isinstance(values, Mapping):
        return None
    worst = dict(values["worst"])
    worst |= {name: Interval(**with_nan(worst[name])) for name in ("auc", "f1", "flipped")}
    condition = Condition(**worst | {"auc_change": Gain(**with_nan(worst["auc_change"]))})
    goals = (Goal(**{**goal, "flipped": Interval(**with_nan(goal["flipped"]))}) for goal in values["goals"])
    return Changed(values["films"], condition, tuple(goals))


def _subgroup(values: Mapping[str, Any]) -> Subgroup:
    scores = {name: Interval(**with_nan(values[name])) for name in ("auc", "sensitivity", "specificity")}
    return Subgroup(**{**values, **scores})


def _level(values: Mapping[str, Any]) -> Level:
    return Level(**{**values, "scores": {name: Interval(**with_nan(item)) for name, item in values["scores"].items()}})
