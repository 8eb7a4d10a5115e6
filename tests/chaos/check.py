"""What must hold of a study whatever was done to its workers and stores; every breach is a line."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

from chaos.seen import Kept, Seen, Trial, TrialRun

#: State of a trial → status of its run.
STATUS = {"COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAIL": "FAILED"}
#: Why a trial may fail here: its worker was taken from it. Anything else is a fault of the product.
REASONS = ("worker-lost", "interrupted")
#: Values of every epoch beside ``val.f1``: one that no run had would not be missed otherwise.
VALUES = frozenset(("train.loss", "val.auc", "val.loss", "learning_rate"))
#: Seconds behind the last fault of a store within which writes may still wait for it when ``tune`` ends.
QUIET = 120.0


def breaches(seen: Seen, asked: int) -> list[str]:
    """All that does not hold, a line each; none where all is well."""
    agreement = (line for _, line in _agreement(seen))
    return [*_counts(seen, asked), *_running(seen), *agreement, *_resumed(seen), *_parent(seen), *_champion(seen)]


def left_behind(seen: Seen, kept: Kept, asked: int) -> list[str]:
    """What did not hold when ``tune`` had ended, before anything else mended it, and is not known to be mended later.

    Where MLflow was away at the end, it is behind: a write that waits explains the run that it is of, and the study's
    note that settling was postponed explains all that settling does. Nothing explains what Optuna itself has.
    """
    found = [*_counts(seen, asked), *_resumed(seen)]
    if not seen.postponed:
        found += [line for number, line in _agreement(seen) if number not in kept.trials]
        found += [] if kept.study else _parent(seen)
        found += _champion(seen)
    return [f"when tune ended: {line}" for line in found]


def waits(seen: Seen, kept: Kept, quiet: float) -> list[str]:
    """That something waits for stores that were there for so long when ``tune`` ended: it should have been sent."""
    if quiet < QUIET or not (seen.postponed or kept.writes):
        return []
    what = ", ".join(f"{count} {kind}" for kind, count in kept.writes.items()) or "settling the study"
    return [f"when tune ended {what} waited, though the stores had been there for {quiet:.0f} s"]


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


def _running(seen: Seen) -> Iterator[str]:
    if running := sum(run.status == "RUNNING" for run in seen.runs):
        yield f"{running} runs of trials are RUNNING in MLflow"


def _agreement(seen: Seen) -> Iterator[tuple[int, str]]:
    """Number of a trial, and where its run is not as it is."""
    names = {name for run in seen.runs for name in run.series}
    names |= VALUES if names else set()
    runs: dict[int, list[TrialRun]] = {}
    for run in seen.runs:
        runs.setdefault(run.trial, []).append(run)
    for trial in seen.trials:
        own = runs.pop(trial.number, [])
        if len(own) == 1:
            lines = (*_differences(trial, own[0]), *_series(own[0], names))
            yield from ((trial.number, f"trial {trial.number}: {line}") for line in lines)
        elif own or trial.epochs or trial.state in ("COMPLETE", "PRUNED"):  # one that died at once needs no run
            yield trial.number, f"trial {trial.number} ({trial.state}) has {len(own)} runs in MLflow"
    yield from ((number, f"trial {number} is in MLflow alone") for number in runs)


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


def _series(run: TrialRun, names: set[str]) -> Iterator[str]:
    """Every value of an epoch is there once, as the one is that Optuna has; ``names`` are those that any run has."""
    wanted = [step for step, _, _ in run.epochs]
    for name in sorted(names):
        steps = list(run.series.get(name, ()))
        if steps != wanted:
            yield f"{name} is at epochs {steps}, val.f1 at {wanted}"


def _resumed(seen: Seen) -> Iterator[str]:
    trials = {trial.number: trial for trial in seen.trials}
    retries = Counter(trial.retry_of for trial in seen.trials if trial.retry_of is not None)
    yield from (f"trial {number} was tried again {count} times" for number, count in retries.items() if count > 1)
    for trial in seen.trials:
        if trial.retry_of is None or trial.state == "WAITING":
            continue
        lost = trials[trial.retry_of]
        if lost.reason not in REASONS:
            yield f"trial {trial.number} resumes trial {lost.number}, which was not lost: {lost.state}, {lost.reason}"
        # One that was killed before its params were drawn has none; whoever resumes it draws them.
        if any(trial.params[name] != lost.params[name] for name in trial.params.keys() & lost.params.keys()):
            yield f"trial {trial.number} resumes trial {lost.number} with other params: {trial.params}, {lost.params}"
        kept = {epoch: value for epoch, value in lost.epochs.items() if epoch in trial.epochs}
        if trial.state != "FAIL" and kept != lost.epochs:
            yield f"trial {trial.number} left out epochs of trial {lost.number}"
        if any(trial.epochs[epoch] != value for epoch, value in kept.items()):
            yield f"trial {trial.number} has other values than trial {lost.number}, which it resumes"


def _parent(seen: Seen) -> Iterator[str]:
    if seen.parent != "FINISHED":
        yield f"the study's run is {seen.parent}"


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
