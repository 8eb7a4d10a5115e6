"""``migrate``: copy studies, runs and models to the service, or back."""

from __future__ import annotations

import sys

import click

from xray_opt.cli.options import as_json
from xray_opt.cli.output import print_json, print_table

END = "workspace (its embedded stores), service (XRAY_OPT_STORAGE and MLFLOW_TRACKING_URI), or a workspace's folder."


@click.command()
@click.option("--study", "studies", metavar="NAME", multiple=True, help="A study; default: all, and runs without one.")
@click.option("--from", "start", metavar="END", default="workspace", show_default=True, help=f"Source: {END}")
@click.option("--to", "end", metavar="END", default="service", show_default=True, help="Target: likewise.")
@click.option("--storage", metavar="URL", help="Optuna storage of the service; default: XRAY_OPT_STORAGE.")
@click.option("--tracking-uri", "uri", metavar="URI", help="MLflow of the service; default: MLFLOW_TRACKING_URI.")
@as_json
def migrate(
    studies: tuple[str, ...], start: str, end: str, storage: str | None, uri: str | None, as_json: bool
) -> None:
    """Copy studies, MLflow runs and registered models to other stores.

    Nothing is changed at the source. Stopped halfway, the same command goes on; once more, it only compares. Exit code
    1 where something of the source is not in the target.
    """
    from xray_opt.config import Workspace
    from xray_opt.migrate import migrate as move

    done = move(Workspace.here(), studies, start, end, storage, uri, lambda line: click.echo(line, err=True))
    rows = [(row.what, row.source, row.target, row.equal) for row in done.counts]
    if as_json:
        keys = ("what", "source", "target", "equal")
        print_json({"studies": done.studies, "counts": [dict(zip(keys, row, strict=True)) for row in rows]})
    elif rows:
        print_table(["what", "source", "target", "equal"], [(*row[:3], "yes" if row[3] else "NO") for row in rows])
    else:
        click.echo("there is nothing to copy")
    sys.exit(0 if done.equal else 1)
