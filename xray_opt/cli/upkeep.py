"""``gc``: remove what nobody refers to."""

from __future__ import annotations

import click

from xray_opt.cli.options import as_json, more_storages, tracking_option
from xray_opt.cli.output import print_json


@click.command()
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@more_storages
@tracking_option
@as_json
def gc(dry_run: bool, storages: tuple[str, ...], uri: str | None, as_json: bool) -> None:
    """Remove checkpoints, caches, MLflow runs and artifacts that nothing refers to.

    What belongs to a study in a storage that is not read here is left alone, and said on stderr.
    """
    from xray_opt.config import Workspace
    from xray_opt.upkeep import collect_garbage

    items = collect_garbage(Workspace.here(), dry_run, storages, uri, lambda line: click.echo(line, err=True))
    if as_json:
        print_json([{"what": item.what, "name": item.name, "bytes": item.bytes} for item in items])
        return
    for item in items:
        click.echo(f"{'would remove' if dry_run else 'removed'} {item.what}: {item.name} ({item.bytes / 1e6:.1f} MB)")
    if not items:
        click.echo("nothing to remove")
