"""``evaluate``, ``weights``, and the options of all commands that are given a model."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeVar

import click

from xray_opt.cli.options import Number, as_json, of_study, storage_option, tracking_option
from xray_opt.cli.output import print_baselines, print_json, print_left_out, print_level_table, print_table

if TYPE_CHECKING:
    from xray_opt.scoring import Evaluation

Command = TypeVar("Command", bound=Callable[..., Any])
CHAMPION = "models:/xray-pneumonia@champion"
model_option = click.option("--model", default=CHAMPION, show_default=True, help="MLflow model URI, or runs:/RUN_ID.")
device_option = click.option("--device", default="auto", show_default=True, help="auto, cuda, cuda:N, mps or cpu.")
sensitivity_option = click.option(
    "--sensitivity",
    type=Number(0.5, 1.0),
    metavar="S",
    help="Threshold that found this share of pneumonia on validation; default: that of best F1.",
)


data_option = click.option(
    "--data", metavar="PATH", help="Other films (with --split all), or where the training films lie now."
)
why_option = click.option(
    "--why", help="Why sealed test films are opened (--split test, or some of --split all); it is recorded."
)


def elsewhere_options(function: Command) -> Command:
    """``--classes`` and ``--skip-bad``: how films of another folder are read."""
    for option in (
        click.option("--skip-bad", is_flag=True, help="With --split all: leave out films that cannot be used."),
        click.option(
            "--classes",
            nargs=2,
            metavar="NEGATIVE POSITIVE",
            help="With --split all: what the two classes are called there; default: as the model calls them.",
        ),
    ):
        function = option(function)
    return function


def split_option(text: str) -> Callable[[Command], Command]:
    """``--split``, explained by ``text``."""
    splits = click.Choice(["val", "train", "test", "all"])
    return click.option("--split", type=splits, default="val", show_default=True, help=text)


@click.command()
@model_option
@split_option("Split of the model's own data, or all films of --data.")
@data_option
@elsewhere_options
@why_option
@sensitivity_option
@click.option("--robustness", is_flag=True, help="Also score films re-compressed, cut, reshaped, brighter, painted …")
@click.option(
    "--baselines/--no-baselines",
    default=True,
    show_default=True,
    help="Beside trivial models; for that every training film is read.",
)
@device_option
@of_study
@storage_option
@tracking_option
@as_json
def evaluate(
    model: str,
    split: str,
    data: str | None,
    classes: tuple[str, str] | None,
    skip_bad: bool,
    why: str | None,
    sensitivity: float | None,
    robustness: bool,
    baselines: bool,
    device: str,
    study_name: str | None,
    storage: str | None,
    uri: str | None,
    as_json: bool,
) -> None:
    """Score a model on a split of its own data, or on all films of another folder that are not its own.

    Beside its scores stand those of models that look at no lungs (file metadata, a 16×16 thumbnail), with the paired
    gain over them. docs/robustness.md tells what --robustness does to films. Its worst case and goals come first.
    """
    from xray_opt.cli.progress import Progress
    from xray_opt.config import Workspace
    from xray_opt.places import find_place
    from xray_opt.scoring import Elsewhere
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
        baselines,
        Elsewhere(classes, skip_bad),
    )
    if as_json:
        print_json(asdict(result))
    else:
        _print_evaluation(result)


def _print_evaluation(result: Evaluation) -> None:
    from xray_opt.cli.robust import print_headline, print_robustness, print_shift, print_subgroups

    click.echo(f"{result.model} on {result.split}: {result.films} films of {result.patients} patient groups")
    print_left_out(result)
    if result.shift:
        print_shift(result.shift, result.classes[1])
    if result.robustness:
        print_headline(result.robustness)
    rows = [
        [f"threshold {threshold:.4f}", s.f1, s.auc, s.accuracy, s.precision, s.recall]
        for threshold, s in ((0.5, result.at_half), (result.threshold, result.at_threshold))
    ]
    print_table(["", "F1", "AUC", "accuracy", "precision", "recall"], rows)
    click.echo(f"at threshold {result.threshold:.4f}, fixed on validation, with 95 % intervals over patients:")
    print_level_table(result.image, result.patient)
    if result.baselines:
        print_baselines(result.baselines)
    else:
        click.echo(textwrap.fill(f"beside no trivial models: {result.no_baselines}", 80))
    print_subgroups(result.subgroups)
    if result.robustness:
        print_robustness(result.robustness)


@click.command()
def weights() -> None:
    """Download and verify the ImageNet base weights; prints where they lie."""
    from xray_opt.backbone import imagenet_weights

    click.echo(imagenet_weights())
