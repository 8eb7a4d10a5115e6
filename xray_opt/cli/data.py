"""``data``: prepare, audit, sample, download."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xray_opt.cli.options import as_json
from xray_opt.cli.output import print_json, print_table
from xray_opt.cli.progress import Progress
from xray_opt.errors import printable

if TYPE_CHECKING:
    from xray_opt.config import DataConfig
    from xray_opt.dataset import Film, Manifest


@click.group()
def data() -> None:
    """Prepare, audit, make up or download chest films."""


def _split_options(function: Any) -> Any:
    for option in (
        click.option(
            "--classes",
            nargs=2,
            metavar="NEGATIVE POSITIVE",
            default=("NORMAL", "PNEUMONIA"),
            help="Names of the two classes; default: NORMAL PNEUMONIA.",
        ),
        click.option("--skip-bad", is_flag=True, help="Leave out films that cannot be used, and record them."),
        click.option(
            "--keep-test", is_flag=True, help="Keep the folder's own test split; leave out its patients elsewhere."
        ),
        click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the split."),
        click.argument("root", type=click.Path()),
    ):
        function = option(function)
    return function


def _config(root: str, seed: int, keep_test: bool, skip_bad: bool, classes: tuple[str, str]) -> DataConfig:
    from xray_opt.config import DataConfig

    negative, positive = classes
    return DataConfig(
        root=root, seed=seed, keep_test=keep_test, skip_bad=skip_bad, negative=negative, positive=positive
    )


@data.command()
@_split_options
@as_json
def prepare(root: str, seed: int, keep_test: bool, skip_bad: bool, classes: tuple[str, str], as_json: bool) -> None:
    """Index ROOT (folder or CSV), split it by patient, check for leaks, remember it as the data to use.

    ROOT is in Kaggle's layout (train/val/test × NORMAL/PNEUMONIA), has class folders, or is a CSV with the columns
    path,label,patient. Other classes than these two are named with --classes.
    """
    from xray_opt.config import Workspace
    from xray_opt.dataset import audit, prepared, remember

    workspace, config = Workspace.here(), _config(root, seed, keep_test, skip_bad, classes)
    bar = Progress().bar
    manifest = prepared(config, workspace, lambda done, n: bar("index", done, n))
    report = audit(manifest, screen=False)
    report.raise_on_leak()
    remember(manifest, workspace)
    path = manifest.save(workspace.manifests)
    if as_json:
        print_json(_summary(manifest) | {"manifest": str(path), "leaks": 0})
        return
    _print_summary(manifest)
    click.echo(f"leaks across splits: 0\nmanifest: {path}\nnext: xray-opt data audit {printable(root)} · xray-opt tune")


def _summary(manifest: Manifest) -> dict[str, Any]:
    from collections import Counter

    splits = {}
    for split in ("train", "val", "test"):
        films = [film for film in manifest.films if film.split == split]
        classes = Counter(manifest.classes[film.label] for film in films)
        splits[split] = {"films": len(films), "groups": len({film.group for film in films}), **classes}
    return {
        "files": len(manifest.films) + len(manifest.left_out),
        "films": len(manifest.films),
        "left_out": dict(Counter(item.reason for item in manifest.left_out)),
        "joined_by_identical_files": joined_keys(manifest),
        "splits": splits,
        "sha256": manifest.sha256,
    }


def joined_keys(manifest: Manifest) -> list[list[str]]:
    """File names of identical films that stand under different patient keys, and so joined two patients."""
    same: dict[str, list[Film]] = {}
    for film in manifest.films:
        same.setdefault(film.sha256, []).append(film)
    return [
        [film.path.rsplit("/", 1)[-1] for film in films]
        for films in same.values()
        if len({film.patient for film in films}) > 1
    ]


def _print_summary(manifest: Manifest) -> None:
    summary = _summary(manifest)
    click.echo(f"files: {summary['files']} · films in splits: {summary['films']}")
    for reason, count in summary["left_out"].items():
        click.echo(f"left out: {count} ({reason})")
    for names in summary["joined_by_identical_files"]:
        click.echo(f"one patient group, as these files are identical: {printable(', '.join(names))}")
    rows = []
    for split, facts in summary["splits"].items():
        counts = [facts.get(name, 0) for name in manifest.classes]
        share = f"{100 * counts[1] / max(facts['films'], 1):.1f} %"
        rows.append([split, facts["films"], facts["groups"], *counts, share])
    print_table(["split", "films", "patient groups", *(name.lower() for name in manifest.classes), "share"], rows)


@data.command("audit")
@_split_options
@as_json
def audit_command(
    root: str, seed: int, keep_test: bool, skip_bad: bool, classes: tuple[str, str], as_json: bool
) -> None:
    """Check ROOT: leaks, bad files, near-duplicates, and what metadata alone tells of the class.

    Exits with 3 if a patient or a file stands in two splits, or if there are bad files and --skip-bad is not given.
    What it finds is kept for the report.
    """
    import dataclasses

    from xray_opt.config import Workspace
    from xray_opt.dataset import audit, keep_audit, prepare

    bar = Progress().bar
    manifest = prepare(_config(root, seed, keep_test, True, classes), lambda done, n: bar("index", done, n))
    manifest = dataclasses.replace(manifest, settings={**manifest.settings, "skip_bad": skip_bad})
    report = audit(manifest, screen=True)
    if as_json:
        print_json(report.to_dict())
    else:
        click.echo("\n".join(report.lines()))
    keep_audit(report, manifest, Workspace.here())
    report.raise_on_leak()
    if not skip_bad:
        report.raise_on_bad_files()


@data.command()
@click.argument("root", type=click.Path(path_type=Path))
@click.option("--patients", type=click.IntRange(min=12), default=160, show_default=True, help="Made-up patients.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the films.")
def sample(root: Path, patients: int, seed: int) -> None:
    """Make phantom chest films in the new folder ROOT: for trying things out, not for science."""
    from xray_opt.phantom import make_phantoms

    bar = Progress().bar
    films = make_phantoms(root, patients, seed, lambda done, n: bar("phantoms", done, n))
    click.echo(f"{films} phantom films of {patients} patients in {root}; next: xray-opt data prepare {root}")


@data.command()
@click.argument("root", type=click.Path(path_type=Path), required=False)
def download(root: Path | None) -> None:
    """Fetch Kaggle's chest X-ray set with kagglehub into ROOT (default: data/chest_xray)."""
    from xray_opt.config import Workspace
    from xray_opt.kaggle import download_chest_xray

    folder = download_chest_xray(root or Workspace.here().data / "chest_xray")
    click.echo(f"films in {folder}; next: xray-opt data prepare {folder}")
