"""``compare``: the leaderboard of a study."""

from __future__ import annotations

import os
import textwrap
from typing import TYPE_CHECKING

import click

from xray_opt.cli.options import as_json, storage_option
from xray_opt.cli.output import print_json, print_wide, short_names

if TYPE_CHECKING:
    from xray_opt.config import Workspace
    from xray_opt.leaderboard import Leaderboard
    from xray_opt.ledger import Look
    from xray_opt.places import Place


NO_WINNERS = (
    "95 %: over the validation patients, of each trial by itself. The best of N trials is the best by luck as well, "
    "so its interval is none of the winner's: nothing is chosen by these, and xray-opt confirm says how good it is."
)


@click.command()
@click.argument("study_name", metavar="STUDY", default="reference")
@storage_option
@as_json
def compare(study_name: str, storage: str | None, as_json: bool) -> None:
    """Every trial of STUDY with its settings and val F1, best first; test scores only where the test was opened.

    Intervals are over patients, of each trial by itself; - where none was kept, a class has under 10 patients, or the
    trial is confirmed, which has a better one of its F1.
    With two objectives the trials of the Pareto front come first, marked ★. Validation picks the winner: a test score
    here is for reading, never for choosing.
    """
    from xray_opt.config import Workspace
    from xray_opt.leaderboard import leaderboard, looks_told
    from xray_opt.places import find_place

    place = find_place(Workspace.here(), study_name, storage)
    board = leaderboard(str(place.study), Workspace.here(), place.storage, _elsewhere(place, Workspace.here()))
    if as_json:
        print_json(board.to_dict())
        return
    columns, rows = board.table()
    print_wide(short_names(columns), rows, f"{place.study}: {board.summary}")
    _tell_intervals(board)
    if not board.looks:
        click.echo("test split: sealed, never opened")
    for opening in board.openings:
        _echo(f"test split opened {opening.when[:19]} by {opening.who} for trial {opening.trial}: {opening.why}")
    for look in board.foreign:
        _echo(f"its test films were opened {look.text()}")
    if len(board.looks) > 1 or board.foreign:
        _echo(looks_told(board.looks, board.openings, str(place.study)))


def _echo(line: str) -> None:
    click.echo(textwrap.fill(line, 80, subsequent_indent="  ", break_on_hyphens=False))


def _tell_intervals(board: Leaderboard) -> None:
    """What the intervals are and are not, and those of confirmed settings."""
    from xray_opt.leaderboard import interval_of

    if any(interval_of(trial, "f1") for trial in board.trials):
        _echo(NO_WINNERS)
    for number, one in board.confirmed.items():
        value, low, high = (one.get(name) for name in ("value", "low", "high"))
        ends = f" ({low:.4f} to {high:.4f})" if low is not None and high is not None else ", without an interval"
        if value is not None:
            click.echo(f"confirmed: trial {number} has F1 {value:.4f}{ends}, the mean of new seeds")


def _elsewhere(place: Place, workspace: Workspace) -> list[Look]:
    """What a shared MLflow store tells of openings on other machines; the workspace's own one knows no other ones."""
    uri = place.tracking(workspace).uri or os.environ.get("MLFLOW_TRACKING_URI")
    if uri in (None, "", workspace.mlflow_uri):
        return []
    from xray_opt.errors import TrackingError
    from xray_opt.mlflow_client import connect
    from xray_opt.tracking import run_looks

    try:
        return run_looks(connect(place.tracking(workspace), workspace))
    except TrackingError as error:
        click.echo(f"openings on other machines are not known: {error}", err=True)
        return []
