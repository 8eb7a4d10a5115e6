"""``sync``: send what waits for MLflow."""

from __future__ import annotations

import click

from xray_opt.cli.options import as_json, more_storages
from xray_opt.cli.output import print_json


@click.command()
@more_storages
@as_json
def sync(storages: tuple[str, ...], as_json: bool) -> None:
    """Send what waits for MLflow and register what was postponed.

    While MLflow is away, tune and train keep what they log in mlruns/spool. They send it when MLflow is back; this does
    where they have ended before. Exit code 7 where something still waits.
    """
    from xray_opt.config import Workspace
    from xray_opt.errors import TrackingError
    from xray_opt.syncing import sync as send

    workspace = Workspace.here()
    report = send(workspace, storages, lambda line: click.echo(line, err=True))
    if as_json:
        registered = {study: {"name": v.name, "version": v.version} for study, v in report.registered.items()}
        print_json({**vars(report), "registered": registered})
    elif report.idle:
        click.echo("nothing to do: nothing waits for MLflow")
    else:
        click.echo(f"{report.sent} writes sent")
        for study, version in report.registered.items():
            click.echo(f"registered the best adapter of study {study}: {version.name} version {version.version}")
        if report.at_work:
            click.echo(f"{report.at_work} writes wait in processes that are at work: they send them themselves")
    if report.waiting or report.problems:
        lines = "; ".join(report.problems)
        head = f"{report.waiting} writes still wait in {workspace.spool}" if report.waiting else "not all could be done"
        raise TrackingError(f"{head}: {lines}")
