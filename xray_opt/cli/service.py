"""``up``, ``down``, ``status``, ``backup``, ``restore``: the tracking service of a team."""

from __future__ import annotations

import sys
import time
from datetime import UTC
from typing import TYPE_CHECKING

import click

from xray_opt.cli.options import as_json
from xray_opt.cli.output import duration, print_json, print_table

if TYPE_CHECKING:
    from xray_opt.services import Status


class Waiting:
    """One line that says what is waited for, and since when; off a terminal a new line only where it changes."""

    def __init__(self) -> None:
        self.begun, self.last, self.shown = time.monotonic(), "", 0

    def __call__(self, what: str) -> None:
        """Show ``what``."""
        if sys.stderr.isatty():
            line = f"{duration(time.monotonic() - self.begun)}: {what}"[:110]
            click.echo("\r" + line.ljust(self.shown), err=True, nl=False)
            self.shown = len(line)
        elif (kind := what.split(",")[0]) != self.last:
            click.echo(what, err=True)
            self.last = kind

    def end(self) -> None:
        """Take the line away."""
        if self.shown:
            click.echo("\r" + " " * self.shown + "\r", err=True, nl=False)
            self.shown = 0


@click.command()
@click.option(
    "--profile", "profiles", multiple=True, type=click.Choice(["worker", "s3", "backup"]), help="What else to start."
)
@click.option("--workers", type=click.IntRange(min=0), help="How many worker containers (adds the profile worker).")
@click.option("--gpu", is_flag=True, help="A worker with the GPUs of XRAY_OPT_GPUS (adds the profile worker).")
@click.option("--build", is_flag=True, help="Build the images anew, even where they are there.")
def up(profiles: tuple[str, ...], workers: int | None, gpu: bool, build: bool) -> None:
    """Start MLflow, optuna-dashboard and PostgreSQL in containers and wait until they are healthy.

    Makes .env with all passwords at the first start; every command that runs in this folder then uses the service.
    Needs Docker with compose 2.20 or newer. docs/service.md tells the rest.
    """
    from xray_opt.config import Workspace
    from xray_opt.services import environment_path
    from xray_opt.services import up as start

    workspace, waiting = Workspace.here(), Waiting()
    fresh = not environment_path(workspace).exists()
    wanted = tuple(dict.fromkeys((*profiles, *(("worker",) if gpu or workers is not None else ()))))
    try:
        compose = start(workspace, wanted, build, workers, waiting, gpu)
    finally:
        waiting.end()
    path, values = environment_path(workspace), compose.values
    if fresh:
        click.echo(f"made {path} with all passwords: keep it as you keep a backup")
    click.echo(f"MLflow:            {values['MLFLOW_TRACKING_URI']}")
    click.echo(f"optuna-dashboard:  {values['XRAY_OPT_DASHBOARD_URL']}")
    click.echo(f"user {values['MLFLOW_TRACKING_USERNAME']}, password: MLFLOW_TRACKING_PASSWORD in {path}")
    click.echo("next: xray-opt tune · xray-opt status · xray-opt down")


@click.command()
def down() -> None:
    """Stop the tracking service and remove its containers; studies, runs, models and backups stay."""
    from xray_opt.config import Workspace
    from xray_opt.services import down as stop

    stop(Workspace.here())
    click.echo("stopped; all data is kept in the volumes. Start again with: xray-opt up")


@click.command()
@as_json
def status(as_json: bool) -> None:
    """Show each container of the tracking service, versions, sizes of the volumes, and the last backup.

    Ends with 8 where something that should run does not.
    """
    from xray_opt.config import Workspace
    from xray_opt.errors import ServiceError
    from xray_opt.services import status as look

    found = look(Workspace.here())
    if as_json:
        print_json(found.to_dict())
    else:
        _print(found)
    if not found.healthy:
        raise ServiceError("the service is not healthy: xray-opt up starts what is missing")


def _print(found: Status) -> None:
    from datetime import datetime

    from xray_opt.services import when

    rows = [[s.service, s.state, s.health or None, s.version or None, s.ports or None] for s in found.services]
    print_table(["service", "state", "health", "version", "published"], rows)
    print_table(["volume", "size"], [[name, size] for name, size in sorted(found.volumes.items())])
    for name, url in found.addresses.items():
        click.echo(f"{name}: {url}")
    if not found.backups:
        click.echo("backups: none; xray-opt backup makes one, the profile backup one every night")
        return
    age = (datetime.now(UTC) - when(found.backups[0])).total_seconds()
    click.echo(f"last backup: {found.backups[0]}, {duration(max(age, 0.0))} ago; {len(found.backups)} kept")


@click.command()
def backup() -> None:
    """Back the tracking service up now: both databases and the artifacts."""
    from xray_opt.config import Workspace
    from xray_opt.services import backup as make

    click.echo(f"backup {make(Workspace.here())}")


@click.command()
@click.argument("stamp")
@click.option("--yes", is_flag=True, help="Do not ask.")
def restore(stamp: str, yes: bool) -> None:
    """Put the backup STAMP back: all runs, models and studies of the service are replaced by it."""
    from xray_opt.config import Workspace
    from xray_opt.services import restore as put_back

    if not yes:
        click.confirm(f"Replace all runs, models and studies of the service by those of {stamp}?", abort=True)
    waiting = Waiting()
    try:
        put_back(Workspace.here(), stamp, waiting)
    finally:
        waiting.end()
    click.echo(f"restored {stamp}; the service runs again")
