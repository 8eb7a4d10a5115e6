"""What a report is made of: plain records that others have gathered. Nothing in this room reads a store or a film."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xray_opt.dataset import LABELS
from xray_opt.errors import printable
from xray_opt.leaderboard import Opening, look_of
from xray_opt.ledger import OUTSIDE_RECORDS, TRIVIAL_RECORD, Look
from xray_opt.tuning import StudyRecord

#: Records of ``evaluate --robustness`` by split; the sheet of ``explain`` and its table.
ROBUST = {"val": "robustness-val.json", "test": "robustness-test.json"}
SHEET, EXPLAINED = "explain-val/explain.png", "explain-val/explain.csv"
#: Artifacts of the chosen model's run that sections read, from ``Evidence.files``; those that show films.
ARTIFACTS: tuple[str, ...] = (*ROBUST.values(), TRIVIAL_RECORD, SHEET, EXPLAINED)
#: Records of ``evaluate --split all``, one a set of other people's films.
OUTSIDE = OUTSIDE_RECORDS
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
        threshold: calibrated probability from which a film is called the positive class.
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
    negative: int
    positive: int


@dataclass(frozen=True)
class Evidence:
    """All records of one study. Whatever is missing was not recorded, and the page says how to record it.

    Attributes:
        made: when the records were read.
        importances: param → share for F1 (PED-ANOVA); empty where too few trials are complete.
        importances_second: the same for the study's second objective, if it has one.
        looks: every look at the study's test films that is known, for whatever study's model, oldest first.
        final: the record of ``finalize`` for the chosen model (``Final.to_dict``).
        validation, test: the chosen model's predictions; those of test as ``finalize`` recorded them.
        splits: train, val, test.
        shortcut: score of the shortcut screen → value.
        audit: the last audit of the study's split on this machine (``Audit.to_dict``).
        environment: what the chosen run says of where it ran, by name.
        hosts: machine → number of the study's runs that it did.
        files: artifact of the chosen run (those of ``ARTIFACTS`` that it has, and those that start with ``OUTSIDE``) →
            content.
        no_trivial: why no trivial models stand beside the model on validation, where they do not; no film is named.
    """

    study: StudyRecord
    made: str
    version: str
    importances: Mapping[str, float] = field(default_factory=dict)
    importances_second: Mapping[str, float] = field(default_factory=dict)
    openings: tuple[Opening, ...] = ()
    looks: tuple[Look, ...] = ()
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
    no_trivial: str = ""

    @property
    def all_looks(self) -> tuple[Look, ...]:
        """``looks``; where none are told, the study's own openings."""
        return self.looks or tuple(look_of(one, self.study.name) for one in self.openings)

    @property
    def confirmation(self) -> Mapping[str, Any] | None:
        """The verdict of ``confirm`` (``Confirmation.to_dict``)."""
        return self.study.notes.get("confirmation")

    @property
    def rules(self) -> Mapping[str, Any]:
        """What must not change within the study: ``fixed`` settings, ``space``, ``seed``."""
        return self.study.notes.get("rules") or {}

    @property
    def classes(self) -> tuple[str, str]:
        """What the negative and the positive class are called, in small letters as in running text."""
        fixed = self.rules.get("fixed") or {}
        negative, positive = (fixed.get(f"data.{what}") for what in ("negative", "positive"))
        return printable(str(negative or LABELS[0])).lower(), printable(str(positive or LABELS[1])).lower()

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


def command_of(evidence: Evidence, verb: str) -> str:
    """The command that goes on with a study: the file that it was started with is not among its records."""
    return f"xray-opt {verb} --study FILE --name {shlex.quote(evidence.study.name)}"
