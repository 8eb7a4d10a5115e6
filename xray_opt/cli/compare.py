"""``compare``: the leaderboard of a study."""

from __future__ import annotations

import click

from xray_opt.cli.options import as_json, storage_option
from xray_opt.cli.output import print_json, print_table, short_names


@click.command()
@click.argument("study_name", metavar="STUDY", default="reference")
@storage_option
@as_json
def compare(study_name: str, storage: str | None, as_json: bool) -> None:
    """Every trial of STUDY with its settings and val F1, best first; test scores only where the test was opened.

    With two objectives the trials of the Pareto front come first, marked ★. Validation picks the winner: a test score
    here is for reading, never for choosing.
    """
    from xray_opt.config import Workspace
    from xray_opt.leaderboard import leaderboard
    from xray_opt.places import find_place

    place = find_place(Workspace.here(), study_name, storage)
    board = leaderboard(str(place.study), Workspace.here(), place.storage)
    if as_json:
        print_json(board.to_dict())
        return
    columns, rows = board.table()
    print_table(short_names(columns), rows, title=f"{place.study}: {board.summary}")
    if not board.openings:
        click.echo("test split: sealed, never opened")
    for opening in board.openings:
        click.echo(f"test split opened {opening.when} by {opening.who} for trial {opening.trial}: {opening.why}")
