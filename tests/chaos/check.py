"""What must hold of a study whatever was done to its workers and stores; every breach is a line."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

from chaos.seen import Seen, Trial, TrialRun

#: State of a trial → status of its run.
STATUS = {"COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAIL": "FAILED"}
#: Why a trial may fail here: its worker was taken from it. Anything else is a fault of the product.
REASONS = ("worker-lost", "interrupted")


def breaches(seen: Seen, asked: int) -> list[str]:
    """All that does not hold, a line each; none where all is well."""
    return [*_counts(seen, asked), *_agreement(seen), *_resumed(seen), *_champion(seen)]


def seconds_lost(seen: Seen) -> float:
    """Work that was done for nothing: of every trial that lost its worker, the time behind its last kept epoch.

    Measured to the moment at which the loss was found, so that waiting counts as well.
    """
    last = {run.trial: max((when for _, _, when in run.epochs), default=0.0) for run in seen.runs}
    lost = [trial for trial in seen.trials if trial.reason in REASONS and trial.state == "FAIL"]
    return sum(max(trial.ended - max(last.get(trial.number, 0.0), trial.begun), 0.0) for trial in lost)


def _counts(seen: Seen, asked: int) -> Iterator[str]:
    states = Counter(trial.state for trial in seen.trials)
    if (counted := states["COMPLETE"] + states["PRUNED"]) != asked:
        yield f"{counted} trials are COMPLETE or PRUNED, {asked} were asked for"
    if states["RUNNING"]:
        yield f"{states['RUNNING']} trials are RUNNING"
    for trial in seen.trials:
        if trial.state == "FAIL" and trial.reason not in REASONS:
            yield f"trial {trial.number} failed by itself: {trial.reason}"
    if running := sum(run.status == "RUNNING" for run in seen.runs):
        yield f"{running} runs of trials are RUNNING in MLflow"
    if seen.parent != "FINISHED":
        yield f"the study's run is {seen.parent}"


def _agreement(seen: Seen) -> Iterator[str]:
    runs: dict[int, list[TrialRun]] = {}
    for run in seen.runs:
        runs.setdefault(run.trial, []).append(run)
    for trial in seen.trials:
        own = runs.pop(trial.number, [])
        if len(own) == 1:
            yield from (f"trial {trial.number}: {line}" for line in _differences(trial, own[0]))
        elif own or trial.epochs or trial.state in ("COMPLETE", "PRUNED"):  # one that died at once needs no run
            yield f"trial {trial.number} ({trial.state}) has {len(own)} runs in MLflow"
    yield from (f"trial {number} is in MLflow alone" for number in runs)


def _differences(trial: Trial, run: TrialRun) -> Iterator[str]:
    if run.status != STATUS.get(trial.state):
        yield f"{trial.state} in Optuna, {run.status} in MLflow"
    if trial.state == "FAIL" and run.reason != trial.reason:
        yield f"{trial.reason} in Optuna, {run.reason} in MLflow"
    for name, value in trial.params.items():
        if name not in run.params or float(run.params[name]) != value:
            yield f"{name} is {value} in Optuna, {run.params.get(name)} in MLflow"
    points = [(step, value) for step, value, _ in run.epochs]
    reported = list(trial.epochs.items())
    # A kill may fall between logging an epoch and reporting it; the trial that resumes reports it.
    ahead = len(points) - len(reported)
    if points[: len(reported)] != reported or ahead not in ((0, 1) if trial.state == "FAIL" else (0,)):
        yield f"epochs are {reported} in Optuna, {points} in MLflow"
    if [step for step, _ in points] != list(range(1, len(points) + 1)):
        yield f"its epochs are {[step for step, _ in points]}"
    if trial.state == "COMPLETE":
        best = max(trial.epochs.values(), default=math.nan)
        if not trial.value == best == run.best:
            yield f"its value is {trial.value}, its best epoch {best}, in MLflow {run.best}"
        if "adapter" not in run.artifacts:
            yield "it has no adapter"


def _resumed(seen: Seen) -> Iterator[str]:
    trials = {trial.number: trial for trial in seen.trials}
    retries = Counter(trial.retry_of for trial in seen.trials if trial.retry_of is not None)
    yield from (f"trial {number} was tried again {count} times" for number, count in retries.items() if count > 1)
    for trial in seen.trials:
        if trial.retry_of is None or trial.state == "WAITING":
            continue
        lost = trials[trial.retry_of]
        if lost.reason not in REASONS or (lost.params != trial.params and trial.params):
            yield f"trial {trial.number} resumes trial {lost.number}, which was not lost or has other params"
        kept = {epoch: value for epoch, value in lost.epochs.items() if epoch in trial.epochs}
        if trial.state != "FAIL" and kept != lost.epochs:
            yield f"trial {trial.number} left out epochs of trial {lost.number}"
        if any(trial.epochs[epoch] != value for epoch, value in kept.items()):
            yield f"trial {trial.number} has other values than trial {lost.number}, which it resumes"


def _champion(seen: Seen) -> Iterator[str]:
    complete = [trial for trial in seen.trials if trial.state == "COMPLETE"]
    if not complete:
        return
    best = max(complete, key=lambda trial: (trial.value, -trial.number))
    run = next((run.run_id for run in seen.runs if run.trial == best.number), None)
    if seen.champion != run:
        yield f"champion is of run {seen.champion}, the best is trial {best.number} of run {run}"
    if len(seen.versions) != len(set(seen.versions)):
        yield f"a run was registered more than once: {seen.versions}"
