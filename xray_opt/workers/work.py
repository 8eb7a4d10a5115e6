"""A study that is open for work in this process: what a trial needs, how it is trained, what is left of it."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xray_opt.backbone import Base
from xray_opt.cache import Images
from xray_opt.config import StudyConfig
from xray_opt.dataset import Pseudonyms
from xray_opt.experiment import Job, run_experiment
from xray_opt.faults import disk_faults
from xray_opt.feed import Sizes
from xray_opt.leaderboard import interval_notes
from xray_opt.mlflow_client import Connection
from xray_opt.tracking import WAITING, Tracking, page_tags, run_page
from xray_opt.trainer import Epoch, discard_checkpoint
from xray_opt.tuning import RESUMABLE, Crew, OpenStudy, Outcome, Tally, TrialContext, TrialRecord


@dataclass(frozen=True)
class StudyWatcher:
    """What a caller may see of a running study; every part may be left out.

    ``placed`` tells in which slot a trial runs before it starts; none: its slot died, the trial is tried again.
    """

    say: Callable[[str], None] = lambda line: None
    progress: Callable[[str, int, int], None] = lambda what, done, total: None
    known: Callable[[int, TrialRecord | None], None] = lambda counted, best: None
    placed: Callable[[int, str | None], None] = lambda number, slot: None
    trial_started: Callable[[int, StudyConfig, Mapping[str, object]], None] = lambda number, study, params: None
    epoch: Callable[[int, Epoch], None] = lambda number, epoch: None
    trial_ended: Callable[[TrialRecord], None] = lambda record: None


@dataclass(frozen=True)
class Work:
    """A study that is open for work in this process: all that a trial needs is at hand."""

    opened: OpenStudy
    films: Sizes
    base: Base
    tracking: Tracking
    connection: Connection
    tags: Mapping[str, str]
    pseudonyms: Pseudonyms
    watcher: StudyWatcher

    @property
    def images(self) -> Images:
        """Train and val for whoever wants labels and names alone: they are the same at all image sizes."""
        return self.films.first

    def run(self, total: int, timeout: float | None = None, crew: Crew | None = None) -> Tally:
        """Run trials in this process; see ``OpenStudy.tune``."""
        return self.opened.tune(
            self._train,
            total,
            timeout,
            lost=self._lost,
            ended=self._ended,
            say=self.watcher.say,
            crew=crew,
        )

    def reaping(self) -> AbstractContextManager[None]:
        """Look for dead workers of the study inside the block; see ``OpenStudy.reaping``."""
        return self.opened.reaping(self._lost, self.watcher.say)

    def _lost(self, record: TrialRecord) -> None:
        self.tracking.close_trial(record.number, record.reason or "worker-lost")

    def _train(self, trial: TrialContext) -> Outcome:
        fresh = itertools.count(1)

        def watch(epoch: Epoch) -> None:
            if next(fresh) == 2:  # now it has a checkpoint and the one before it, both its own
                _discard(trial.earlier)
            self.watcher.epoch(trial.number, epoch)
            trial.report(epoch.number, epoch.val.f1)

        def started(run_id: str) -> None:
            trial.note("mlflow_run", run_id)
            experiment = self.tracking.experiment_id
            if experiment is not None and not run_id.startswith(WAITING):
                trial.link(run_page(self.connection, experiment, run_id))

        self.watcher.trial_started(trial.number, self.opened.config, trial.params)
        job = Job(
            config=trial.config,
            name=f"trial-{trial.number:03d}",
            params=trial.params,
            tags={**self.tags, **self._own_tags(trial)},
            checkpoint=trial.checkpoint,
            earlier=lambda: self._earlier(trial, Path(fetched)),
            upload=self._uploads,
            watch=watch,
            replay=lambda epoch: trial.replay(epoch.number, epoch.val.f1),
            started=started,
            say=self.watcher.say,
            objective=self.opened.config.second,
        )
        with disk_faults(), tempfile.TemporaryDirectory(prefix="xray-opt-") as fetched:
            result = run_experiment(job, self.films.at(trial.config), self.base, self.tracking, self.pseudonyms)
        if result.was_waiting:
            started(result.run_id)
        scores = result.assessment.scores
        notes: dict[str, Any] = {
            "val.auc": scores.auc,
            "val.accuracy": scores.accuracy,
            "val.precision": scores.precision,
        }
        notes |= {"val.recall": scores.recall, "best_epoch": result.best_epoch, "seconds": round(result.seconds, 2)}
        notes |= interval_notes(result.intervals)
        return Outcome(scores.f1, notes, result.second)

    @property
    def _uploads(self) -> bool:
        return self.opened.config.config.tracking.checkpoints == "mlflow"

    def _earlier(self, trial: TrialContext, folder: Path) -> Iterator[Path]:
        """Checkpoints that a trial may go on from, best first: on this disk, else fetched from MLflow."""
        for number, path in trial.earlier.items():
            yield path
            if self._uploads:
                yield from self.tracking.checkpoints_of(number, folder)

    def _own_tags(self, trial: TrialContext) -> dict[str, str]:
        page = self.opened.trial_page(trial.number)
        resumed = {} if trial.retry_of is None else {"xray_opt.retry_of": str(trial.retry_of)}
        return {"xray_opt.trial": str(trial.number)} | page_tags(self.opened.config.name, trial.number, page) | resumed

    def _ended(self, record: TrialRecord, checkpoints: Mapping[int, Path]) -> None:
        """A trial has its final state: no checkpoint is needed any more unless another one resumes it."""
        if record.state == "FAIL":
            self.tracking.close_trial(record.number, record.reason or "error")
        if record.reason not in RESUMABLE:
            _discard(checkpoints)
            if self._uploads:
                self.tracking.discard_checkpoints(checkpoints)
        self.watcher.trial_ended(record)


def _discard(checkpoints: Mapping[int, Path]) -> None:
    for path in checkpoints.values():
        discard_checkpoint(path)


#: Brings a study that is ready to a number of trials (none starts after so many seconds), in whatever processes.
Launcher = Callable[[Work, int, float | None], Tally]


def in_process(work: Work, total: int, timeout: float | None) -> Tally:
    """The launcher of one worker, which is this process."""
    return work.run(total, timeout)
