"""``confirm``: is the winner of a search really better?"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import click

from xray_opt.cli.options import as_json, run_options, study_from
from xray_opt.cli.output import between, cell, print_json, print_table, short_names
from xray_opt.cli.progress import Progress

if TYPE_CHECKING:
    from xray_opt.confirm import Confirmation, Promotion
    from xray_opt.intervals import Gain


@click.command()
@click.option("--study", "study_name", default="reference", show_default=True, help="Study file, or its short name.")
@click.option("--name", help="Name of the study in Optuna and MLflow; default: the file's.")
@click.option("--top", type=click.IntRange(min=1), default=3, show_default=True, help="So many best settings.")
@click.option("--seeds", type=click.IntRange(min=2), default=3, show_default=True, help="New seeds a setting.")
@click.option("--splits", type=click.IntRange(min=0), default=0, help="Re-drawn splits of train and val a setting.")
@click.option("--promote", is_flag=True, help="Make the winner the champion, with the evidence attached.")
@run_options
@as_json
def confirm(
    study_name: str,
    name: str | None,
    top: int,
    seeds: int,
    splits: int,
    promote: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Retrain the best settings of a study with new seeds, and say which one is better by that; run again to continue.

    The search's own scores are those of winners, so they are too high: the gap is shown. A setting counts for the lower
    end of its confirmed interval. The test split is not touched. Options are those of the study's tune.
    """
    from xray_opt.config import Workspace

    study = study_from(study_name, name, **options)

    from xray_opt.confirm import confirm as retrain
    from xray_opt.workers import StudyWatcher

    progress = Progress()
    progress.epochs = study.config.training.epochs
    watcher = StudyWatcher(say=progress.say, progress=progress.bar, epoch=progress.epoch)
    verdict, promotion = retrain(study, Workspace.here(), top, seeds, splits, promote, watcher)
    if as_json:
        version = promotion and {"name": promotion.new.name, "version": promotion.new.version}
        print_json(verdict.to_dict() | {"champion": version})
    else:
        _print(verdict, promotion)


def told(lead: Gain) -> str:
    """What a lead over the runner-up says; the runner-up leads only where re-drawn splits spoke against it."""
    if lead.low is not None and lead.low > 0:
        return "the lead is beyond chance"
    if lead.high is not None and lead.high < 0:
        return "on the study's own split the runner-up is better; the re-drawn splits decided"
    return "the two are not told apart"


def _print(verdict: Confirmation, promotion: Promotion | None) -> None:
    rows = [[one.trial, one.search, *between(one.confirmed), *between(one.gap), one.lower] for one in verdict.settings]
    heads = ["trial", "search F1", "confirmed", "95 %", "gap", "95 %", "counts"]
    print_table(heads, rows, title=f"{verdict.study}: search against new seeds, validation F1")
    if any(one.resplit for one in verdict.settings):
        rows = [[one.trial, *between(one.resplit), len(one.splits)] for one in verdict.settings if one.resplit]
        print_table(["trial", "re-drawn splits", "95 %", "splits"], rows)
    for one in verdict.settings:
        if one.lower is None:
            click.echo(f"trial {one.trial} counts for nothing: {one.confirmed.why}")
    if verdict.winner is None:
        click.echo("no winner")
        return
    best = verdict.of(verdict.winner)
    params = zip(short_names(best.params), best.params.values(), strict=True)
    shown = ", ".join(f"{name} {cell(value)}" for name, value in params)
    click.echo(textwrap.fill(f"winner: trial {best.trial} ({shown})", 80))
    if lead := verdict.lead:
        ends = "no interval" if lead.low is None else f"{lead.low:+.4f} to {lead.high:+.4f}, p {lead.p:.2g}"
        click.echo(f"over trial {verdict.runner_up}: {lead.value:+.4f} ({ends})")
        click.echo(told(lead))
    if promotion is not None:
        before = f"in place of version {promotion.before.version}" if promotion.before else "as before or as the first"
        click.echo(f"champion: {promotion.new.name} version {promotion.new.version}, {before}")
