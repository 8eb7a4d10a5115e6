"""``baseline``: is LoRA worth it beside a linear probe, training everything, and models that look at no lungs?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xray_opt.cli.options import as_json, run_options, study_from
from xray_opt.cli.output import between, cell, print_json, print_table
from xray_opt.cli.progress import Progress

if TYPE_CHECKING:
    from xray_opt.baseline import Comparison


@click.command()
@click.option("--study", "study_name", default="reference", show_default=True, help="Study file, or its short name.")
@click.option("--name", help="Name of the study in Optuna and MLflow; default: the file's.")
@click.option("--seeds", type=click.IntRange(min=2), default=3, show_default=True, help="Trainings a strategy.")
@click.option(
    "--rates", type=click.IntRange(min=1), default=3, show_default=True, help="Learning rates tried for each rival."
)
@click.option("--split", type=click.Choice(["val", "test"]), default="val", show_default=True, help="What is scored.")
@click.option("--why", help="With --split test: why it is opened; written to study and run.")
@click.option("--again", is_flag=True, help="Open test once more where a comparison is recorded; that is counted.")
@click.option("--out", type=click.Path(path_type=Path), help="Also write table and picture into this folder.")
@run_options
@as_json
def baseline(
    study_name: str,
    name: str | None,
    seeds: int,
    rates: int,
    split: str,
    why: str | None,
    again: bool,
    out: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Compare LoRA at the study's best settings with a linear probe, with training everything and with trivial models.

    All are trained on the study's split with the same seeds, epochs and settings; each rival has its own learning rate.
    Run again to continue. --split test is for after finalize: it opens the sealed split once, and records that. Options
    are those of the study's tune.
    """
    from xray_opt.baseline import baseline as run
    from xray_opt.baseline.comparing import WHY
    from xray_opt.config import Workspace
    from xray_opt.workers import StudyWatcher

    study = study_from(study_name, name, **options)
    progress = Progress()
    progress.epochs = study.config.training.epochs
    watcher = StudyWatcher(progress.say, progress.bar, epoch=lambda number, epoch: progress.epoch(None, epoch))
    found = run(study, Workspace.here(), seeds, rates, split, why or WHY, again, watcher)
    if out is not None:
        _write(found, out)
    if as_json:
        print_json(found.to_dict())
    else:
        _print(found)


def _write(found: Comparison, out: Path) -> None:
    import json

    from xray_opt.baseline.picture import draw
    from xray_opt.errors import ConfigError

    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / f"baseline-{found.split}.json").write_text(json.dumps(found.to_dict(), indent=1) + "\n")
        draw(found, out, f"baseline-{found.split}")
    except OSError as error:
        raise ConfigError(f"--out: cannot write to {out}: {error.strerror or error}") from error


def _print(found: Comparison) -> None:
    from xray_opt.report import called

    title = (
        f"{found.study}, {found.split}: {found.films} films of {found.patients} patients, mean of {found.seeds} seeds"
    )
    for scores in (("f1", "auc"), ("accuracy", "precision"), ("sensitivity", "specificity")):
        rows = [[called(row.key), *_cells(row, scores)] for row in found.rows]
        heads = [head for score in scores for head in (score.replace("f1", "F1").replace("auc", "AUC"), "95 %")]
        print_table(["", *heads], rows, title=title if scores[0] == "f1" else None)
    trained = [row for row in found.rows if row.trainable is not None]
    rows = [[called(row.key), f"{row.trainable:,}", row.seconds, row.learning_rate] for row in trained]
    print_table(["", "trained weights", "seconds a training", "learning rate"], rows)
    best = next((row.key for row in found.rows if row.key in found.gains and row.trainable is None), None)
    rows = []
    for key in [key for key in ("linear", "full", best) if key in found.gains]:
        for score in ("f1", "auc"):
            one = found.gains[str(key)][score]
            p = None if one.p is None else f"{one.p:.2g}"
            rows.append([f"LoRA - {called(str(key))}", score.upper(), *between(one), p])
    print_table(["paired gains", "", "gain", "95 %", "p"], rows)
    for reason in _reasons(found):
        click.echo(reason)
    click.echo(f"LoRA has the settings of trial {found.trial} ({found.chosen_by})")
    if found.split == "val":
        click.echo("thresholds were fitted to these films: scores at them are a little too high")
    if found.opening is not None:
        click.echo(f"test split opened {found.opening.when[:19]} by {found.opening.who}: {found.opening.why}")


def _cells(row: Any, scores: tuple[str, ...]) -> list[object]:
    return [part for score in scores for part in (between(row.scores[score]) if row.scores else [None, None])]


def _reasons(found: Comparison) -> list[str]:
    from xray_opt.report import called

    failed = [f"{called(row.key)}: {row.failed}" for row in found.rows if row.failed]
    shown = ("f1", "auc", "accuracy", "precision", "sensitivity", "specificity")
    whys = {row.scores[score].why for row in found.rows if row.scores for score in shown}
    return failed + sorted(f"no interval: {cell(why)}" for why in whys if why)
