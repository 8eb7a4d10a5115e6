"""``study``: list, show, delete."""

from __future__ import annotations

from typing import Any

import click

from xray_opt.cli.options import as_json
from xray_opt.cli.output import print_json, print_table, short_names


@click.group()
def study() -> None:
    """List, show and delete studies."""


@study.command("list")
@as_json
def list_command(as_json: bool) -> None:
    """All studies of the storage with their counts and best value."""
    from xray_opt.config import Workspace
    from xray_opt.tuning import list_studies

    records = list_studies(Workspace.here())
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
@as_json
def show(name: str, as_json: bool) -> None:
    """One study: every trial with its state, value and params, and which params mattered."""
    from xray_opt.config import Workspace
    from xray_opt.tuning import importances, read_study

    record = read_study(name, Workspace.here())
    weights = importances(name, Workspace.here())
    if as_json:
        print_json(record.to_dict() | {"importances": weights})
        return
    names = sorted({param for trial in record.trials for param in trial.params})
    rows = [
        [
            t.number,
            t.state.lower(),
            t.value,
            len(t.intermediate),
            *(t.params.get(name) for name in names),
            t.reason or "",
        ]
        for t in record.trials
    ]
    print_table(["trial", "state", "val F1", "epochs", *short_names(names), "reason"], rows, title=name)
    for trial in record.trials:
        if trial.message:
            click.echo(f"trial {trial.number} failed: {trial.message}")
    if weights:
        click.echo("importance (PED-ANOVA):")
        for param, weight in weights.items():
            click.echo(f"  {weight:.2f}  {param}")


@study.command()
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
def delete(name: str, yes: bool) -> None:
    """Delete a study's trials, its MLflow runs and its checkpoints; registered models stay."""
    from xray_opt.config import Workspace
    from xray_opt.tuning import read_study
    from xray_opt.upkeep import delete_whole_study

    record = read_study(name, Workspace.here())
    if not yes:
        click.confirm(f"delete study {name} with {len(record.trials)} trials?", abort=True, err=True)
    counts: dict[str, Any] = delete_whole_study(name, Workspace.here())
    click.echo(f"deleted study {name}: {len(record.trials)} trials, {counts['runs']} MLflow runs")
