"""Ends trials so that a kill between two steps loses nothing, and queues lost ones again.

How a trial ends is written down (attribute ``ending``) before its state changes, because a finished trial takes no
attributes any more. Whoever finds a RUNNING trial of a dead worker ends it as written, or as ``worker-lost``.

A trial's owner is stored under the study's lock right after the trial is asked for. So a RUNNING trial without owner,
seen under the lock, belongs to a worker that died in between.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from xray_opt.tuning.owners import is_dead
from xray_opt.tuning.records import (
    CHECKPOINT_OF,
    ENDING,
    KNOWN_GOOD,
    MESSAGE,
    OWNER,
    REASON,
    RESUMABLE,
    RETRIES,
    RETRY_OF,
    TrialRecord,
    record_of,
)

#: A trial that loses its worker so many times in a row is not tried again: it may be what kills them.
MOST_RETRIES = 2


@dataclass(frozen=True)
class Ending:
    """How a trial ends: ``state`` is COMPLETE (with its value), PRUNED or FAIL; ``notes`` are kept with it."""

    state: str
    value: float | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)


def failed(reason: str, message: str) -> Ending:
    """The ending of a failed trial."""
    return Ending("FAIL", notes={REASON: reason, MESSAGE: " ".join(message.split())[:500]})


def end(study: optuna.Study, number: int, trial_id: int, ending: Ending) -> bool:
    """Write down how a trial ends, then end it; False where another worker took and ended it before.

    May be called again after a failure of the storage, whatever the first call got done.
    """
    storage = study._storage
    try:
        if ENDING not in storage.get_trial(trial_id).user_attrs:
            storage.set_trial_user_attr(trial_id, ENDING, asdict(ending))
        for key, value in ending.notes.items():
            storage.set_trial_user_attr(trial_id, key, value)
        study.tell(number, ending.value, state=TrialState[ending.state])
    except (optuna.exceptions.UpdateFinishedTrialError, ValueError):
        trial = storage.get_trial(trial_id)
        if not trial.state.is_finished():
            raise
        return _as_json(trial.user_attrs.get(ENDING)) == _as_json(asdict(ending))
    return True


def _as_json(value: Any) -> str:
    """For comparing: NaN is not equal to itself, its JSON is."""
    return json.dumps(value, sort_keys=True)


def reap(study: optuna.Study, lost: Callable[[TrialRecord], None]) -> None:
    """End RUNNING trials of dead workers; call under the study's lock.

    ``lost`` is told of each ``worker-lost`` one before its state changes: if this process dies too, the next one tells
    it again.
    """
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if not is_dead(trial.user_attrs.get(OWNER)):
            continue
        if written := trial.user_attrs.get(ENDING):
            end(study, trial.number, trial._trial_id, Ending(**written))
            continue
        lost(record_of(trial))
        ending = failed("worker-lost", "the worker of this trial ended without a word")
        end(study, trial.number, trial._trial_id, ending)


def end_interrupted(study: optuna.Study, worker: str) -> list[FrozenTrial]:
    """End what a worker of this process still holds (Ctrl-C); call under the study's lock. Gives the trials ended."""
    held = [
        trial
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        if trial.user_attrs.get(OWNER) is None or trial.user_attrs[OWNER].get("worker") == worker
    ]
    for trial in held:
        written = trial.user_attrs.get(ENDING)
        ending = Ending(**written) if written else failed("interrupted", "stopped by the user")
        end(study, trial.number, trial._trial_id, ending)
    return held


def requeue(study: optuna.Study) -> None:
    """Queue every lost or interrupted trial again, once; call under the study's lock.

    Looks at what the storage holds, not at what was just reaped: a kill between FAIL and the new trial loses nothing.
    """
    trials = study.get_trials(deepcopy=False)
    taken = {trial.user_attrs.get(RETRY_OF) for trial in trials}
    for trial in trials:
        if trial.state != TrialState.FAIL or trial.user_attrs.get(REASON) not in RESUMABLE or trial.number in taken:
            continue
        params = trial.system_attrs.get("fixed_params", {}) | trial.params
        retries = trial.user_attrs.get(RETRIES, 0) + (trial.user_attrs[REASON] == "worker-lost")
        if not params or retries > MOST_RETRIES:
            continue
        origin = trial.user_attrs.get(CHECKPOINT_OF, trial.number)
        attrs = {RETRY_OF: trial.number, CHECKPOINT_OF: origin, RETRIES: retries}
        if KNOWN_GOOD in trial.user_attrs:
            attrs[KNOWN_GOOD] = trial.user_attrs[KNOWN_GOOD]
        study.enqueue_trial(params, user_attrs=attrs)
