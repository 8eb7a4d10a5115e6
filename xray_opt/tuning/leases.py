"""Signs of life of workers that cannot be looked at: on other hosts, in other containers, or stuck.

While a worker runs a trial, a thread of its own counts up an attribute of that trial. Whoever watches measures by its
own monotonic clock for how long the count stands still, so the hosts' clocks need not agree.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial

from xray_opt.tuning.owners import is_dead, is_elsewhere
from xray_opt.tuning.records import BEAT, OWNER

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Lease:
    """Seconds between two signs of life, and seconds of silence after which a worker is taken for dead."""

    every: float = 10.0
    patience: float = 60.0


@contextmanager
def beating(storage: BaseStorage, trial_id: int, every: float) -> Iterator[None]:
    """Give signs of life for a trial until the block is left; never in the way of what happens inside."""
    over = threading.Event()
    arguments = (storage, trial_id, every, over)
    threading.Thread(target=_beat, args=arguments, name="xray-opt-lease", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _beat(storage: BaseStorage, trial_id: int, every: float, over: threading.Event) -> None:
    for count in itertools.count(1):
        if over.wait(every):
            return
        try:
            storage.set_trial_user_attr(trial_id, BEAT, count)
        except (optuna.exceptions.UpdateFinishedTrialError, KeyError):
            return  # ended by another worker, or deleted: the objective learns of it at its next report
        except Exception as error:  # a database that restarts must not end this thread
            log.debug("no sign of life for trial %d: %s", trial_id, error)


@dataclass(frozen=True)
class _Seen:
    """What was seen of a worker: its trials and their counts, seconds without a change, whether one was seen."""

    mark: tuple[tuple[int, int], ...]
    silent: float
    moved: bool


class Watch:
    """Judges the owners of RUNNING trials; ``look`` again and again, then ask.

    One look adds at most a quarter of the patience to a worker's silence: when a database comes back after an hour,
    its workers have time to say that they live.
    """

    def __init__(self, lease: Lease) -> None:
        self._lease = lease
        self._seen: dict[str, _Seen] = {}
        self._looked = -float("inf")

    def look(self, running: Sequence[FrozenTrial]) -> None:
        """Take in the RUNNING trials of the study as they are now."""
        now = time.monotonic()
        gap, self._looked = now - self._looked, now
        marks: dict[str, list[tuple[int, int]]] = {}
        for trial in running:
            marks.setdefault(_worker(trial), []).append((trial.number, trial.user_attrs.get(BEAT, 0)))
        self._seen = {worker: self._judged(worker, tuple(sorted(mark)), gap) for worker, mark in marks.items()}

    def _judged(self, worker: str, mark: tuple[tuple[int, int], ...], gap: float) -> _Seen:
        known = self._seen.get(worker)
        if known is None or known.mark != mark:
            # A change since a look long ago says nothing of now.
            return _Seen(mark, 0.0, moved=gap < self._lease.patience / 2)
        return _Seen(mark, known.silent + min(gap, self._lease.patience / 4), known.moved)

    def is_dead(self, trial: FrozenTrial) -> bool:
        """Whether the trial's worker is known to be gone, or was silent for too long."""
        return is_dead(trial.user_attrs.get(OWNER)) or self._silence(trial) >= self._lease.patience

    def is_unsure(self, trial: FrozenTrial) -> bool:
        """Whether nothing is known of the trial's worker yet: waiting will tell."""
        owner, seen = trial.user_attrs.get(OWNER), self._seen.get(_worker(trial))
        if owner is None or seen is None or self.is_dead(trial) or not is_elsewhere(owner):
            return False
        return not seen.moved or seen.silent >= self._lease.patience / 2

    def _silence(self, trial: FrozenTrial) -> float:
        seen = self._seen.get(_worker(trial))
        return seen.silent if seen else 0.0


def _worker(trial: FrozenTrial) -> str:
    owner = trial.user_attrs.get(OWNER) or {}
    return str(owner.get("worker", f"nobody-{trial.number}"))
