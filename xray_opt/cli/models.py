"""``evaluate``, ``predict``, ``weights``: what is done with a trained model."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import click

from xray_opt.cli.options import as_json, of_study, storage_option, tracking_option
from xray_opt.cli.output import print_json, print_level_table, print_table

Command = TypeVar("Command", bound=Callable[..., Any])
CHAMPION = "models:/xray-pneumonia@champion"
model_option = click.option("--model", default=CHAMPION, show_default=True, help="MLflow model URI, or runs:/RUN_ID.")
device_option = click.option("--device", default="auto", show_default=True, help="auto, cuda, cuda:N, mps or cpu.")
sensitivity_option = click.option(
    "--sensitivity",
    type=click.FloatRange(0.5, 1.0),
    metavar="S",
    help="Threshold that found this share of pneumonia on validation; default: that of best F1.",
)


data_option = click.option(
    "--data", metavar="PATH", help="Other films (with --split all), or where the training films lie now."
)
why_option = click.option(
    "--why", help="With --split test: why the sealed split is opened; it is written to study and run."
)


def split_option(text: str) -> Callable[[Command], Command]:
    """``--split``, explained by ``text``."""
    splits = click.Choice(["val", "train", "test", "all"])
    return click.option("--split", type=splits, default="val", show_default=True, help=text)


@click.command()
@model_option
@split_option("Split of the model's own data, or all films of --data.")
@data_option
@why_option
@sensitivity_option
@click.option("--robustness", is_flag=True, help="Also score films re-compressed, cut, reshaped, brighter, painted …")
@device_option
@of_study
@storage_option
@tracking_option
@as_json
def evaluate(
    model: str,
    split: str,
    data: str | None,
    why: str | None,
    sensitivity: float | None,
    robustness: bool,
    device: str,
    study_name: str | None,
    storage: str | None,
    uri: str | None,
    as_json: bool,
) -> None:
    """Score a model on a split of its own data, or on all films of another folder that are not its own.

    docs/robustness.md tells what --robustness does to films. Its worst case and goals come first.
    """
    from xray_opt.cli.progress import Progress
    from xray_opt.cli.robust import print_headline, print_robustness, print_shift, print_subgroups
    from xray_opt.config import Workspace
    from xray_opt.places import find_place
    from xray_opt.scoring import evaluate as score

    place = find_place(Workspace.here(), study_name, storage, uri)
    bar = Progress().bar
    result = score(
        model,
        split,
        Workspace.here(),
        data,
        why,
        device,
        place,
        sensitivity,
        robustness,
        lambda done, n: bar("change", done, n),
    )
    if as_json:
        print_json(asdict(result))
        return
    click.echo(f"{result.model} on {result.split}: {result.films} films of {result.patients} patient groups")
    if result.left_out is None:
        click.echo("the model's own films are not known here: whether some of these are among them was not checked")
    elif result.left_out:
        out = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in result.left_out.items())
        click.echo(f"left out, as the model's own films or of its patients: {out}")
    if result.shift:
        print_shift(result.shift)
    if result.robustness:
        print_headline(result.robustness)
    rows = [
        [f"threshold {threshold:.4f}", s.f1, s.auc, s.accuracy, s.precision, s.recall]
        for threshold, s in ((0.5, result.at_half), (result.threshold, result.at_threshold))
    ]
    print_table(["", "F1", "AUC", "accuracy", "precision", "recall"], rows)
    click.echo(f"at threshold {result.threshold:.4f}, fixed on validation, with 95 % intervals over patients:")
    print_level_table(result.image, result.patient)
    print_subgroups(result.subgroups)
    if result.robustness:
        print_robustness(result.robustness)


@click.command()
@click.argument("films", nargs=-1, required=True, type=click.Path(path_type=Path))
@model_option
@sensitivity_option
@device_option
@of_study
@tracking_option
@click.option("--patients", is_flag=True, help="Answer for patients: the mean of their films' probabilities.")
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
    pictures: Path | None,
    as_csv: bool,
    as_json: bool,
) -> None:
    """Calibrated probability of pneumonia for films or folders of films. Not for clinical use.

    A film that cannot be read is listed with its reason on stderr and the exit code is 3; the others are answered.
    With --patients whose film it is says DICOM's header, or the file's name as in data prepare; any other film is a
    patient of its own.
    """
    from xray_opt.config import Workspace
    from xray_opt.errors import DataError
    from xray_opt.places import find_place
    from xray_opt.scoring import predict as of_films
    from xray_opt.scoring import predict_patients as of_patients

    place = find_place(Workspace.here(), study_name, uri=uri)
    answer: Callable[..., tuple[list[Any], list[tuple[str, str]]]] = of_patients if patients else of_films
    rows, refused = answer(films, model, Workspace.here(), device, place, sensitivity, pictures)
    if as_json:
        print_json([asdict(row) for row in rows])
    else:
        whose = ["patient", "films"] if patients else ["path"]
        _print_answers(rows, whose, as_csv)
    if pictures is not None:
        click.echo(f"heat maps: {pictures}", err=True)
    for _, reason in refused:
        click.echo(f"refused: {reason}", err=True)
    if refused:
        count = len(refused) + sum(row.films if patients else 1 for row in rows)
        raise DataError(f"{len(refused)} of {count} films could not be read")


def _print_answers(rows: list[Any], whose: list[str], as_csv: bool) -> None:
    """Answers of films or patients; ``whose`` are the fields that name them."""
    names = [[getattr(row, name) for name in whose] for row in rows]
    if as_csv:
        writer = csv.writer(sys.stdout)
        writer.writerow([*whose, "probability", "label", "threshold"])
        for name, row in zip(names, rows, strict=True):
            writer.writerow([*name, f"{row.probability:.6f}", row.label, f"{row.threshold:.6f}"])
        return
    heads = ["film" if name == "path" else name for name in whose]
    lines = [[*name, row.probability, row.label] for name, row in zip(names, rows, strict=True)]
    print_table([*heads, "probability", "label"], lines)
    if rows:
        click.echo(f"threshold {rows[0].threshold:.4f}, fixed on validation")


@click.command()
def weights() -> None:
    """Download and verify the ImageNet base weights; prints where they lie."""
    from xray_opt.backbone import imagenet_weights

    click.echo(imagenet_weights())
