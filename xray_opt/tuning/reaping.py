"""Ends trials so that a kill between two steps loses nothing, and queues lost ones again.

How a trial ends is written down (attribute ``ending``) before its state changes, because a finished trial takes no
attributes any more. Whoever finds a RUNNING trial of a dead worker ends it as written, or as ``worker-lost``.

A trial's owner is stored under the study's lock right after the trial is asked for. So a RUNNING trial without owner,
seen under the lock, belongs to a worker that died in between.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from xray_opt.config import redacted
from xray_opt.tuning.records import (
    ENDING,
    KNOWN_GOOD,
    MESSAGE,
    MOST_RETRIES,
    OWNER,
    REASON,
    RESUMABLE,
    RETRIES,
    RETRY_OF,
    UNBEGUN,
    Outcome,
    TrialRecord,
    record_of,
)


@dataclass(frozen=True)
class Ending:
    """How a trial ends: ``state`` is COMPLETE (with its values), PRUNED or FAIL; ``notes`` are kept with it."""

    state: str
    value: float | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)
    second: float | None = None

    @property
    def values(self) -> list[float] | None:
        """What Optuna is told."""
        return [value for value in (self.value, self.second) if value is not None] or None


def ending_of(outcome: Outcome) -> Ending:
    """The ending of a trial that came to its own end; one without a finite value failed."""
    values = outcome.value, *(() if outcome.second is None else (outcome.second,))
    if all(map(math.isfinite, values)):
        return Ending("COMPLETE", outcome.value, json.loads(json.dumps(dict(outcome.notes))), outcome.second)
    return failed("nan", f"its value is {' and '.join(map(str, values))}")


def failed(reason: str, message: str) -> Ending:
    """The ending of a failed trial."""
    return Ending("FAIL", notes={REASON: reason, MESSAGE: " ".join(redacted(message).split())[:500]})


def end(study: optuna.Study, number: int, trial_id: int, ending: Ending) -> bool:
    """Write down how a trial ends, then end it; False where another worker took it: what was written first holds.

    May be called again after a failure of the storage, whatever the first call got done; call under the study's lock.
    """
    storage = study._storage
    written = storage.get_trial(trial_id).user_attrs.get(ENDING)
    try:
        if written is None:
            written = asdict(ending)
            storage.set_trial_user_attr(trial_id, ENDING, written)
        first = Ending(**written)
        for key, value in first.notes.items():
            storage.set_trial_user_attr(trial_id, key, value)
        study.tell(number, first.values, state=TrialState[first.state])
    except (optuna.exceptions.UpdateFinishedTrialError, ValueError):
        trial = storage.get_trial(trial_id)
        if not trial.state.is_finished():
            raise
        written = trial.user_attrs.get(ENDING)
    return _as_json(written) == _as_json(asdict(ending))


def _as_json(value: Any) -> str:
    """For comparing: NaN is not equal to itself, its JSON is."""
    return json.dumps(value, sort_keys=True)


def reap(study: optuna.Study, lost: Callable[[TrialRecord], None], dead: Callable[[FrozenTrial], bool]) -> None:
    """End RUNNING trials of dead workers; call under the study's lock.

    ``lost`` is told of each ``worker-lost`` one before its state changes, so that a storage that fails right after, and
    is asked again, has none untold.
    """
    for trial in running(study):
        if not dead(trial):
            continue
        if written := trial.user_attrs.get(ENDING):
            end(study, trial.number, trial._trial_id, Ending(**written))
            continue
        lost(record_of(trial))
        ending = failed("worker-lost", "the worker of this trial ended without a word")
        end(study, trial.number, trial._trial_id, ending)


def end_own(
    study: optuna.Study, worker: str, message: str, reason: str = "interrupted", begun: bool = True
) -> list[FrozenTrial]:
    """End what a worker holds but does not run: it stops, or its claim broke and the trial was never begun; call under
    the study's lock.

    Gives the trials ended; they are tried again, as ``reason`` is one of ``RESUMABLE``.
    """
    notes = {} if begun else {UNBEGUN: True}
    held = [trial for trial in running(study) if trial.user_attrs.get(OWNER, {}).get("worker") == worker]
    for trial in held:
        written = trial.user_attrs.get(ENDING)
        fresh = failed(reason, message)
        ending = Ending(**written) if written else replace(fresh, notes={**fresh.notes, **notes})
        end(study, trial.number, trial._trial_id, ending)
    return held


def running(study: optuna.Study) -> list[FrozenTrial]:
    """The study's RUNNING trials."""
    return study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))


def is_retried(trial: FrozenTrial) -> bool:
    """Whether a trial ended only because its worker did, so that it is, or need not be, tried again."""
    resumable = trial.state == TrialState.FAIL and trial.user_attrs.get(REASON) in RESUMABLE
    return resumable and _retries(trial) <= MOST_RETRIES


def requeue(study: optuna.Study, lost: Callable[[TrialRecord], None]) -> None:
    """Queue every lost or interrupted trial again, once; call under the study's lock.

    Looks at what the storage holds, not at what was just reaped: a kill between FAIL and the new trial loses nothing.
    ``lost`` is told of each interrupted one before: its worker may not have been able to close what it left open.
    """
    for trial in to_retry(study.get_trials(deepcopy=False)):
        if trial.user_attrs[REASON] == "interrupted":
            lost(record_of(trial))
        attrs = {RETRY_OF: trial.number, RETRIES: _retries(trial)}
        if KNOWN_GOOD in trial.user_attrs:
            attrs[KNOWN_GOOD] = trial.user_attrs[KNOWN_GOOD]
        study.enqueue_trial(_kept(trial), user_attrs=attrs)


def to_retry(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The lost and interrupted trials that no other one resumes yet; one that never got any params needs no retry."""
    taken = {trial.user_attrs.get(RETRY_OF) for trial in trials}
    retried = [trial for trial in trials if is_retried(trial) and trial.number not in taken]
    return [trial for trial in retried if _kept(trial)]


def is_over(study: optuna.Study, number: int) -> bool:
    """Whether a lost trial is tried no more: too many workers were lost on it, or it never got any params."""
    trials = study.get_trials(deepcopy=False)
    resumed = {trial.user_attrs.get(RETRY_OF) for trial in trials} | {trial.number for trial in to_retry(trials)}
    return number not in resumed


def resumed_by(trials: Sequence[FrozenTrial], number: int | None) -> tuple[int, ...]:
    """A trial, that which it resumes, and so on to the first."""
    found: list[int] = []
    while number is not None and number < len(trials) and number not in found:
        found.append(number)
        number = trials[number].user_attrs.get(RETRY_OF)
    return tuple(found)


def _kept(trial: FrozenTrial) -> dict[str, Any]:
    """The params that a trial is tried again with: those that it was queued with, and those that it drew.

    What a claim that broke drew does not count: where its lock was lost, others drew meanwhile and neither saw the
    other's point.
    """
    asked = dict(trial.system_attrs.get("fixed_params", {}))
    return asked if trial.user_attrs.get(UNBEGUN) else asked | trial.params


def _retries(trial: FrozenTrial) -> int:
    """How many workers in a row were lost on this trial and on those that it resumes."""
    return int(trial.user_attrs.get(RETRIES, 0)) + int(trial.user_attrs[REASON] == "worker-lost")
