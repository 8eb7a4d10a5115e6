"""What one worker sees of a study's trials, and takes of them: claims under the lock, looks without it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TypeVar

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from xray_opt.tuning.leases import Lease, Watch
from xray_opt.tuning.limits import another_total, counted, rivals, stop_if_hopeless
from xray_opt.tuning.listing import Listing
from xray_opt.tuning.locks import study_lock
from xray_opt.tuning.owners import this_worker
from xray_opt.tuning.reaping import end_own, reap, requeue, to_retry
from xray_opt.tuning.records import OWNER, Crew, TrialRecord
from xray_opt.tuning.rules import IDENTITY, deleted
from xray_opt.tuning.storage import database_of

T = TypeVar("T")


class Claims:
    """One worker's hold on a study; ``identity`` tells the study from a later one of the same name.

    Attributes:
        study: the study, for all that the worker does with it.
        worker: the worker's name while it is at work.
        crew: the call that it is part of, once that has begun.
    """

    def __init__(
        self, study: optuna.Study, identity: str | None, lease: Lease, say: Callable[[str], None], crew: Crew | None
    ) -> None:
        self.worker, self.crew, self._joined = "", crew, False
        self._database = database_of(study)
        self.study, self._listing = Listing.before(study)
        self._identity, self._lease, self._say = identity, lease, say
        self._watch = Watch(lease)
        self._waited_for: set[int] = set()
        self._untold: dict[int, TrialRecord] = {}
        self._unsaid: list[str] = []

    def lock(self) -> AbstractContextManager[None]:
        """The study's lock."""
        return study_lock(self._database, self.study.study_name, self._say)

    def is_deleted(self) -> bool:
        """Whether the study is gone; numbers of deleted studies are given again, hence the identity."""
        try:
            return self.study.user_attrs.get(IDENTITY) != self._identity
        except KeyError:
            return True

    def require_study(self) -> None:
        """Make sure that the study is there.

        Raises:
            StudyError: it was deleted.
        """
        if self.is_deleted():
            raise deleted(self.study.study_name)

    def claim(self, total: int, late: bool, draw: Callable[[optuna.Trial], T]) -> tuple[T | None, str]:
        """A trial to run, or why to stop; neither: other workers hold the last ones, or may have died with one.

        Args:
            draw: what is made of a claimed trial before another worker claims one; reads the one listing that the
                claim has read.

        Raises:
            TooManyFailures: so many trials failed that no more are to be tried.
            StudyError: another call was faster to begin, up to another total.
        """
        try:
            with self.lock(), self._listing.once():
                return self._claim(total, late, draw)
        finally:
            self._say_unsaid()

    def _claim(self, total: int, late: bool, draw: Callable[[optuna.Trial], T]) -> tuple[T | None, str]:
        self.require_study()
        trials = self._tidied()
        if unsure := self._rivals(trials, total):
            self._note_waiting(unsure)
            return None, ""
        held = _held(trials)
        over = counted(trials)
        if over < total:
            stop_if_hopeless(self.study, trials, total, self.crew.before if self.crew else ())
        if over >= total or late or over + len(held) >= total:
            stopped = "done" if over >= total else "timeout" if late else ""
            unsure = self._unsure(held)
            self._note_waiting(unsure if stopped else held)
            return None, "" if unsure else stopped
        taken = self._taken(total)
        return None if taken is None else draw(taken), ""

    def _rivals(self, trials: list[FrozenTrial], total: int) -> list[FrozenTrial]:
        """Trials of others at work up to another total of whom waiting will tell whether they live: looked for before
        the call's first trial, as they may have begun since it did.

        Raises:
            StudyError: one of them lives.
        """
        name = self.crew.name if self.crew else None
        own = any((trial.user_attrs.get(OWNER) or {}).get("crew") == name for trial in trials)
        found = [] if self._joined or own else rivals(trials, total, name)
        for trial in found:
            if not self._watch.is_unsure(trial):
                raise another_total(self.study, trial, total)
        self._joined = not found
        return found

    def _taken(self, total: int) -> optuna.Trial | None:
        """A new trial, or a queued one, with this worker for its owner."""
        # Each trial is drawn by a sampler of its own, later; this one draws nothing and reads nothing.
        self.study.sampler = optuna.samplers.RandomSampler(seed=0)
        trial = self.study.ask()
        try:
            call = {"crew": self.crew and self.crew.name, "total": total}
            trial.set_user_attr(OWNER, this_worker(self.worker) | call)
        except UpdateFinishedTrialError:  # this worker hung and lost the lock: a trial without owner is taken for lost
            self._unsaid.append(f"trial {trial.number} was ended by another worker before it began here")
            return None
        return trial

    def is_worth_a_try(self, total: int, late: bool) -> bool:
        """Whether a claim may give something else than that others hold the last trials: a look without the lock, for
        which those who have something to do would wait."""
        self.require_study()
        trials = self.study.get_trials(deepcopy=False)
        held = _held(trials)
        self._watch.look(held)
        if any(map(self._watch.is_dead, held)) or to_retry(trials):
            return True
        over, unsure = counted(trials), self._unsure(held)
        if not self._joined or over >= total or late:
            return not unsure
        self._note_waiting(held)
        self._say_unsaid()
        return over + len(held) < total

    def _unsure(self, held: list[FrozenTrial]) -> list[FrozenTrial]:
        return [trial for trial in held if self._watch.is_unsure(trial)]

    def _tidied(self) -> list[FrozenTrial]:
        """All trials, after what dead workers left was ended and queued again; call under the lock.

        A listing costs milliseconds, and more with every trial that runs, while the other workers wait: where nothing
        is to be done there is one.
        """
        trials = self.study.get_trials(deepcopy=False)
        held = _held(trials)
        self._watch.look(held)
        own = any((trial.user_attrs.get(OWNER) or {}).get("worker") == self.worker for trial in held)
        if not own and not any(map(self._watch.is_dead, held)) and not to_retry(trials):
            return trials
        # A claim may have been stored although the storage failed, or the lock was lost: this worker does not run it.
        end_own(self.study, self.worker, "its worker could not be told that the trial was its own", begun=False)
        reap(self.study, self._note_lost, self._watch.is_dead)
        requeue(self.study, self._note_lost)
        return self.study.get_trials(deepcopy=False)

    def _note_lost(self, record: TrialRecord) -> None:
        self._untold[record.number] = record

    def tell_lost(self, lost: Callable[[TrialRecord], None]) -> None:
        """Tell of the trials that the last claim ended or queued again, once each, also where the storage failed in mid
        claim. Outside of the lock: whoever is told may be slow.
        """
        while self._untold:
            lost(self._untold.pop(min(self._untold)))

    def _say_unsaid(self) -> None:
        """Outside of the lock, as :meth:`tell_lost` tells: a terminal may be stopped (Ctrl-S)."""
        while self._unsaid:
            self._say(self._unsaid.pop(0))

    def _note_waiting(self, held: list[FrozenTrial]) -> None:
        """Once a trial; whoever started this worker knows what the other workers of its call do."""
        for trial in held:
            owner, unsure = trial.user_attrs.get(OWNER) or {}, self._watch.is_unsure(trial)
            own = self.crew is not None and owner.get("crew") == self.crew.name
            if trial.number not in self._waited_for and (unsure or not own):
                self._waited_for.add(trial.number)
                line = f"waiting for trial {trial.number} of process {owner.get('pid')} on host {owner.get('host')}"
                line += f", up to {self._lease.patience:.0f} s for a sign of life" if unsure else ""
                self._unsaid.append(line)


def _held(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    return [trial for trial in trials if trial.state == TrialState.RUNNING]
