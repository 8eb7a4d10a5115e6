"""The loop: claim a trial under the lock, run it, end it in the state that its outcome has; until enough are done."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import optuna
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from xray_opt.config import StudyConfig
from xray_opt.errors import Pruned, StudyError, TrainingError, XrayError
from xray_opt.tuning.reaping import end_failed, reap, requeue, this_process
from xray_opt.tuning.records import (
    CHECKPOINT_OF,
    OWNER,
    REASON,
    RESUMABLE,
    RETRY_OF,
    Objective,
    Outcome,
    Tally,
    TrialContext,
    TrialRecord,
    record_of,
    study_record,
)
from xray_opt.tuning.samplers import sampler_for
from xray_opt.tuning.space import suggest
from xray_opt.tuning.storage import study_lock

#: Seconds between two looks while other workers hold the last trials.
POLL = 1.0
#: The first so many trials failing for one reason end the study: the next ones would fail too.
ALIKE = 3


@dataclass
class Search:
    """One worker's part in a study."""

    study: optuna.Study
    config: StudyConfig
    checkpoints: Path
    lost: Callable[[TrialRecord], None]
    ended: Callable[[TrialRecord, Path], None]
    say: Callable[[str], None]
    before: set[int] = field(default_factory=set)
    started: int = 0

    def run(self, objective: Objective, total: int, timeout: float | None) -> Tally:
        """See ``OpenStudy.tune``."""
        sampler_for(self.config.sampler, 0, 0)
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        self.before = {t.number for t in self.study.get_trials(deepcopy=False) if t.state.is_finished()}
        stopped = "done"
        while True:
            late = time.monotonic() >= deadline
            trial, enough = self._claim(total, late)
            if trial is not None:
                self._run_one(trial, objective)
            elif enough or late:
                stopped = "done" if enough else "timeout"
                break
            else:
                time.sleep(POLL)
        return self._tally(total, stopped)

    def _claim(self, total: int, late: bool) -> tuple[optuna.Trial | None, bool]:
        """A trial to run, and whether the study has its number; neither: other workers hold the last ones."""
        with study_lock(_rdb(self.study), self.study.study_name):
            reap(self.study, self.lost)
            requeue(self.study)
            trials = self.study.get_trials(deepcopy=False)
            over = sum(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in trials)
            running = sum(trial.state == TrialState.RUNNING for trial in trials)
            if over >= total:
                return None, True
            self._stop_if_hopeless(trials, total)
            if late or over + running >= total:
                return None, False
            trial = self.study.ask()
            trial.set_user_attr(OWNER, this_process())
            return trial, False

    def _stop_if_hopeless(self, trials: list[FrozenTrial], total: int) -> None:
        """Failures of this call are what counts: a study may go on once their cause is mended."""
        new = [trial for trial in trials if trial.number not in self.before and trial.state.is_finished()]
        new = [trial for trial in new if trial.user_attrs.get(REASON) not in RESUMABLE]
        failed = [trial for trial in new if trial.state == TrialState.FAIL]
        reasons = {trial.user_attrs.get(REASON) for trial in failed}
        last = record_of(failed[-1]).message if failed else ""
        if len(failed) >= ALIKE and len(failed) == len(new) and len(reasons) == 1:
            raise StudyError(
                f"study {self.config.name} stops: its first trials all failed alike: {reasons.pop()} ({last})"
            )
        most = max(3, total // 4)
        if len(failed) > most:
            raise StudyError(
                f"study {self.config.name} stops: {len(failed)} trials failed, more than {most} (the last: {last}); "
                "see xray-opt study show"
            )

    def _run_one(self, trial: optuna.Trial, objective: Objective) -> None:
        """Run a claimed trial and end it; only what would stop every trial is raised."""
        self.started += 1
        self.study.sampler = sampler_for(self.config.sampler, self.config.seed, trial.number)
        try:
            context = self._context(trial)
            outcome = objective(context)
        except Pruned:
            self._end(trial, TrialState.PRUNED, None)
        except KeyboardInterrupt:
            self._fail(trial, "interrupted", "stopped by the user")
            raise
        except TrainingError as error:
            self._fail(trial, error.reason, str(error))
        except XrayError as error:
            self._fail(trial, "error", str(error))
            raise
        except Exception as error:  # a fault of one trial must not end the study
            self._fail(trial, "error", f"{type(error).__name__}: {error}")
        else:
            self._finish(trial, outcome)

    def _context(self, trial: optuna.Trial) -> TrialContext:
        params = suggest(trial, self.config.space, self.config.config)
        origin = trial.user_attrs.get(CHECKPOINT_OF, trial.number)
        return TrialContext(
            number=trial.number,
            params=params,
            config=self.config.settings(params),
            checkpoint=self._checkpoint(origin),
            retry_of=trial.user_attrs.get(RETRY_OF),
            trial=trial,
        )

    def _checkpoint(self, origin: int) -> Path:
        return self.checkpoints / f"trial-{origin:05d}.pt"

    def _finish(self, trial: optuna.Trial, outcome: Outcome) -> None:
        for key, value in outcome.notes.items():
            trial.set_user_attr(key, value)
        if math.isfinite(outcome.value):
            self._end(trial, TrialState.COMPLETE, outcome.value)
        else:
            self._fail(trial, "nan", f"its value is {outcome.value}")

    def _end(self, trial: optuna.Trial, state: TrialState, value: float | None) -> None:
        try:
            self.study.tell(trial, value, state=state)
        except (optuna.exceptions.UpdateFinishedTrialError, ValueError) as error:
            if not self._frozen(trial).state.is_finished():
                raise
            self.say(f"trial {trial.number} was ended by another worker: its result is discarded ({error})")
        self._told(trial)

    def _fail(self, trial: optuna.Trial, reason: str, message: str) -> None:
        end_failed(self.study, self._frozen(trial), reason, " ".join(message.split())[:500])
        self._told(trial)

    def _told(self, trial: optuna.Trial) -> None:
        frozen = self._frozen(trial)
        self.ended(record_of(frozen), self._checkpoint(frozen.user_attrs.get(CHECKPOINT_OF, frozen.number)))

    def _frozen(self, trial: optuna.Trial) -> FrozenTrial:
        return self.study._storage.get_trial(trial._trial_id)

    def _tally(self, total: int, stopped: str) -> Tally:
        record = study_record(self.study)
        if not self.started and stopped == "done":
            stopped = "nothing to do"
        counts = record.count("COMPLETE"), record.count("PRUNED"), record.count("FAIL")
        return Tally(total, *counts, self.started, record.best, stopped)


def _rdb(study: optuna.Study) -> RDBStorage:
    """The database behind Optuna's cache in front of it."""
    backend: RDBStorage = getattr(study._storage, "_backend")  # noqa: B009
    return backend
