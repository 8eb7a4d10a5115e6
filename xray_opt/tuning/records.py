"""Plain records of studies and trials for every other room, and what a trial hands to its objective."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from xray_opt.config import FIRST, OBJECTIVES, Config
from xray_opt.config.dotted import Scalar
from xray_opt.errors import Pruned, TrainingError
from xray_opt.tuning.pages import note_page
from xray_opt.tuning.rules import RULES

#: User attribute of a trial → what it holds; these are ours, everything else is a note of the objective.
OWNER, BEAT, ENDING, REASON, MESSAGE, UNBEGUN = "owner", "beat", "ending", "reason", "message", "unbegun"
RETRY_OF, RETRIES, KNOWN_GOOD = "retry_of", "retries", "known_good"
#: Reasons of a FAIL that says nothing of the trial: its worker died, or was told to stop.
RESUMABLE = ("worker-lost", "interrupted")
#: A trial that loses its worker so many times in a row is not tried again: it may be what kills them.
MOST_RETRIES = 2


@dataclass(frozen=True)
class TrialRecord:
    """One trial as the storage holds it.

    Attributes:
        state: ``COMPLETE``, ``PRUNED``, ``FAIL``, ``RUNNING`` or ``WAITING``.
        params: dotted name → value.
        value: validation F1 of the saved adapter; none unless complete.
        second: value of the study's second objective, where it has one.
        intermediate: epoch (from 1) → validation F1.
        notes: what the objective noted.
        reason: short kind of a failure.
    """

    number: int
    state: str
    params: Mapping[str, Scalar]
    value: float | None
    intermediate: Mapping[int, float]
    notes: Mapping[str, Any]
    started: datetime | None
    seconds: float | None
    reason: str | None = None
    message: str | None = None
    second: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self) | {"started": self.started and self.started.isoformat()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrialRecord:
        """The record that :meth:`to_dict` gave, also after a way through JSON."""
        started = values["started"] and datetime.fromisoformat(values["started"])
        intermediate = {int(epoch): value for epoch, value in values["intermediate"].items()}
        return cls(**{**values, "started": started, "intermediate": intermediate})


@dataclass(frozen=True)
class StudyRecord:
    """One study: its trials in order of their numbers, and what was noted on it."""

    name: str
    trials: tuple[TrialRecord, ...]
    notes: Mapping[str, Any]

    @property
    def objectives(self) -> tuple[str, ...]:
        """Names of what was optimised: validation F1, and perhaps a second."""
        return tuple((self.notes.get(RULES) or {}).get("objectives") or (FIRST,))

    @property
    def second(self) -> str | None:
        """The second objective's name, if there is one."""
        return self.objectives[1] if len(self.objectives) > 1 else None

    @property
    def best(self) -> TrialRecord | None:
        """Complete trial of highest value; of equals the one of better second objective, then the earliest."""
        return next(iter(self._by_value()), None)

    @property
    def front(self) -> tuple[TrialRecord, ...]:
        """The Pareto front, highest F1 first: complete trials of which no other is better in one objective and as good
        in the other. With one objective the best trial alone."""
        found: list[TrialRecord] = []
        for trial in self._by_value():
            if found and (trial.value, trial.second) != (found[-1].value, found[-1].second):
                if self._gain(trial) <= self._gain(found[-1]):
                    continue
            elif found and trial.second is None:
                continue
            found.append(trial)
        return tuple(found)

    @property
    def ranked(self) -> tuple[TrialRecord, ...]:
        """Complete trials: those of the front, then the others, each by F1, second objective and number."""
        front = {trial.number for trial in self.front}
        return tuple(sorted(self._by_value(), key=lambda trial: trial.number not in front))

    @property
    def listed(self) -> tuple[TrialRecord, ...]:
        """All trials as tables show them: ranked ones, then pruned ones, then the rest."""
        others = sorted(self.trials, key=lambda trial: (trial.state != "PRUNED", trial.number))
        return (*self.ranked, *(trial for trial in others if trial.state != "COMPLETE"))

    def _by_value(self) -> list[TrialRecord]:
        done = [trial for trial in self.trials if trial.state == "COMPLETE" and trial.value is not None]
        # A NaN, which no search stores, is put last.
        worth = {
            trial.number: (trial.value != trial.value, -(trial.value or 0.0), -self._gain(trial)) for trial in done
        }
        return sorted(done, key=lambda trial: (*worth[trial.number], trial.number))

    def _gain(self, trial: TrialRecord) -> float:
        """The second objective, the higher the better."""
        if self.second is None or trial.second is None:
            return 0.0
        return -trial.second if OBJECTIVES.get(self.second) == "minimize" else trial.second

    def count(self, state: str) -> int:
        """Number of trials in a state."""
        return sum(trial.state == state for trial in self.trials)

    @property
    def counted(self) -> int:
        """COMPLETE and PRUNED: what ``--trials`` counts."""
        return self.count("COMPLETE") + self.count("PRUNED")

    def resumable(self) -> set[int]:
        """Numbers of the trials whose checkpoint may still be needed: those that are not over, or will be tried again,
        and those that they resume."""
        by_number = {trial.number: trial for trial in self.trials}
        taken = {trial.notes.get(RETRY_OF) for trial in self.trials}
        found: set[int] = set()
        for trial in self.trials:
            lost = trial.reason in RESUMABLE and trial.number not in taken
            if trial.state in ("RUNNING", "WAITING") or (lost and _is_retried(trial)):
                number: int | None = trial.number
                while number in by_number and number not in found:
                    found.add(number)
                    number = by_number[number].notes.get(RETRY_OF)
        return found

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        plain = {"name": self.name, "notes": dict(self.notes), "trials": [trial.to_dict() for trial in self.trials]}
        return plain | ({"front": [trial.number for trial in self.front]} if self.second else {})


