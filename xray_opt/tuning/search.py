"""The loop: claim a trial under the lock, run it, end it in the state that its outcome has; until enough are done."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import optuna
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from xray_opt.config import StudyConfig
from xray_opt.config.dotted import Scalar
from xray_opt.errors import Pruned, StudyError, TrainingError, XrayError
from xray_opt.tuning.owners import at_work, is_elsewhere, this_worker
from xray_opt.tuning.reaping import Ending, end, end_interrupted, failed, reap, requeue
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
    TrialTaken,
    record_of,
    study_record,
)
from xray_opt.tuning.samplers import sampler_for
from xray_opt.tuning.space import suggest
from xray_opt.tuning.storage import Patience, StorageAway, study_lock

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
    worker: str = ""
    told_elsewhere: set[int] = field(default_factory=set)

    def run(self, objective: Objective, total: int, timeout: float | None) -> Tally:
        """See ``OpenStudy.tune``."""
        sampler_for(self.config.sampler, 0, 0)
        with at_work() as self.worker:
            try:
                return self._run(objective, total, timeout)
            except (KeyboardInterrupt, SystemExit):
                self._let_go()
                raise

    def _run(self, objective: Objective, total: int, timeout: float | None) -> Tally:
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        self.before = {t.number for t in self._trials() if t.state.is_finished()}
        stopped = "done"
        while True:
            late = time.monotonic() >= deadline
            trial, enough = self._patient(partial(self._claim, total, late))
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
                self._say_elsewhere(trials)
                return None, False
            trial = self.study.ask()
            trial.set_user_attr(OWNER, this_worker(self.worker))
            return trial, False

    def _say_elsewhere(self, trials: list[FrozenTrial]) -> None:
        """Once a trial: nobody here can tell whether a worker of another host (or container) still lives."""
        for trial in trials:
            owner = trial.user_attrs.get(OWNER)
            if owner is None or trial.state != TrialState.RUNNING or trial.number in self.told_elsewhere:
                continue
            if not is_elsewhere(owner):
                continue
            self.told_elsewhere.add(trial.number)
            since = f"{trial.datetime_start:%Y-%m-%d %H:%M}" if trial.datetime_start else "some time"
            self.say(f"waiting for trial {trial.number}, which runs on host {owner['host']} since {since}")

    def _let_go(self) -> None:
        """Ctrl-C, wherever it hit: end what this worker holds; the trial is queued again by the next start."""
        with study_lock(_rdb(self.study), self.study.study_name):
            held = end_interrupted(self.study, self.worker)
        for trial in held:
            self._told(trial.number, trial._trial_id)

    @property
    def _patient(self) -> Patience:
        return Patience(_rdb(self.study).url, self.say)

    def _trials(self) -> list[FrozenTrial]:
        return self._patient(lambda: self.study.get_trials(deepcopy=False))

    def _stop_if_hopeless(self, trials: list[FrozenTrial], total: int) -> None:
        """Failures of this call are what counts: a study may go on once their cause is mended."""
        new = [trial for trial in trials if trial.number not in self.before and trial.state.is_finished()]
        new = [trial for trial in new if trial.user_attrs.get(REASON) not in RESUMABLE]
        failures = [trial for trial in new if trial.state == TrialState.FAIL]
        reasons = {trial.user_attrs.get(REASON) for trial in failures}
        last = record_of(failures[-1]).message if failures else ""
        if len(failures) >= ALIKE and len(failures) == len(new) and len(reasons) == 1:
            raise StudyError(
                f"study {self.config.name} stops: its first trials all failed alike: {reasons.pop()} ({last})"
            )
        most = max(3, total // 4)
        if len(failures) > most:
            raise StudyError(
                f"study {self.config.name} stops: {len(failures)} trials failed, more than {most} (the last: {last}); "
                "see xray-opt study show"
            )

    def _run_one(self, trial: optuna.Trial, objective: Objective) -> None:
        """Run a claimed trial and end it; only what would stop every trial is raised."""
        self.started += 1
        self.study.sampler = sampler_for(self.config.sampler, self.config.seed, trial.number)
        try:
            ending = self._ending(objective(self._context(trial)))
        except Pruned:
            ending = Ending("PRUNED")
        except TrialTaken as error:
            self.say(f"{error}: its result is discarded")
            self._told(trial.number, trial._trial_id)
            return
        except StorageAway:
            raise
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

    @staticmethod
    def _ending(outcome: Outcome) -> Ending:
        if math.isfinite(outcome.value):
            return Ending("COMPLETE", outcome.value, json.loads(json.dumps(dict(outcome.notes))))
        return failed("nan", f"its value is {outcome.value}")

    def _end(self, trial: optuna.Trial, ending: Ending) -> None:
        if not self._patient(lambda: end(self.study, trial.number, trial._trial_id, ending)):
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
        return Tally(total, *counts, self.started, record.best, stopped)


def _rdb(study: optuna.Study) -> RDBStorage:
    """The database behind Optuna's cache in front of it."""
    backend: RDBStorage = getattr(study._storage, "_backend")  # noqa: B009
    return backend
