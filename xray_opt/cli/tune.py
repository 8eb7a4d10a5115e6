"""``tune`` and ``train``: search, or one run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xray_opt.cli.options import Number, as_json, run_options, settings_from, study_from
from xray_opt.cli.output import cell, duration, print_json
from xray_opt.cli.progress import Progress

if TYPE_CHECKING:
    from xray_opt.workers import TuneReport


@click.command()
@click.option("--study", "study_name", default="reference", show_default=True, help="Study file, or its short name.")
@click.option("--name", help="Name of the study in Optuna and MLflow; default: the file's.")
@click.option("--trials", type=click.IntRange(min=1), help="Total trials, finished and pruned, over all calls.")
@click.option("--timeout", type=Number(min=0), help="Seconds after which no new trial starts.")
@click.option("--workers", type=click.IntRange(min=1), help="Processes on this machine's processor; default: 1.")
@click.option("--gpus", metavar="0,1|all", help="One process on each of these GPUs, as numbers or all.")
@click.option("--per-gpu", type=click.IntRange(min=1), help="Processes on each GPU of --gpus; default: 1.")
@click.option("--ray", metavar="ADDRESS|local", help="Run these processes on a Ray cluster, or on a Ray of one's own.")
@run_options
@as_json
def tune(
    study_name: str,
    name: str | None,
    trials: int | None,
    timeout: float | None,
    workers: int | None,
    gpus: str | None,
    per_gpu: int | None,
    ray: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Search for the best adapter; run again to continue.

    --trials is the study's total: the same command again does what is missing, nothing if nothing is. Another total is
    refused while others are at work. Ctrl-C ends cleanly; the next call goes on from the interrupted trial's last
    epoch. Several processes of one call (--workers, --gpus, --ray) and several calls on one storage share a study:
    docs/workers.md.
    """
    from xray_opt.config import Workspace

    # Before the imports that take seconds: a wrong name or setting is answered at once.
    study = study_from(study_name, name, **options)

    from xray_opt.launchers.choose import launcher_for
    from xray_opt.workers import StudyWatcher
    from xray_opt.workers import tune as run_study

    progress = Progress(trials or study.trials)
    watcher = StudyWatcher(
        say=progress.say,
        progress=progress.bar,
        known=progress.known,
        placed=progress.placed,
        trial_started=progress.trial_started,
        epoch=progress.epoch,
        trial_ended=progress.trial_ended,
    )
    launcher = launcher_for(study, workers, gpus, per_gpu, ray, progress.say)
    report = run_study(study, Workspace.here(), trials, timeout, watcher, launcher)
    if as_json:
        print_json(_as_dict(report))
    else:
        _print(report, study.second)


def _as_dict(report: TuneReport) -> dict[str, Any]:
    tally, best, version = report.tally, report.tally.best, report.version
    return {
        "study": report.study,
        "stopped": tally.stopped,
        "asked": tally.asked,
        "complete": tally.complete,
        "pruned": tally.pruned,
        "failed": tally.failed,
        "started_now": tally.started_now,
        "best": best and {"trial": best.number, "val.f1": best.value, "params": best.params},
        **({"front": [[one.number, one.value, one.second] for one in tally.front]} if tally.front else {}),
        "registered": version and {"name": version.name, "version": version.version, "aliases": list(report.aliases)},
        "mlflow_experiment": report.experiment_id,
        "waiting": report.waiting,
    }


def _print(report: TuneReport, second: str | None) -> None:
    tally = report.tally
    counts = f"{tally.complete} complete, {tally.pruned} pruned, {tally.failed} failed"
    if tally.stopped == "nothing to do":
        click.echo(f"study {report.study} has its {tally.asked} trials already ({counts}): nothing to do")
    else:
        click.echo(f"study {report.study}: {counts}; {tally.started_now} trials run now")
    if tally.best is not None:
        click.echo(f"best: trial {tally.best.number}, val F1 {cell(tally.best.value)}")
    for one in tally.front:
        click.echo(f"Pareto front: trial {one.number}, val F1 {cell(one.value)}, {second} {cell(one.second)}")
    if report.version is not None:
        aliases = ", ".join(report.aliases) or "no alias"
        click.echo(f"registered: {report.version.name} version {report.version.version} ({aliases})")
    click.echo(f"next: xray-opt compare {report.study} · xray-opt ui")


@click.command()
@click.option("--name", help="Name of the MLflow run; default: train-DATE-TIME.")
@click.option("--study", "study_name", help="Take the fixed settings of this study file.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Also write adapter and base weights into this new folder."
)
@run_options
@as_json
def train(name: str | None, study_name: str | None, out: Path | None, as_json: bool, **options: Any) -> None:
    """Train once, with default settings or a study's fixed ones, and log it to MLflow."""
    from xray_opt.config import Config, Workspace, find_study, load_study

    start = load_study(find_study(study_name, Workspace.here())).config if study_name else Config()
    config = settings_from(start, **options)

    from xray_opt.single import TrainWatcher
    from xray_opt.single import train as run_once

    progress = Progress()
    progress.epochs = config.training.epochs
    watcher = TrainWatcher(progress.say, progress.bar, lambda epoch: progress.epoch(None, epoch))
    result = run_once(config, Workspace.here(), name, out, watcher)
    scores = result.assessment.scores
    if as_json:
        print_json(
            {
                "run": result.run_id,
                "best_epoch": result.best_epoch,
                "val": vars(scores),
                "threshold": result.assessment.threshold,
                "seconds": result.seconds,
            }
        )
        return
    click.echo(
        f"best epoch {result.best_epoch}: val F1 {scores.f1:.4f}, AUC {cell(scores.auc)}, "
        f"accuracy {scores.accuracy:.4f} in {duration(result.seconds)}; MLflow run {result.run_id}"
    )
