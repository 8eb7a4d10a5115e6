"""The loop: claim a trial under the lock, run it, end it in the state that its outcome has; until enough are done."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState

from xray_opt.config import StudyConfig
from xray_opt.config.dotted import Scalar
from xray_opt.errors import (
    DeviceFault,
    DiskFault,
    Pruned,
    StudyError,
    TrackingError,
    TrainingError,
    XrayError,
    one_line,
)
from xray_opt.tuning.leases import Lease, Watch, beating
from xray_opt.tuning.limits import FORGIVEN, failures, why_stop
from xray_opt.tuning.locks import study_lock
from xray_opt.tuning.owners import at_work, this_worker
from xray_opt.tuning.reaping import Ending, end, end_own, ending_of, failed, reap, requeue, to_retry
from xray_opt.tuning.records import (
    CHECKPOINT_OF,
    OWNER,
    RETRY_OF,
    Crew,
    Objective,
    Tally,
    TrialContext,
    TrialRecord,
    TrialTaken,
    record_of,
    study_record,
)
from xray_opt.tuning.rules import IDENTITY, deleted
from xray_opt.tuning.samplers import sampler_for
from xray_opt.tuning.space import suggest
from xray_opt.tuning.storage import PATIENCE, Patience, database_of

#: Seconds between two looks while other workers hold the last trials.
POLL = 1.0
#: Seconds that a worker that stops gives its storage to take that in.
LAST_PATIENCE = 5.0


@dataclass
class Search:
    """One worker's part in a study; ``identity`` tells the study from a later one of the same name."""

    study: optuna.Study
    identity: str | None
    config: StudyConfig
    checkpoints: Path
    lost: Callable[[TrialRecord], None]
    ended: Callable[[TrialRecord, Path], None]
    say: Callable[[str], None]
    lease: Lease
    crew: Crew | None = None
    started: int = 0
    worker: str = ""
    waited_for: set[int] = field(default_factory=set)
    untold: dict[int, TrialRecord] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.watch = Watch(self.lease)
        self._patient = Patience(database_of(self.study).url, self.say, PATIENCE)

    def run(self, objective: Objective, total: int, timeout: float | None) -> Tally:
        """See ``OpenStudy.tune``."""
        sampler_for(self.config.sampler, 0, 0)
        with at_work() as self.worker:
            try:
                return self._run(objective, total, timeout)
            except BaseException as error:
                self._let_go(error)
                if isinstance(error, KeyError):
                    self._require_study()
                raise

    def _run(self, objective: Objective, total: int, timeout: float | None) -> Tally:
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        self.crew = self.crew or self.begin(total)
        while True:
            late = time.monotonic() >= deadline
            trial, stopped = self._patient(partial(self._claim, total, late))
            if trial is not None:
                self._run_one(trial, objective)
                continue
            self._tell_lost()
            if stopped:
                return self._tally(total, stopped)
            time.sleep(min(POLL, self.lease.every))

    def _claim(self, total: int, late: bool) -> tuple[optuna.Trial | None, str]:
        """A trial to run, or why to stop; neither: other workers hold the last ones, or may have died with one."""
        with self._lock():
            self._require_study()
            trials = self._tidied()
            held = [trial for trial in trials if trial.state == TrialState.RUNNING]
            unsure = [trial for trial in held if self.watch.is_unsure(trial)]
            over = _counted(trials)
            if over < total:
                self._stop_if_hopeless(trials, total)
            if over >= total or late or over + len(held) >= total:
                stopped = "done" if over >= total else "timeout" if late else ""
                self._say_waiting(unsure if stopped else held)
                return None, "" if unsure else stopped
            # Each trial is drawn by a sampler of its own, later; this one draws nothing and reads nothing.
            self.study.sampler = optuna.samplers.RandomSampler(seed=0)
            trial = self.study.ask()
            trial.set_user_attr(OWNER, this_worker(self.worker) | {"crew": self.crew and self.crew.name})
            return trial, ""

    def _tidied(self) -> list[FrozenTrial]:
        """All trials, after what dead workers left was ended and queued again; call under the lock.

        A listing costs milliseconds, and more with every trial that runs, while the other workers wait: where nothing
        is to be done there is one.
        """
        trials = self.study.get_trials(deepcopy=False)
        held = [trial for trial in trials if trial.state == TrialState.RUNNING]
        self.watch.look(held)
        own = any((trial.user_attrs.get(OWNER) or {}).get("worker") == self.worker for trial in held)
        if not own and not any(map(self.watch.is_dead, held)) and not to_retry(trials):
            return trials
        # A claim may have been stored although the storage failed right after: this worker does not run it.
        end_own(self.study, self.worker, "its worker could not be told that the trial was its own")
        reap(self.study, self._note_lost, self.watch.is_dead)
        requeue(self.study, self._note_lost)
        return self.study.get_trials(deepcopy=False)

    def _note_lost(self, record: TrialRecord) -> None:
        self.untold[record.number] = record

    def _tell_lost(self) -> None:
        """Tell of the trials that the last claim ended or queued again, once each, also where the storage failed in mid
        claim. Outside of the lock: whoever is told may be slow.
        """
        while self.untold:
            self.lost(self.untold.pop(min(self.untold)))

    def _say_waiting(self, held: list[FrozenTrial]) -> None:
        """Once a trial; whoever started this worker knows what the other workers of its call do."""
        for trial in held:
            owner, unsure = trial.user_attrs.get(OWNER) or {}, self.watch.is_unsure(trial)
            own = self.crew is not None and owner.get("crew") == self.crew.name
            if trial.number not in self.waited_for and (unsure or not own):
                self.waited_for.add(trial.number)
                line = f"waiting for trial {trial.number} of process {owner.get('pid')} on host {owner.get('host')}"
                self.say(line + (f", up to {self.lease.patience:.0f} s for a sign of life" if unsure else ""))

    def _let_go(self, error: BaseException) -> None:
        """End what this worker holds, whatever stopped it; the next start tries the trial again, from its checkpoint.

        A trial that broke a GPU may be what breaks it, so it counts as one that lost its worker. Where that fails too,
        the trial stays RUNNING, and the next start takes it for lost.
        """
        user = isinstance(error, KeyboardInterrupt | SystemExit)
        message = "stopped by the user" if user else one_line(error)
        reason = "worker-lost" if isinstance(error, DeviceFault) else "interrupted"
        patient = Patience(database_of(self.study).url, self.say, LAST_PATIENCE)

        def locked() -> list[FrozenTrial]:
            with self._lock():
                return [] if self._is_deleted() else end_own(self.study, self.worker, message, reason)

        try:
            for trial in patient(locked):
                self._told(trial.number, trial._trial_id)
            self._tell_lost()
        except XrayError as later:  # what went wrong first is what the caller must see
            self.say(str(later))

    def _lock(self) -> AbstractContextManager[None]:
        return study_lock(database_of(self.study), self.config.name)

    def _is_deleted(self) -> bool:
        """Whether the study is gone; numbers of deleted studies are given again, hence the identity."""
        try:
            return self.study.user_attrs.get(IDENTITY) != self.identity
        except KeyError:
            return True

    def _require_study(self) -> None:
        if self._is_deleted():
            raise deleted(self.config.name)

    def begin(self, total: int) -> Crew:
        """Begin a call, once for all its workers: whoever starts a study that its failures have stopped takes them for
        mended."""
        return Crew(uuid.uuid4().hex, self._patient(partial(self._begin, total)))

    def _begin(self, total: int) -> frozenset[int]:
        """Numbers of the trials that are over already."""
        with self._lock():
            self._require_study()
            trials = self.study.get_trials(deepcopy=False)
            before = frozenset(trial.number for trial in trials if trial.state.is_finished())
            if _counted(trials) >= total or not why_stop(trials, total, self._forgiven, ()):
                return before
            forgiven = {trial.number for trial in failures(trials)}
            self.study.set_user_attr(FORGIVEN, sorted(forgiven))
        self.say(f"the {len(forgiven)} failed trials of before do not count any more: their cause is taken for mended")
        return before

    @property
    def _forgiven(self) -> list[int]:
        return list(self.study.user_attrs.get(FORGIVEN, ()))

    def _stop_if_hopeless(self, trials: list[FrozenTrial], total: int) -> None:
        if why := why_stop(trials, total, self._forgiven, self.crew.before if self.crew else ()):
            raise StudyError(
                f"study {self.config.name} stops: {why}; see xray-opt study show, mend the cause, run the command again"
            )

    def _run_one(self, trial: optuna.Trial, objective: Objective) -> None:
        """Run a claimed trial and end it; only what would stop every trial is raised."""
        self.started += 1
        self.study.sampler = sampler_for(self.config.sampler, self.config.seed, trial.number)
        with beating(database_of(self.study), trial._trial_id, self.lease.every):
            try:
                self._tell_lost()
                ending = ending_of(objective(self._context(trial)))
            except Pruned:
                ending = Ending("PRUNED")
            except TrialTaken as error:
                self.say(f"{error}: its result is discarded")
                self._told(trial.number, trial._trial_id)
                return
            except (StudyError, TrackingError, DeviceFault, DiskFault):
                raise  # a store is away or the machine failed, which says nothing of the trial: it is let go of
            except TrainingError as error:
                ending = failed(error.reason, str(error))
            except XrayError as error:
                self._end(trial, failed("error", str(error)))
                raise
            except Exception as error:  # a fault of one trial must not end the study
                ending = failed("error", f"{type(error).__name__}: {error}")
            self._end(trial, ending)

    def _context(self, claimed: optuna.Trial) -> TrialContext:
        def suggested() -> tuple[optuna.Trial, dict[str, Scalar]]:
            # Read anew each time: what a failed try stored is not drawn again, and this trial's own sampler draws.
            # One draws after the other: the sampler must see the points that other workers have in work.
            with self._lock():
                trial = optuna.Trial(self.study, claimed._trial_id)
                return trial, suggest(trial, self.config.space, self.config.config)

        trial, params = self._patient(suggested)
        origin = trial.user_attrs.get(CHECKPOINT_OF, trial.number)
        return TrialContext(
            number=trial.number,
            params=params,
            config=self.config.settings(params),
            checkpoint=self._checkpoint(origin),
            retry_of=trial.user_attrs.get(RETRY_OF),
            trial=trial,
            patient=self._patient,
        )

    def _checkpoint(self, origin: int) -> Path:
        return self.checkpoints / f"trial-{origin:05d}.pt"

    def _end(self, trial: optuna.Trial, ending: Ending) -> None:
        def locked() -> bool:
            # Another worker may be taking this trial for lost at this moment.
            with self._lock():
                self._require_study()
                return end(self.study, trial.number, trial._trial_id, ending)

        if not self._patient(locked):
            self.say(f"trial {trial.number} was ended by another worker: its result is discarded")
        self._told(trial.number, trial._trial_id)

    def _told(self, number: int, trial_id: int) -> None:
        frozen = self._patient(lambda: self.study._storage.get_trial(trial_id))
        self.ended(record_of(frozen), self._checkpoint(frozen.user_attrs.get(CHECKPOINT_OF, number)))

    def _tally(self, total: int, stopped: str) -> Tally:
        record = self._patient(lambda: study_record(self.study))
        if not self.started and stopped == "done":
            stopped = "nothing to do"
        counts = record.count("COMPLETE"), record.count("PRUNED"), record.count("FAIL")
        return Tally(total, *counts, self.started, record.best, stopped, record.front if record.second else ())


def _counted(trials: list[FrozenTrial]) -> int:
    return sum(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in trials)
