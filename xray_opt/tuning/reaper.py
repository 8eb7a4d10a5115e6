"""Finds the trials of dead workers in all studies of a database, whoever is at work on them, and queues them again."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import optuna
from optuna.storages import RDBStorage

from xray_opt.tuning.leases import Lease, Watch
from xray_opt.tuning.reaping import reap, requeue, running
from xray_opt.tuning.records import TrialRecord
from xray_opt.tuning.rules import DATA, IDENTITY, MIGRATING


@dataclass(frozen=True)
class _Watched:
    identity: str
    study: optuna.Study
    watch: Watch


class Reaper:
    """Looks again and again; studies that are not ours, or are only half copied, are left alone.

    MLflow is not asked: every call of ``tune`` brings its runs to the states of their trials, at its start and end.
    """

    def __init__(self, database: RDBStorage, lease: Lease, say: Callable[[str], None]) -> None:
        self._database = database
        self._lease = lease
        self._say = say
        self._watched: dict[str, _Watched] = {}

    def suspects(self) -> list[str]:
        """Names of the studies that may have a trial of a dead worker: only under their lock can that be told."""
        found = []
        ours = {}
        for summary in self._database.get_all_studies():
            name, attrs = summary.study_name, summary.user_attrs
            if attrs.get(IDENTITY) and attrs.get(DATA) and not attrs.get(MIGRATING):
                with suppress(KeyError):  # deleted meanwhile
                    ours[name] = self._known(name, str(attrs[IDENTITY]))
                    if self._has_dead(ours[name]):
                        found.append(name)
        self._watched = ours
        return found

    def _known(self, name: str, identity: str) -> _Watched:
        """A study that was deleted and made again under its name is another one."""
        known = self._watched.get(name)
        if known is None or known.identity != identity:
            study = optuna.load_study(study_name=name, storage=self._database)
            known = _Watched(identity, study, Watch(self._lease))
        return known

    @staticmethod
    def _has_dead(watched: _Watched) -> bool:
        held = running(watched.study)
        watched.watch.look(held)
        return any(watched.watch.is_dead(trial) for trial in held)

    def reap(self, name: str) -> None:
        """End the trials of dead workers and queue them again; call under the study's lock."""

        def lost(record: TrialRecord) -> None:
            self._say(f"study {name}: the worker of trial {record.number} is lost; the trial is queued again")

        watched = self._watched[name]
        with suppress(KeyError):
            if watched.study.user_attrs.get(IDENTITY) == watched.identity and self._has_dead(watched):
                reap(watched.study, lost, watched.watch.is_dead)
                requeue(watched.study, lambda record: None)
