"""``base``: base weights from a model that was trained as a whole."""

from __future__ import annotations

from pathlib import Path

import click

from xray_opt.cli.options import as_json, of_study, tracking_option
from xray_opt.cli.output import print_json


@click.group()
def base() -> None:
    """Make base weights for sites that may not download ImageNet's."""


@base.command()
@click.argument("model")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="New file, NAME.safetensors.")
@click.option(
    "--weights", type=click.Path(path_type=Path), help="The model's own base, where its films are not known here."
)
@of_study
@tracking_option
@as_json
def export(model: str, out: Path, weights: Path | None, study_name: str | None, uri: str | None, as_json: bool) -> None:
    """Write MODEL (a run, or an MLflow model URI), trained with model.strategy=full, as base weights.

    Later studies name the file with --weights or model.base. It tells which films and patients it was trained on, as
    digests and hashes, and tune refuses it where these stand in a study's val or test split: pass it on as you would
    pass on pseudonyms.
    """
    from xray_opt.base_export import export_base
    from xray_opt.config import Workspace
    from xray_opt.places import find_place

    workspace = Workspace.here()
    found = export_base(model, out, workspace, find_place(workspace, study_name, uri=uri), weights)
    if as_json:
        print_json(found.to_dict())
        return
    last = found.trained_on[-1]
    click.echo(f"{found.path}: {found.origin}, {last.classes[0]} against {last.classes[1]} at {last.image_size} px")
    click.echo(f"trained on {last.film_count} films of {last.patient_count} patients (train and val)")
    for one in found.trained_on[:-1]:
        click.echo(f"before that, run {one.run[:8]}: {one.film_count} films of {one.patient_count} patients")
    click.echo(f"SHA-256 of the weights: {found.sha256}")
    click.echo(f"SHA-256 of the file:    {found.file_sha256}")
    click.echo(f"next: xray-opt tune --weights {found.path}")
