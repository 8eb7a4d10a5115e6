"""What a report is made of: plain records that others have gathered. Nothing in this room reads a store or a film."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xray_opt.leaderboard import Opening
from xray_opt.tuning import StudyRecord

#: Records of ``evaluate --robustness`` by split; the sheet of ``explain`` and its table.
ROBUST = {"val": "robustness-val.json", "test": "robustness-test.json"}
SHEET, EXPLAINED = "explain-val/explain.png", "explain-val/explain.csv"
#: Artifacts of the chosen model's run that sections read, from ``Evidence.files``; those that show films.
ARTIFACTS: tuple[str, ...] = (*ROBUST.values(), SHEET, EXPLAINED)
SHOWING_FILMS = (SHEET, EXPLAINED)


@dataclass(frozen=True)
class Predictions:
    """What one model said of N films.

    Attributes:
        labels: (N,) in {0, 1}.
        probabilities: (N,) calibrated.
        groups: patient of each film.
    """

    labels: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    groups: tuple[str, ...]


@dataclass(frozen=True)
class Chosen:
    """The model that the study chose.

    Attributes:
        run: its MLflow run.
        why: by what it was chosen, as the end of a sentence.
        threshold: calibrated probability from which a film is called pneumonia.
        settings: every setting of its run by dotted name.
        versions: its registered versions, in words.
    """

    run: str
    trial: int | None
    why: str
    threshold: float | None = None
    temperature: float | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    versions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Split:
    """Films of one split, by class."""

    name: str
    films: int
    patients: int
    normal: int
    pneumonia: int


@dataclass(frozen=True)
class Evidence:
    """All records of one study. Whatever is missing was not recorded, and the page says how to record it.

    Attributes:
        made: when the records were read.
        importances: param → share for F1 (PED-ANOVA); empty where too few trials are complete.
        importances_second: the same for the study's second objective, if it has one.
        final: the record of ``finalize`` for the chosen model (``Final.to_dict``).
        validation, test: the chosen model's predictions; those of test as ``finalize`` recorded them.
        splits: train, val, test.
        shortcut: score of the shortcut screen → value.
        audit: the last audit of the study's split on this machine (``Audit.to_dict``).
        environment: what the chosen run says of where it ran, by name.
        hosts: machine → number of the study's runs that it did.
        files: artifact of the chosen run (those of ``ARTIFACTS`` that it has) → content.
    """

    study: StudyRecord
    made: str
    version: str
    importances: Mapping[str, float] = field(default_factory=dict)
    importances_second: Mapping[str, float] = field(default_factory=dict)
    openings: tuple[Opening, ...] = ()
    chosen: Chosen | None = None
    final: Mapping[str, Any] | None = None
    validation: Predictions | None = None
    test: Predictions | None = None
    splits: tuple[Split, ...] = ()
    shortcut: Mapping[str, float] = field(default_factory=dict)
    audit: Mapping[str, Any] | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    hosts: Mapping[str, int] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def confirmation(self) -> Mapping[str, Any] | None:
        """The verdict of ``confirm`` (``Confirmation.to_dict``)."""
        return self.study.notes.get("confirmation")

    @property
    def rules(self) -> Mapping[str, Any]:
        """What must not change within the study: ``fixed`` settings, ``space``, ``seed``."""
        return self.study.notes.get("rules") or {}

    @property
    def params(self) -> tuple[str, ...]:
        """The names of all searched settings that a trial had."""
        return tuple(sorted({name for trial in self.study.trials for name in trial.params}))

    @property
    def chosen_params(self) -> tuple[str, ...]:
        """The searched settings that the chosen model's trial had: a condition may have left others out."""
        chosen = self.chosen.trial if self.chosen else None
        own = [trial.params for trial in self.study.trials if trial.number == chosen]
        return tuple(sorted(own[0])) if own else self.params

    @property
    def logarithmic(self) -> frozenset[str]:
        """The params that were searched on a logarithmic scale."""
        return frozenset(item["name"] for item in self.rules.get("space", ()) if item.get("log"))

    @property
    def categorical(self) -> frozenset[str]:
        """The params that were searched as choices, whatever their values are."""
        return frozenset(item["name"] for item in self.rules.get("space", ()) if item.get("kind") == "categorical")
