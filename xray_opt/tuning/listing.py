"""A storage that lists a study's trials once, for as long as nobody else may write.

Optuna lists all trials several times for one claim and one draw: to look for queued ones, for the space, and for each
part of it. Every listing reads all that run anew from the database, while all other workers wait for the lock.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from copy import copy, deepcopy
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState


class Listing:
    """All of a storage, but what it lists is kept inside ``once``.

    Trials that this process makes there, or whose state it changes, are read anew; other processes do neither, as they
    wait for the lock. Notes and params that are written meanwhile are not seen in the list.
    """

    def __init__(self, storage: BaseStorage) -> None:
        self._storage = storage
        self._kept: dict[int, dict[int, FrozenTrial]] | None = None

    @classmethod
    def before(cls, study: optuna.Study) -> tuple[optuna.Study, Listing]:
        """The study with a listing before its storage; ``study`` itself stays as it is."""
        listing, listed = cls(study._storage), copy(study)
        listed._storage = listing  # type: ignore[assignment]
        return listed, listing

    @contextmanager
    def once(self) -> Iterator[None]:
        """Inside the block a study is listed once; call under its lock."""
        self._kept = {}
        try:
            yield
        finally:
            self._kept = None

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """See ``optuna.storages.BaseStorage.get_all_trials``."""
        if self._kept is None:
            return self._storage.get_all_trials(study_id, deepcopy=deepcopy, states=states)
        if study_id not in self._kept:
            listed = self._storage.get_all_trials(study_id, deepcopy=False)
            self._kept[study_id] = {trial._trial_id: trial for trial in listed}
        trials = [trial for trial in self._kept[study_id].values() if states is None or trial.state in states]
        return _deep(trials) if deepcopy else trials

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """See ``optuna.storages.BaseStorage.create_new_trial``."""
        trial_id = self._storage.create_new_trial(study_id, template_trial=template_trial)
        self._refresh(trial_id, study_id)
        return trial_id

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """See ``optuna.storages.BaseStorage.set_trial_state_values``."""
        done = self._storage.set_trial_state_values(trial_id, state, values)
        for study_id, trials in (self._kept or {}).items():
            if trial_id in trials:
                self._refresh(trial_id, study_id)
        return done

    def _refresh(self, trial_id: int, study_id: int) -> None:
        if self._kept is not None and study_id in self._kept:
            self._kept[study_id][trial_id] = self._storage.get_trial(trial_id)

    def __getattr__(self, name: str) -> Any:
        """All the rest is the storage's own."""
        return getattr(self._storage, name)


def _deep(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    return deepcopy(trials)
