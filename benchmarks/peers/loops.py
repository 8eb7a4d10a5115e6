"""What a study costs a trial without training: Optuna alone in memory, and ours on SQLite; ten reports a trial."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from measure import Values, serve, spawned

from xray_opt.config import Config, Parameter, StudyConfig, Workspace, override
from xray_opt.tuning import Outcome, TrialContext, open_study

SPACE = tuple(
    Parameter(name, "float", low=1e-5, high=1e-1, log=True)
    for name in ("optimizer.learning_rate", "optimizer.weight_decay")
)


def run(job: dict[str, Any]) -> Values:
    """Seconds a trial of the loop that the job names."""
    with tempfile.TemporaryDirectory(prefix="xray-bench-") as folder:
        start = ours(job, Workspace(Path(folder))) if job["loop"] == "ours" else optuna_alone(job)
        began = time.monotonic()
        start()
        return {"trial_s": (time.monotonic() - began) / job["trials"], "start_s": began - spawned()}


def optuna_alone(job: dict[str, Any]) -> Callable[[], Any]:
    """Optuna's own loop, nothing kept; ready to start."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)

    def objective(trial: optuna.Trial) -> float:
        value = sum(trial.suggest_float(item.name, item.low, item.high, log=True) for item in SPACE)
        for epoch in range(1, 11):
            trial.report(value + epoch, epoch)
        return value

    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=job["seed"]))
    return lambda: study.optimize(objective, n_trials=job["trials"])


def ours(job: dict[str, Any], workspace: Workspace) -> Callable[[], Any]:
    """The loop behind ``tune``, each step of it in the storage; ready to start."""

    def objective(trial: TrialContext) -> Outcome:
        value = sum(float(value) for value in trial.params.values())
        for epoch in range(1, 11):
            trial.report(epoch, value + epoch)
        return Outcome(value)

    study = StudyConfig("loop", override(Config(), {"training.epochs": 10}), SPACE, seed=job["seed"])
    opened = open_study(study, workspace, "0" * 64)
    return lambda: opened.tune(objective, job["trials"])


if __name__ == "__main__":
    serve(run)
