"""A study's trials, best first, and how often its sealed test split was opened. Light: no torch, no MLflow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from xray_opt.config import Workspace
from xray_opt.tuning import StudyRecord, TrialRecord, amend, read_study

#: Study note that holds every opening of the test split.
OPENINGS = "test_openings"


@dataclass(frozen=True)
class Opening:
    """One opening of the sealed test split.

    Attributes:
        trial, run: whose model it was opened for, and that model's MLflow run.
        scores: at the threshold fixed on validation; empty where a kill came before them.
        command: the command line.
        by: ``evaluate``, ``finalize`` or ``baseline``.
    """

    who: str
    when: str
    why: str
    trial: int | None
    scores: Mapping[str, float] = field(default_factory=dict)
    command: str = ""
    run: str = ""
    by: str = "evaluate"
    own: bool = False

    def is_that_of(self, other: Opening) -> bool:
        """Whether both tell of one opening, with or without its scores."""
        return replace(self, scores={}) == replace(other, scores={})


@dataclass(frozen=True)
class Leaderboard:
    """A study's trials, best validation F1 first, with test scores of those whose test was opened.

    Of a study with two objectives ``second`` is the other one's name, and ``front`` are the trials of the Pareto front:
    they come first.
    """

    summary: str
    trials: tuple[TrialRecord, ...]
    openings: tuple[Opening, ...]
    second: str | None = None
    front: tuple[int, ...] = ()

    def table(self) -> tuple[list[str], list[list[object]]]:
        """Columns and rows; the reference's table, its test columns empty where the test is sealed."""
        names = sorted({name for trial in self.trials for name in trial.params})
        test = ("test.f1", "test.auc", "test.accuracy") if self.openings else ()
        # A retraining of a trial is opened under the trial's number, but its scores are not the trial's. A trial that
        # ended while MLflow was away does not know its run.
        scored = [opening for opening in self.openings if opening.scores]
        tested = {opening.run or opening.trial: opening.scores for opening in scored}
        own = {opening.trial: opening.scores for opening in scored if opening.own}
        columns = ["trial", "state", *names, "val F1", *((self.second, "front") if self.second else ()), "val AUC"]
        rows: list[list[object]] = [
            [t.number, t.state.lower(), *(t.params.get(name) for name in names), t.value]
            + ([t.second, "★" if t.number in self.front else ""] if self.second else [])
            + [t.notes.get("val.auc")]
            + [found.get(name) for name in test]
            for t in self.trials
            for found in [tested.get(t.notes.get("mlflow_run")) or own.get(t.number) or tested.get(t.number, {})]
        ]
        return columns + [name.replace(".", " ").replace("f1", "F1").replace("auc", "AUC") for name in test], rows

    def to_dict(self) -> dict[str, object]:
        """JSON-ready."""
        return {
            "summary": self.summary,
            "test_openings": [asdict(opening) for opening in self.openings],
            "trials": [trial.to_dict() for trial in self.trials],
        } | ({"second": self.second, "front": list(self.front)} if self.second else {})


def leaderboard(study: str, workspace: Workspace, storage: str | None = None) -> Leaderboard:
    """Trials of ``study``: complete ones by validation F1 (those of a front first), then pruned ones, then the rest.

    Raises:
        StudyError: no such study; the line names those there are.
    """
    record = read_study(study, workspace, storage)
    front = tuple(t.number for t in record.front) if record.second else ()
    summary = f"{record.count('COMPLETE')} complete, {record.count('PRUNED')} pruned, {record.count('FAIL')} failed"
    return Leaderboard(summary, record.listed, tuple(openings(record)), record.second, front)


def openings(study: StudyRecord) -> list[Opening]:
    """Every opening of the study's test split, oldest first."""
    return _from_note(study.notes.get(OPENINGS))


def note_opening(study: str, workspace: Workspace, storage: str | None, opening: Opening) -> list[Opening]:
    """Write an opening to a study and return all; a second note of the same opening takes the place of the first."""

    def with_it(note: Any) -> list[dict[str, Any]]:
        known = _from_note(note)
        if not any(one.is_that_of(opening) for one in known):
            known.append(opening)
        return [asdict(opening if one.is_that_of(opening) else one) for one in known]

    return _from_note(amend(study, workspace, OPENINGS, with_it, storage)[OPENINGS])


def _from_note(note: Any) -> list[Opening]:
    return [Opening(**item) for item in note or []]
