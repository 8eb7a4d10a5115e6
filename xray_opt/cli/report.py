"""``report``: the evidence of a study as one page, and the model card of what it chose."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from xray_opt.cli.options import as_json, storage_option, tracking_option
from xray_opt.cli.output import print_json
from xray_opt.errors import printable


@click.command()
@click.argument("study_name", metavar="STUDY", default="reference")
@click.option(
    "--output",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The page; the model card lies beside it. Default: reports/STUDY.html.",
)
@click.option("--no-log", is_flag=True, help="Write files only: log nothing to MLflow.")
@click.option("--no-films", is_flag=True, help="Leave out the sheet of heat maps, on which films are seen.")
@storage_option
@tracking_option
@as_json
def report(
    study_name: str,
    output: Path | None,
    no_log: bool,
    no_films: bool,
    storage: str | None,
    uri: str | None,
    as_json: bool,
) -> None:
    """Write the report of STUDY as one HTML page that needs no network, and a model card; log both to the study's run.

    It reads records: what was not recorded is named with the command that records it. Only the gain over models that
    look at no lungs is made here, once, where the films of train and val lie here; the test split is not opened. The
    chosen model's registered versions lead to the page.
    """
    from xray_opt.config import Workspace
    from xray_opt.places import find_place
    from xray_opt.reporting import report as make

    workspace = Workspace.here()
    place = find_place(workspace, study_name, storage, uri)
    made = make(place, workspace, output, not no_log, lambda line: click.echo(line, err=True), not no_films)
    if as_json:
        print_json({name: str(value) if isinstance(value, Path) else value for name, value in asdict(made).items()})
        return
    click.echo(f"report: {printable(str(made.page))}\nmodel card: {printable(str(made.card))}")
    if made.logged:
        click.echo(f"logged: {made.logged}")
    for version in made.versions if made.logged else ():
        click.echo(f"{version} leads to it")
