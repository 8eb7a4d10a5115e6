"""Our side of the comparison: the same films and settings through cache, Trainer and study."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from common import Clock
from measure import Values, serve, spawned
from workload import SHARES, images_of, settings

from xray_opt.backbone import load_base
from xray_opt.config import (
    Config,
    DataConfig,
    Parameter,
    PrunerConfig,
    SamplerConfig,
    StudyConfig,
    Workspace,
    override,
)
from xray_opt.dataset import prepared
from xray_opt.trainer import Epoch, Trainer
from xray_opt.tuning import Outcome, TrialContext, open_study

Job = dict[str, Any]
RATE = Parameter("optimizer.learning_rate", "float", low=1e-4, high=1e-2, log=True)
DECAY = Parameter("optimizer.weight_decay", "float", low=1e-4, high=1e-1, log=True)


def run(job: Job) -> Values:
    """Train all trials of a job, or run the whole product's study."""
    return whole(job) if job["what"] == "study" else train(job)


def study_of(job: Job, config: Config) -> StudyConfig:
    """The study of a job: TPE over learning rate and weight decay."""
    return StudyConfig(
        "bench",
        config,
        (RATE, DECAY),
        trials=job["trials"],
        seed=job["seed"],
        sampler=SamplerConfig("tpe", startup_trials=10),
        pruner=PrunerConfig(job["pruner"]),
    )


def workspace_of(job: Job) -> Workspace:
    """A new workspace: the cache is built in every process."""
    return Workspace(Path(job["workspace"]) / str(time.monotonic_ns()))


def train(job: Job) -> Values:
    """The trials through a study and the Trainer, without MLflow, as the peers have none."""
    workspace, clock = workspace_of(job), Clock()
    manifest = prepared(DataConfig(root=job["root"], **SHARES), workspace)
    base = load_base(settings(job).model)
    paths = ([path for path, _ in job[split]] for split in ("train", "val"))
    images = images_of(manifest, job["size"], workspace.root, *paths)

    def objective(trial: TrialContext) -> Outcome:
        with clock.trial():
            trainer = Trainer(trial.config, images, base)
            clock.first = clock.first or time.monotonic()
            for epoch in trainer.epochs():
                clock.passes.append(_pass(epoch, len(images.train)))
                trial.report(epoch.number, epoch.val.f1)
            return Outcome(trainer.history[trainer.best_epoch - 1].val.f1)

    tally = open_study(study_of(job, settings(job)), workspace, manifest.sha256).tune(objective, job["trials"])
    return clock.values(job["trials"], wall_s=time.monotonic() - spawned(), f1=_best(tally))


def whole(job: Job) -> Values:
    """``tune`` with everything it does: storage, MLflow, saved and scored adapters, the registered model."""
    from xray_opt.workers import StudyWatcher, tune

    clock, workspace = Clock(), workspace_of(job)
    began: list[float] = []
    epochs: list[Epoch] = []

    def started(*_: Any) -> None:
        began.append(time.monotonic())
        clock.first = clock.first or began[0]

    watcher = StudyWatcher(
        trial_started=started,
        epoch=lambda number, epoch: epochs.append(epoch),
        trial_ended=lambda record: clock.trials.append(time.monotonic() - began[-1]),
    )
    config = override(
        settings(job), {"data.root": job["root"]} | {f"data.{name}": part for name, part in SHARES.items()}
    )
    report = tune(study_of(job, config), workspace, job["trials"], watcher=watcher)
    clock.passes = [_pass(epoch, len(job["train"])) for epoch in epochs]
    rest = (sum(clock.trials) - sum(epoch.seconds for epoch in epochs)) / len(clock.trials)
    return clock.values(job["trials"], wall_s=time.monotonic() - spawned(), f1=_best(report.tally), rest_s=rest)


def _pass(epoch: Epoch, films: int) -> tuple[int, float]:
    return films, films / epoch.images_per_second


def _best(tally: Any) -> float:
    return float(tally.best.value) if tally.best else 0.0


if __name__ == "__main__":
    serve(run)
