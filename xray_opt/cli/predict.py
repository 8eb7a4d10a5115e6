"""``predict``: what a model says of films, and of the patients whose films they are."""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xray_opt.cli.models import device_option, model_option, sensitivity_option
from xray_opt.cli.options import as_json, of_study, tracking_option
from xray_opt.cli.output import print_json, print_table

if TYPE_CHECKING:
    from xray_opt.scoring import Predicted


@click.command()
@click.argument("films", nargs=-1, required=True, type=click.Path(path_type=Path))
@model_option
@sensitivity_option
@device_option
@of_study
@tracking_option
@click.option("--patients", is_flag=True, help="Answer for patients: the mean of their films' probabilities.")
@click.option(
    "--patients-from",
    "table",
    type=click.Path(path_type=Path),
    metavar="CSV",
    help="The same, with patients as columns path,patient of a CSV tell them.",
)
@click.option(
    "--explain", "pictures", type=click.Path(path_type=Path), metavar="DIR", help="New folder for heat maps (Grad-CAM)."
)
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
@as_json
def predict(
    films: tuple[Path, ...],
    model: str,
    sensitivity: float | None,
    device: str,
    study_name: str | None,
    uri: str | None,
    patients: bool,
    table: Path | None,
    pictures: Path | None,
    as_csv: bool,
    as_json: bool,
) -> None:
    """Calibrated probability of pneumonia for films or folders of films. Not for clinical use.

    A film that cannot be read is listed with its reason on stderr and the exit code is 3; the others are answered.
    With --patients whose film it is says DICOM's header, or the file's name as in data prepare; any other film is a
    patient of its own. With --patients-from the CSV alone says it: a film that it does not name is left out, and the
    exit code is 3. Column missing counts a patient's films that are not in the answer.
    """
    from xray_opt.config import Workspace
    from xray_opt.places import find_place
    from xray_opt.scoring import predict as answer

    place = find_place(Workspace.here(), study_name, uri=uri)
    found = answer(films, model, Workspace.here(), device, place, sensitivity, pictures, table)
    whose = ["patient", "films", "missing"] if patients or table else ["path"]
    rows: Sequence[Any] = found.films if whose == ["path"] else found.patients()
    if as_json:
        print_json([asdict(row) for row in rows])
    else:
        _print_answers(rows, whose, as_csv)
    if pictures is not None:
        click.echo(f"heat maps: {pictures}", err=True)
    _tell_left_out(found, table)


def _tell_left_out(found: Predicted, table: Path | None) -> None:
    """Films without an answer, on stderr.

    Raises:
        DataError: there are such that should have one.
    """
    from xray_opt.dataset.names import shown
    from xray_opt.errors import DataError

    for _, reason in found.refused:
        click.echo(f"refused: {reason}", err=True)
    told = {
        "left out, as {} does not name them": found.unnamed,
        "named by {} and not there": found.absent,
        "named by {} for these patients and not given": found.not_given,
    }
    for words, paths in told.items():
        if paths:
            click.echo(f"{words.format(table)}: {len(paths)}: {shown([*paths])}", err=True)
    kinds = {"could not be read": found.refused, "not named": found.unnamed, "not there": found.absent}
    without = sum(map(len, kinds.values()))
    if without:
        why = ", ".join(f"{len(own)} {kind}" for kind, own in kinds.items() if own)
        verdict = "could not be read" if without == len(found.refused) else f"have no answer: {why}"
        raise DataError(f"{without} of {without + len(found.films)} films {verdict}")


def _print_answers(rows: Sequence[Any], whose: list[str], as_csv: bool) -> None:
    """Answers of films or patients; ``whose`` are the fields that name them."""
    if as_csv:
        last = [name for name in whose if name == "missing"]  # behind the columns that were there before it
        first = [name for name in whose if name not in last]
        writer = csv.writer(sys.stdout)
        writer.writerow([*first, "probability", "label", "threshold", *last])
        for row in rows:
            answer = [f"{row.probability:.6f}", row.label, f"{row.threshold:.6f}"]
            writer.writerow([getattr(row, name) for name in first] + answer + [getattr(row, name) for name in last])
        return
    names = [[getattr(row, name) for name in whose] for row in rows]
    heads = ["film" if name == "path" else name for name in whose]
    lines = [[*name, row.probability, row.label] for name, row in zip(names, rows, strict=True)]
    print_table([*heads, "probability", "label"], lines)
    if rows:
        click.echo(f"threshold {rows[0].threshold:.4f}, fixed on validation")
