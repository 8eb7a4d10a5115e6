"""What a finalized model is reported with: plain records that go through JSON and come back equal."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from xray_opt.intervals import Gain, Interval, json_ready
from xray_opt.leaderboard import Opening
from xray_opt.scoring import Level


@dataclass(frozen=True)
class Baseline:
    """A trivial model on the same films.

    Attributes:
        threshold: of best F1 on validation.
        gains: score → gain of the finalized model over this one, paired by patient.
    """

    name: str
    threshold: float
    image: Level
    gains: Mapping[str, Gain]


@dataclass(frozen=True)
class Final:
    """The scores of one model on the test split.

    Attributes:
        run: MLflow run of the model.
        threshold, temperature: as fixed on validation.
        rule: how the threshold was chosen.
        baselines: trivial models, that of the highest AUC first; the headline is the gain over it.
        openings: how often the study's test split had been opened, this time included.
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
        own = {name: values[name] for name in (field.name for field in dataclasses.fields(cls))}
        own |= {"image": _level(own["image"]), "patient": _level(own["patient"]), "opening": Opening(**own["opening"])}
        return cls(**own | {"baselines": tuple(_baseline(item) for item in own["baselines"])})


def _baseline(values: Mapping[str, Any]) -> Baseline:
    gains = {name: Gain(**_with_nan(item)) for name, item in values["gains"].items()}
    return Baseline(values["name"], values["threshold"], _level(values["image"]), gains)


def _level(values: Mapping[str, Any]) -> Level:
    return Level(**{**values, "scores": {name: Interval(**_with_nan(item)) for name, item in values["scores"].items()}})


def _with_nan(values: Mapping[str, Any]) -> dict[str, Any]:
    return {**values, "value": float("nan") if values["value"] is None else values["value"]}
