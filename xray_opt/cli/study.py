"""``study``: list, show, delete."""

from __future__ import annotations

from typing import Any

import click

from xray_opt.cli.options import as_json, storage_option, tracking_option
from xray_opt.cli.output import print_json, print_table, short_names


@click.group()
def study() -> None:
    """List, show and delete studies."""


@study.command("list")
@storage_option
@as_json
def list_command(storage: str | None, as_json: bool) -> None:
    """All studies of the storage with their counts and best value."""
    from xray_opt.config import Workspace
    from xray_opt.tuning import list_studies

    records = list_studies(Workspace.here(), storage)
    if as_json:
        print_json([record.to_dict() for record in records])
        return
    if not records:
        click.echo("no studies yet; start one with: xray-opt tune")
        return
    rows = [
        [r.name, r.count("COMPLETE"), r.count("PRUNED"), r.count("FAIL"), r.count("RUNNING"), r.best and r.best.value]
        for r in records
    ]
    print_table(["study", "complete", "pruned", "failed", "running", "best val F1"], rows)


@study.command()
@click.argument("name")
@storage_option
@as_json
def show(name: str, storage: str | None, as_json: bool) -> None:
    """One study (NAME, or its file): every trial with its state, value and params, and which params mattered."""
    from xray_opt.config import Workspace
    from xray_opt.places import find_place
    from xray_opt.tuning import importances, read_study

    place = find_place(Workspace.here(), name, storage)
    record = read_study(str(place.study), Workspace.here(), place.storage)
    weights = {one: importances(record.name, Workspace.here(), place.storage, one) for one in record.objectives}
    if as_json:
        # Of a study with one objective, its own.
        print_json(record.to_dict() | {"importances": weights if record.second else weights[record.objectives[0]]})
        return
    names = sorted({param for trial in record.trials for param in trial.params})
    rows = [
        [
            t.number,
            t.state.lower(),
            t.value,
            *([t.second] if record.second else []),
            len(t.intermediate),
            *(t.params.get(name) for name in names),
            t.reason or "",
        ]
        for t in record.trials
    ]
    heads = ["trial", "state", "val F1", *record.objectives[1:], "epochs", *short_names(names), "reason"]
    print_table(heads, rows, title=record.name)
    for trial in record.trials:
        if trial.message:
            click.echo(f"trial {trial.number} failed: {trial.message}")
    for objective, own in weights.items():
        if own:
            click.echo(f"importance for {objective} (PED-ANOVA):")
            for param, weight in own.items():
                click.echo(f"  {weight:.2f}  {param}")


@study.command()
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--force", is_flag=True, help="Also while a worker is at work on it.")
@storage_option
@tracking_option
def delete(name: str, yes: bool, force: bool, storage: str | None, uri: str | None) -> None:
    """Delete the trials of a study (NAME, or its file), its MLflow runs and its checkpoints; registered models stay."""
    from xray_opt.config import Workspace
    from xray_opt.places import find_place
    from xray_opt.tuning import read_study
    from xray_opt.upkeep import delete_whole_study

    place = find_place(Workspace.here(), name, storage, uri)
    record = read_study(str(place.study), Workspace.here(), place.storage)
    if not yes:
        click.confirm(f"delete study {record.name} with {len(record.trials)} trials?", abort=True, err=True)
    counts: dict[str, Any] = delete_whole_study(place, Workspace.here(), force)
    click.echo(f"deleted study {record.name}: {len(record.trials)} trials, {counts['runs']} MLflow runs")
