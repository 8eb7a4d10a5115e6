"""Finds trials whose worker is gone, ends them, and queues them again so that nothing is lost.

A trial's owner (host, boot, process, its start time) is stored under the study's lock right after the trial is asked
for. So a RUNNING trial without owner, seen under the lock, belongs to a worker that died in between.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

import optuna
import psutil
from optuna.trial import FrozenTrial, TrialState

from xray_opt.tuning.records import (
    CHECKPOINT_OF,
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


def this_process() -> dict[str, Any]:
    """What tells this process from every other one, also across reboots and reused process numbers."""
    return {
        "host": socket.gethostname(),
        "boot": round(psutil.boot_time()),
        "pid": os.getpid(),
        "started": round(psutil.Process().create_time(), 2),
    }


def is_dead(owner: dict[str, Any] | None) -> bool:
    """Whether the owner can be known to be gone; a worker of another host is taken to live."""
    if owner is None:
        return True
    if owner["host"] != socket.gethostname():
        return False
    if abs(owner["boot"] - psutil.boot_time()) > 60:
        return True
    try:
        process = psutil.Process(owner["pid"])
        same = abs(process.create_time() - owner["started"]) < 1
        return not same or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def reap(study: optuna.Study, lost: Callable[[TrialRecord], None]) -> None:
    """End RUNNING trials of dead workers as FAIL ``worker-lost``; call under the study's lock.

    ``lost`` is told of each before its state changes: if this process dies too, the next one tells it again.
    """
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if is_dead(trial.user_attrs.get(OWNER)):
            lost(record_of(trial))
            end_failed(study, trial, "worker-lost", "the worker of this trial ended without a word")


def end_failed(study: optuna.Study, trial: FrozenTrial, reason: str, message: str) -> None:
    """FAIL with its reason; a trial that is over already is left as it is."""
    storage = study._storage
    try:
        storage.set_trial_user_attr(trial._trial_id, REASON, reason)
        storage.set_trial_user_attr(trial._trial_id, MESSAGE, message)
        storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
    except optuna.exceptions.UpdateFinishedTrialError:
        return


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
