"""The loop: claim a trial under the lock, run it, end it in the state that its outcome has; until enough are done."""

from __future__ import annotations

import math
import random
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial

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
from xray_opt.tuning.claims import Claims
from xray_opt.tuning.leases import Lease, beating
from xray_opt.tuning.limits import begin
from xray_opt.tuning.owners import at_work
from xray_opt.tuning.reaping import Ending, end, end_own, ending_of, failed, resumed_by
from xray_opt.tuning.records import (
    RETRY_OF,
    Crew,
    Objective,
    Tally,
    TrialContext,
    TrialRecord,
    TrialTaken,
    checkpoint_name,
    record_of,
    study_record,
)
from xray_opt.tuning.samplers import sampler_for
from xray_opt.tuning.space import suggest
from xray_opt.tuning.storage import LAST_PATIENCE, PATIENCE, Patience, database_of
from xray_opt.tuning.urls import FAULTS

#: Seconds between two looks while other workers hold the last trials, more or less: they need not come all at once.
POLL = 1.0
#: A trial and its params, or why they could not be drawn.
Drawn = tuple[optuna.Trial, dict[str, Scalar] | Exception]


@dataclass
class Search:
    """One worker's part in a study; ``identity`` tells the study from a later one of the same name."""

    study: optuna.Study
    identity: str | None
    config: StudyConfig
    checkpoints: Path
    lost: Callable[[TrialRecord], None]
    ended: Callable[[TrialRecord, Mapping[int, Path]], None]
    say: Callable[[str], None]
    lease: Lease
    crew: Crew | None = None
    started: int = 0

    def __post_init__(self) -> None:
        self._claims = Claims(self.study, self.identity, self.lease, self.say, self.crew)
        self._patient = Patience(database_of(self.study).url, self.say, PATIENCE)

    def run(self, objective: Objective, total: int, timeout: float | None) -> Tally:
        """See ``OpenStudy.tune``."""
        sampler_for(self.config.sampler, 0, 0)
        with at_work() as self._claims.worker:
            try:
                return self._run(objective, total, timeout)
            except BaseException as error:
                self._let_go(error)
                if isinstance(error, KeyError):
                    self._claims.require_study()
                raise

    def _run(self, objective: Objective, total: int, timeout: float | None) -> Tally:
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        self._claims.crew = self._claims.crew or self.begin(total)
        while True:
            late = time.monotonic() >= deadline
            drawn, stopped = self._patient(partial(self._claims.claim, total, late, self._drawn))
            if drawn is not None:
                self._run_one(*drawn, objective)
                continue
            self._claims.tell_lost(self.lost)
            if stopped:
                return self._tally(total, stopped)
            self._wait(total, deadline)

    def _wait(self, total: int, deadline: float) -> None:
        """Until a claim may give something else than the last one."""
        while True:
            time.sleep(min(POLL, self.lease.every) * random.uniform(0.5, 1.5))
            if self._patient(partial(self._claims.is_worth_a_try, total, time.monotonic() >= deadline)):
                return

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
            with self._claims.lock():
                return [] if self._claims.is_deleted() else end_own(self.study, self._claims.worker, message, reason)

        try:
            for trial in patient(locked):
                self._told(trial.number, trial._trial_id, patient)
            self._claims.tell_lost(self.lost)
        except XrayError as later:  # what went wrong first is what the caller must see
            self.say(str(later))

    def begin(self, total: int) -> Crew:
        """Begin a call, once for all its workers; see ``limits.begin``."""

        def locked() -> frozenset[int]:
            with self._claims.lock():
                self._claims.require_study()
                return begin(self.study, total, lines.append)

        lines = list[str]()
        crew = Crew(uuid.uuid4().hex, self._patient(locked))
        for line in lines:  # outside of the lock: whoever is told may be slow
            self.say(line)
        return crew

    def _drawn(self, claimed: optuna.Trial) -> Drawn:
        """A claimed trial with its params, drawn by its own sampler while the claim has the lock and a list of trials.

        One draws after the other: the sampler must see the points that other workers have in work. A draw that fails is
        a failure of the trial; where the storage fails, the claim is made anew. It may take long, so that signs of life
        are given, on a connection and a thread of their own that need no lock of the study.
        """
        self.study.sampler = self._claims.study.sampler = sampler_for(
            self.config.sampler, self.config.seed, claimed.number
        )
        try:
            with beating(database_of(self.study), claimed._trial_id, self.lease.every):
                trial = optuna.Trial(self._claims.study, claimed._trial_id)
                return trial, suggest(trial, self.config.space, self.config.config)
        except FAULTS:
            raise
        except Exception as error:
            return claimed, error

    def _run_one(self, trial: optuna.Trial, params: dict[str, Scalar] | Exception, objective: Objective) -> None:
        """Run a claimed trial and end it; only what would stop every trial is raised."""
        self.started += 1
        with beating(database_of(self.study), trial._trial_id, self.lease.every):
            try:
                self._claims.tell_lost(self.lost)
                ending = ending_of(objective(self._context(trial, params)))
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

    def _context(self, trial: optuna.Trial, params: dict[str, Scalar] | Exception) -> TrialContext:
        if isinstance(params, UpdateFinishedTrialError):
            raise TrialTaken.of(trial.number) from params
        if isinstance(params, Exception):
            raise params
        retry_of = trial.user_attrs.get(RETRY_OF)
        return TrialContext(
            number=trial.number,
            params=params,
            config=self.config.settings(params),
            checkpoint=self._checkpoint(trial.number),
            earlier={number: self._checkpoint(number) for number in self._patient(partial(self._resumed_by, retry_of))},
            retry_of=retry_of,
            trial=trial,
            patient=self._patient,
        )

    def _checkpoint(self, number: int) -> Path:
        return self.checkpoints / f"{checkpoint_name(self.identity, number)}.pt"

    def _resumed_by(self, retry_of: int | None) -> tuple[int, ...]:
        """The trials behind one that resumes ``retry_of``."""
        return () if retry_of is None else resumed_by(self.study.get_trials(deepcopy=False), retry_of)

    def _end(self, trial: optuna.Trial, ending: Ending) -> None:
        def locked() -> bool:
            # Another worker may be taking this trial for lost at this moment.
            with self._claims.lock():
                self._claims.require_study()
                return end(self.study, trial.number, trial._trial_id, ending)

        if not self._patient(locked):
            self.say(f"trial {trial.number} was ended by another worker: its result is discarded")
        self._told(trial.number, trial._trial_id)

    def _told(self, number: int, trial_id: int, patient: Patience | None = None) -> None:
        patient = patient or self._patient
        frozen = patient(lambda: self.study._storage.get_trial(trial_id))
        numbers = number, *patient(partial(self._resumed_by, frozen.user_attrs.get(RETRY_OF)))
        self.ended(record_of(frozen), {each: self._checkpoint(each) for each in numbers})

    def _tally(self, total: int, stopped: str) -> Tally:
        record = self._patient(lambda: study_record(self.study))
        if not self.started and stopped == "done":
            stopped = "nothing to do"
        counts = record.count("COMPLETE"), record.count("PRUNED"), record.count("FAIL")
        return Tally(total, *counts, self.started, record.best, stopped, record.front if record.second else ())
