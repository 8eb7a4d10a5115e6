"""``explain``: films with what speaks for the model's answer."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from xray_opt.cli.models import (
    data_option,
    device_option,
    elsewhere_options,
    model_option,
    sensitivity_option,
    split_option,
    why_option,
)
from xray_opt.cli.options import as_json, of_study, storage_option, tracking_option
from xray_opt.cli.output import print_json, print_left_out, print_table


@click.command()
@click.argument("films", nargs=-1, type=click.Path(path_type=Path))
@model_option
@click.option("--out", type=click.Path(path_type=Path), required=True, help="New folder for the sheet and its table.")
@click.option("--worst", type=click.IntRange(min=0), metavar="N", help="Films most wrong; default: 8, or 0 with FILMS.")
@split_option("Where the worst ones are looked for.")
@data_option
@elsewhere_options
@why_option
@sensitivity_option
@device_option
@of_study
@storage_option
@tracking_option
@as_json
def explain(
    films: tuple[Path, ...],
    model: str,
    out: Path,
    worst: int | None,
    split: str,
    data: str | None,
    classes: tuple[str, str] | None,
    skip_bad: bool,
    why: str | None,
    sensitivity: float | None,
    device: str,
    study_name: str | None,
    storage: str | None,
    uri: str | None,
    as_json: bool,
) -> None:
    """Show where a model looks: a sheet of FILMS, or of those it is most wrong about, with heat maps (Grad-CAM).

    The sheet is also kept with the model's run in MLflow. Not for clinical use.
    """
    from xray_opt.config import Workspace
    from xray_opt.places import find_place
    from xray_opt.scoring import Elsewhere
    from xray_opt.scoring import explain as make

    place = find_place(Workspace.here(), study_name, storage, uri)
    other = Elsewhere(classes, skip_bad)
    made = make(model, Workspace.here(), out, films, split, worst, data, why, device, place, sensitivity, other)
    if as_json:
        print_json(asdict(made) | {"sheet": str(made.sheet), "table": str(made.table)})
        return
    print_left_out(made)
    rows = [[Path(one.path).name, one.probability, one.answer, one.label] for one in made.films]
    print_table(["film", "probability", "answer", "label"], rows)
    click.echo(f"{made.sheet}: {len(made.films)} films, {made.wrong} of them called wrongly")
