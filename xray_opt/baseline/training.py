"""Trains what a comparison needs: LoRA at the study's best settings, a linear probe, everything; what is there is kept.

Every training is a run below the study's own, known by a digest of all that decides what it computes. So a call that
was killed goes on where it stopped, and a changed setting, split or base is trained anew.
"""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from xray_opt.adapter import attach, trainable
from xray_opt.config import Config, override
from xray_opt.confirm.confirming import CONFIRMS, WHICH
from xray_opt.errors import StudyError, TrainingError
from xray_opt.experiment import Job, run_experiment
from xray_opt.settling import require_sent
from xray_opt.tracking import child_runs, close_lost
from xray_opt.trainer import discard_checkpoint
from xray_opt.trainer.checkpoint import identity
from xray_opt.tuning import IDENTITY, TrialRecord
from xray_opt.workers import Work

#: Strategies that are compared, ours first.
STRATEGIES = ("lora", "linear", "full")
#: Tags of a training: its strategy, the trial whose settings it has, its place in the plan, the digest of its settings.
BASELINE, OF, PLACE, TRAINING = (
    "xray_opt.baseline",
    "xray_opt.baseline_of",
    "xray_opt.baseline_run",
    "xray_opt.training_sha256",
)


@dataclass(frozen=True)
class Trained:
    """The finished runs of one strategy, one a seed; ``failed`` says why there are not all of them."""

    strategy: str
    config: Config
    trainable: int
    runs: tuple[Any, ...] = field(repr=False)
    failed: str | None = None

    @property
    def seconds(self) -> float | None:
        """Wall time of a training: the median, as one that was resumed has only its last part."""
        times = [(run.info.end_time - run.info.start_time) / 1000 for run in self.runs]
        return statistics.median(times) if times else None


def best_lora(work: Work) -> tuple[TrialRecord, str]:
    """The study's best LoRA trial and how it was chosen: by ``confirm`` where it was asked, else by the search.

    Raises:
        StudyError: no complete trial trained LoRA.
    """
    record = work.opened.read()
    trials = [one for one in record.ranked if _settings(work, one).model.strategy == "lora"]
    if not trials:
        raise StudyError("the study has no complete trial of strategy lora to compare with: run xray-opt tune first")
    trials.sort(key=lambda trial: (-(trial.value or 0.0), trial.number))  # a front stands first in the ranking
    winner = (record.notes.get("confirmation") or {}).get("winner")
    for trial in trials:
        if trial.number == winner:
            return trial, "confirmed with new seeds"
    return trials[0], "best of the search"


def _settings(work: Work, trial: TrialRecord) -> Config:
    return work.opened.config.settings(dict(trial.params))


def train_all(work: Work, trial: TrialRecord, seeds: int, rates: int) -> list[Trained]:
    """The runs of every strategy; those that are missing are trained.

    The rivals have LoRA's settings but the learning rate, which is the best of ``rates`` on validation, from the
    search's own seed: ten times apart, LoRA's in the middle.
    """
    require_sent(work.tracking, "baseline")
    for run in _known(work):
        if run.info.status == "RUNNING" and BASELINE in run.data.tags:  # of a killed call: nobody else is at work
            close_lost(work.connection, run.info.run_id)
    return [_strategy(work, trial, strategy, seeds, rates) for strategy in STRATEGIES]


def _strategy(work: Work, trial: TrialRecord, strategy: str, seeds: int, rates: int) -> Trained:
    config, runs, failed = override(_settings(work, trial), {"model.strategy": strategy}), [], None
    try:
        if strategy != "lora":
            config = _best_rate(work, trial, config, rates)
        for number in range(1, seeds + 1):
            own = override(config, {"training.seed": config.training.seed + number})
            runs.append(_run(work, trial, own, f"seed-{number}"))
    except TrainingError as error:
        failed = f"a training gave no result: {error}"
        work.watcher.say(f"{strategy}: {failed}")
    return Trained(strategy, config, trainable(attach(work.base, config)), tuple(runs), failed)


def _best_rate(work: Work, trial: TrialRecord, config: Config, rates: int) -> Config:
    """The settings with the learning rate of highest F1; among equals of the highest AUC, then the lowest rate.

    Raises:
        TrainingError: no rate gave a result.
    """
    if rates == 1:
        return config
    found, refused = [], None
    for number in range(rates):
        rate = min(config.optimizer.learning_rate * 10 ** (number - (rates - 1) / 2), 1.0)
        tried = override(config, {"optimizer.learning_rate": rate})
        try:
            run = _run(work, trial, tried, f"rate-{number + 1}")
        except TrainingError as error:  # too high a rate is none to choose
            refused = error
            work.watcher.say(f"{config.model.strategy}, learning rate {rate:.3g}: no result: {error}")
            continue
        found.append((run.data.metrics["best.f1"], run.data.metrics["best.auc"], -number, tried))
    if not found:
        raise refused or TrainingError("no learning rate gave a result")
    return max(found, key=lambda one: one[:3])[3]


def _run(work: Work, trial: TrialRecord, config: Config, place: str) -> Any:
    """The finished run of a training, which is trained if there is none.

    Raises:
        TrainingError: it gives no result.
    """
    strategy, digest = config.model.strategy, _digest(work, config)
    if (found := _done(work, trial, strategy, place, digest)) is not None:
        return found
    work.watcher.say(f"{strategy}, {place}: learning rate {config.optimizer.learning_rate:.3g}")
    folder = work.opened.workspace.study_folder(work.opened.config.name) / "baseline"
    checkpoint = folder / f"{work.opened.notes[IDENTITY][:8]}-{digest[:16]}.pt"
    job = Job(
        config=config,
        name=f"baseline-{strategy}-{place}",
        params=trial.params if strategy == "lora" else {},
        tags={
            **work.tags,
            "xray_opt.role": "baseline",
            BASELINE: strategy,
            OF: str(trial.number),
            PLACE: place,
            TRAINING: digest,
        },
        checkpoint=checkpoint,
        watch=lambda epoch: work.watcher.epoch(trial.number, epoch),
        say=work.watcher.say,
    )
    result = run_experiment(job, work.films.at(config), work.base, work.tracking, work.pseudonyms)
    discard_checkpoint(checkpoint)
    require_sent(work.tracking, "baseline")
    made = work.tracking.find_run(result.run_id)
    return next(run for run in _known(work) if run.info.run_id == made)


def _done(work: Work, trial: TrialRecord, strategy: str, place: str, digest: str) -> Any | None:
    """A finished run of this very training; a retraining by ``confirm`` of the same trial and seed is one."""
    for run in _known(work):
        tags = run.data.tags
        confirmed = strategy == "lora" and (tags.get(CONFIRMS), tags.get(WHICH)) == (str(trial.number), place)
        if run.info.status == "FINISHED" and (tags.get(TRAINING) == digest or confirmed):
            return run
    return None


def _known(work: Work) -> Sequence[Any]:
    """Runs of comparisons and of confirmations, oldest first."""
    runs = child_runs(work.connection, work.tracking.parent_id)
    ours = [run for run in runs if {BASELINE, CONFIRMS} & run.data.tags.keys()]
    return sorted(ours, key=lambda run: run.info.start_time)


def _digest(work: Work, config: Config) -> str:
    decides = identity(config, work.base.sha256, work.images.manifest.sha256, work.films.side(config))
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
