"""Finds the trials of dead workers, whoever is at work on their study, and queues them again.

The proxy does so for all studies of its database, each call of ``tune`` for its own: a claim looks, too, but where
trials take hours none may come for hours.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import optuna
from optuna.storages import RDBStorage

from xray_opt.errors import StudyError, one_line
from xray_opt.tuning.leases import Lease, Watch
from xray_opt.tuning.locks import study_lock
from xray_opt.tuning.reaping import is_over, reap, requeue, running
from xray_opt.tuning.records import TrialRecord
from xray_opt.tuning.rules import DATA, IDENTITY, MIGRATING
from xray_opt.tuning.storage import database_of
from xray_opt.tuning.urls import FAULTS

#: Seconds that the end of a call waits for its thread, which ends by itself.
ENDING = 1.0


class _Watched:
    """One study and what was seen of its workers."""

    def __init__(self, database: RDBStorage, name: str, identity: str, lease: Lease) -> None:
        self.identity = identity
        self._study = optuna.load_study(study_name=name, storage=database)
        self._watch = Watch(lease)
        self.untold: dict[int, TrialRecord] = {}

    def has_dead(self) -> bool:
        """Whether a trial may be one of a dead worker: only under the study's lock can that be told."""
        held = running(self._study)
        self._watch.look(held)
        return any(self._watch.is_dead(trial) for trial in held)

    def reap(self) -> None:
        """End the trials of dead workers and queue them again, all ``untold`` then; call under the study's lock."""
        if self._study.user_attrs.get(IDENTITY) == self.identity and self.has_dead():
            reap(self._study, self._note, self._watch.is_dead)
            requeue(self._study, self._note)

    def _note(self, record: TrialRecord) -> None:
        self.untold[record.number] = record

    def tell(self, say: Callable[[str], None], lost: Callable[[TrialRecord], None]) -> None:
        """Tell of each trial that was ended, or queued again, once; what became of it is known by now.

        Args:
            say: told of those whose worker was lost.
        """
        while self.untold:
            number = min(self.untold)
            if self.untold[number].state == "RUNNING":
                then = "tried no more" if is_over(self._study, number) else "queued again"
                say(f"the worker of trial {number} is lost; the trial is {then}")
            lost(self.untold.pop(number))


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
                    if ours[name].has_dead():
                        found.append(name)
        self._watched = ours
        return found

    def _known(self, name: str, identity: str) -> _Watched:
        """A study that was deleted and made again under its name is another one."""
        known = self._watched.get(name)
        if known is None or known.identity != identity:
            return _Watched(self._database, name, identity, self._lease)
        return known

    def reap(self, name: str) -> None:
        """End the trials of dead workers and queue them again; call under the study's lock."""
        if (watched := self._watched.get(name)) is not None:
            with suppress(KeyError):
                watched.reap()

    def tell(self, name: str) -> None:
        """Say what became of them; call outside of the lock, as whoever is told may be slow."""
        if (watched := self._watched.get(name)) is not None:
            with suppress(KeyError):
                watched.tell(lambda line: self._say(f"study {name}: {line}"), lambda record: None)


@contextmanager
def reaping(
    study: optuna.Study,
    identity: str | None,
    lease: Lease,
    lost: Callable[[TrialRecord], None],
    say: Callable[[str], None],
) -> Iterator[None]:
    """Look for dead workers of a study inside the block, in a thread of its own; behind a proxy that is the proxy's."""
    database = database_of(study)
    if not isinstance(database, RDBStorage) or identity is None:
        yield
        return
    over = threading.Event()
    one = _OneStudy(database, study.study_name, identity, lease, lost, say)
    thread = threading.Thread(target=one.look, args=(over,), name="xray-opt-reaper", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(ENDING)


class _OneStudy:
    """The thread of a call; whatever fails is said once and tried again, and the call goes on."""

    def __init__(
        self,
        database: RDBStorage,
        name: str,
        identity: str,
        lease: Lease,
        lost: Callable[[TrialRecord], None],
        say: Callable[[str], None],
    ) -> None:
        self._database, self._name, self._identity, self._lease = database, name, identity, lease
        self._lost, self._say = lost, say

    def look(self, over: threading.Event) -> None:
        """Until it is over, or the study is gone."""
        watched, failing = None, False
        while not over.wait(self._lease.every):
            try:
                watched = watched or _Watched(self._database, self._name, self._identity, self._lease)
                self._reap(watched)
                failing = False
            except KeyError:
                return  # deleted: the workers learn of it as well
            except (*FAULTS, StudyError) as error:
                if not failing and not over.is_set():
                    self._say(f"cannot look for lost workers ({one_line(error.__cause__ or error, 200)}); trying again")
                failing = True

    def _reap(self, watched: _Watched) -> None:
        if watched.has_dead():
            with study_lock(self._database, self._name, self._say):
                watched.reap()
        watched.tell(self._say, self._lost)  # outside of the lock: whoever is told may be slow
