"""``export``: a model as one file for other runtimes."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from xray_opt.cli.models import model_option
from xray_opt.cli.options import as_json, of_study, tracking_option
from xray_opt.cli.output import print_json


@click.command()
@model_option
@click.option(
    "--format",
    "kind",
    type=click.Choice(["onnx", "torch-export", "safetensors"]),
    default="onnx",
    show_default=True,
    help="ONNX, a torch.export program, or merged weights for torchvision's efficientnet_v2_s.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="File: NAME.onnx, NAME.pt2 or NAME.safetensors."
)
@click.option("--force", is_flag=True, help="Write over a file that exists.")
@of_study
@tracking_option
@as_json
def export(
    model: str, kind: str, out: Path, force: bool, study_name: str | None, uri: str | None, as_json: bool
) -> None:
    """Write a model, its adapter merged, as one file that is used without this package. Not for clinical use.

    The file is asked in its own runtime first, and written only if its probabilities are those of predict.
    docs/shipping.md tells what goes in and out, and which facts (threshold, temperature, classes, digests) it carries.
    """
    from xray_opt.config import Workspace
    from xray_opt.export import export as write
    from xray_opt.places import find_place

    workspace = Workspace.here()
    made = write(model, kind, out, workspace, find_place(workspace, study_name, uri=uri), force)
    if as_json:
        print_json(asdict(made))
        return
    click.echo(f"{made.path}: {made.bytes / 1e6:.1f} MB, {made.format} of {made.version or made.run or made.source}")
    click.echo(f"SHA-256: {made.sha256}")
    click.echo(f"largest difference from predict: {made.difference:.2g} in probability, on made-up films")
    click.echo("not for clinical use")