def _is_retried(trial: TrialRecord) -> bool:
    return int(trial.notes.get(RETRIES, 0)) + int(trial.reason == "worker-lost") <= MOST_RETRIES


@dataclass(frozen=True)
class Tally:
    """How a call of ``OpenStudy.tune`` ended; ``stopped`` is ``done``, ``timeout`` or ``nothing to do``.

    ``front`` is the Pareto front of a study with two objectives.
    """

    asked: int
    complete: int
    pruned: int
    failed: int
    started_now: int
    best: TrialRecord | None
    stopped: str
    front: tuple[TrialRecord, ...] = ()


@dataclass(frozen=True)
class Crew:
    """The workers of one call: a name that tells them from others, and the trials that were over when it began."""

    name: str
    before: frozenset[int]


@dataclass(frozen=True)
class Outcome:
    """What an objective returns: validation F1, notes kept with the trial, the value of the second objective."""

    value: float
    notes: Mapping[str, Any] = field(default_factory=dict)
    second: float | None = None


class TrialTaken(TrainingError):
    """Another worker took this trial for lost and ended it: what goes on here is discarded."""

    reason = "worker-lost"

    @classmethod
    def of(cls, number: int) -> TrialTaken:
        """The error of this trial."""
        return cls(f"trial {number} was taken for lost and ended by another worker")


@dataclass(frozen=True)
class TrialContext:
    """A running trial as its objective sees it.

    Attributes:
        checkpoint: where the objective keeps its own checkpoint; the worker of a trial that it resumes may live still.
        earlier: the checkpoints of the trials that this one resumes, by their numbers, the last one first.
        retry_of: number of the lost trial that this one resumes.
    """

    number: int
    params: Mapping[str, Scalar]
    config: Config
    checkpoint: Path
    earlier: Mapping[int, Path]
    retry_of: int | None
    trial: optuna.Trial = field(repr=False)
    patient: Callable[[Callable[[], Any]], Any] = field(repr=False)

    def report(self, epoch: int, value: float) -> None:
        """Report an epoch's value; at the last epoch there is nothing left to prune.

        Raises:
            Pruned: the pruner gives the trial up.
            TrialTaken: another worker ended the trial.
            StudyError: the storage stayed away.
        """
        self.replay(epoch, value)
        if self._alone and epoch < self.config.training.epochs and self.patient(self.trial.should_prune):
            raise Pruned(epoch)

    def replay(self, epoch: int, value: float) -> None:
        """Report an epoch that was trained before the trial was lost; never prunes."""
        if self._alone:
            self._store(lambda: self.trial.report(value, epoch))
        else:  # which Optuna refuses, as no pruner reads it; people do
            self._store(lambda: self.trial.storage.set_trial_intermediate_value(self.trial._trial_id, epoch, value))

    @property
    def _alone(self) -> bool:
        """Whether F1 is the only objective."""
        return len(self.trial.study.directions) == 1

    def note(self, key: str, value: Any) -> None:
        """Keep ``value`` (JSON-ready) with the trial at once."""
        self._store(lambda: self.trial.set_user_attr(key, value))

    def link(self, page: str) -> None:
        """Keep the URL of the trial's run in MLflow with the trial, and in its note in optuna-dashboard."""
        self._store(lambda: note_page(self.trial, page))

    def _store(self, action: Callable[[], None]) -> None:
        try:
            self.patient(action)
        except optuna.exceptions.UpdateFinishedTrialError as error:
            raise TrialTaken.of(self.number) from error


def checkpoint_name(identity: object, number: int) -> str:
    """The file of a trial's checkpoint, without suffix: studies of one name in two storages may share a folder."""
    return f"{str(identity)[:8]}-trial-{number:05d}"


Objective = Callable[[TrialContext], Outcome]


def record_of(trial: FrozenTrial) -> TrialRecord:
    """The plain record of Optuna's frozen trial."""
    over = trial.datetime_start is not None and trial.datetime_complete is not None
    seconds = (trial.datetime_complete - trial.datetime_start).total_seconds() if over else None  # type: ignore[operator]
    values = list(trial.values or ()) if trial.state == TrialState.COMPLETE else []
    ours = (OWNER, BEAT, ENDING, REASON, MESSAGE, UNBEGUN)
    notes = {key: value for key, value in trial.user_attrs.items() if key not in ours}
    return TrialRecord(
        number=trial.number,
        state=trial.state.name,
        params=dict(trial.params),
        value=values[0] if values else None,
        intermediate=dict(trial.intermediate_values),
        notes=notes,
        started=trial.datetime_start,
        seconds=seconds,
        reason=trial.user_attrs.get(REASON),
        message=trial.user_attrs.get(MESSAGE),
        second=values[1] if len(values) > 1 else None,
    )


def study_record(study: optuna.Study) -> StudyRecord:
    """The plain record of a study."""
    trials = tuple(record_of(trial) for trial in study.get_trials(deepcopy=False))
    return StudyRecord(study.study_name, trials, dict(study.user_attrs))
