"""What a comparison is reported with: plain records that go through JSON and come back equal."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from xray_opt.intervals import Gain, Interval, json_ready, with_nan
from xray_opt.leaderboard import Opening


@dataclass(frozen=True)
class Row:
    """One contender.

    Attributes:
        key: ``lora``, ``linear``, ``full``, or the name of a trivial model.
        scores: mean over seeds with its 95 % interval; empty where a training gave no result.
        thresholds: of best F1 on validation, of each seed.
        learning_rate, trainable, seconds: as trained; trained weights, wall time of a training (median of the seeds).
        runs: MLflow runs of the seeds; empty for trivial models.
        failed: why there are no scores.
    """

    key: str
    scores: Mapping[str, Interval]
    thresholds: tuple[float, ...] = ()
    learning_rate: float | None = None
    trainable: int | None = None
    seconds: float | None = None
    runs: tuple[str, ...] = ()
    failed: str | None = None


@dataclass(frozen=True)
class Comparison:
    """LoRA beside its rivals on one split.

    Attributes:
        trial: the trial whose settings LoRA has, and ``chosen_by`` how it was chosen.
        rows: LoRA, linear, full, then the trivial models, that of the highest AUC first.
        gains: key of another row → score → gain of LoRA over it, paired by patient and seed.
        opening: of the test split; none on validation.
        rates: learning rates that were tried for each rival.
    """

    study: str
    split: str
    trial: int
    chosen_by: str
    seeds: int
    films: int
    patients: int
    rows: tuple[Row, ...]
    gains: Mapping[str, Mapping[str, Gain]]
    opening: Opening | None = None
    rates: int | None = None

    def of(self, key: str) -> Row:
        """The row of a contender."""
        return next(row for row in self.rows if row.key == key)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; NaN becomes none."""
        plain: dict[str, Any] = json_ready(asdict(self))
        return plain

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Comparison:
        """The record that :meth:`to_dict` gave."""
        own = {field.name: values[field.name] for field in dataclasses.fields(cls) if field.name in values}
        opening = own["opening"] and Opening(**own["opening"])
        gains = {
            key: {name: Gain(**with_nan(item)) for name, item in scores.items()} for key, scores in own["gains"].items()
        }
        return cls(**own | {"opening": opening, "gains": gains, "rows": tuple(map(_row, own["rows"]))})


def _row(values: Mapping[str, Any]) -> Row:
    scores = {name: Interval(**with_nan(item)) for name, item in values["scores"].items()}
    return Row(**{**values, "scores": scores, **{name: tuple(values[name]) for name in ("thresholds", "runs")}})
