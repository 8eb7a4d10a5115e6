"""The same work for everyone: made-up films on disk, their split, base weights of one seed, and one set of settings."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import measure  # before the package: it puts the checkout on the path
import numpy as np
from PIL import Image

from xray_opt.adapter import lora_targets
from xray_opt.backbone import build_network, random_base, save_base
from xray_opt.cache import Images, Split, open_images
from xray_opt.config import Config, DataConfig, LoraConfig, Workspace, flatten, override
from xray_opt.dataset import Manifest, prepare
from xray_opt.errors import XrayError
from xray_opt.phantom import make_phantoms

#: Share of the films in each split: a benchmark wants its few films in training.
SHARES = {"train_fraction": 0.6, "val_fraction": 0.2, "test_fraction": 0.2}
RANK, ALPHA, SEED = 8, 16.0, 0


def add_arguments(parser: argparse.ArgumentParser, films: int, size: int, batch: int) -> None:
    """Films, side, batch, BatchNorm's mode and device, as every training benchmark takes them."""
    parser.add_argument("--films", type=int, default=films, help=f"training films (default: {films})")
    parser.add_argument("--size", type=int, default=size, help=f"side in pixels (default: {size})")
    parser.add_argument("--batch", type=int, default=batch, help=f"films a step (default: {batch})")
    parser.add_argument("--batch-norm", choices=("train", "frozen"), default="train", help="the same for all")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or auto (default: cpu)")


def films_of(data: Path | None, folder: Path, films: int) -> Manifest:
    """Real films: those at ``data``, in the product's own split by patient; none: phantoms in ``folder``."""
    if data is None:
        return make_films(folder / "films", films)
    try:
        return prepare(DataConfig(root=str(data)))
    except XrayError as error:
        raise SystemExit(f"--data {data}: {error}") from error


def make_films(root: Path, films: int, pixels: tuple[int, int] | None = None) -> Manifest:
    """Phantoms as JPEG files in ``root``, at least ``films`` of them in the training split (1.9 a patient).

    Args:
        pixels: width and height of the files; none leaves the phantoms' own.
    """
    make_phantoms(root, patients=max(24, round(films / SHARES["train_fraction"] / 1.4)), seed=SEED)
    if pixels:
        for file in root.rglob("*.jpeg"):
            with Image.open(file) as film:
                film.resize(pixels, Image.Resampling.BICUBIC).save(file, quality=95)
    return prepare(DataConfig(root=str(root), **SHARES))


def some(manifest: Manifest, split: str, count: int) -> list[tuple[str, int]]:
    """``count`` films of a split (all where there are fewer), evenly over both classes, as (path, label)."""
    films = [(film.path, film.label) for film in manifest.of(split)]
    return [films[place] for place in spread(len(films), count)]


def spread(have: int, count: int) -> list[int]:
    """At most ``count`` evenly spaced places out of ``have``."""
    places: list[int] = np.linspace(0, have - 1, min(count, have)).round().astype(int).tolist()
    return places


def images_of(manifest: Manifest, size: int, workspace: Path, train: Iterable[str], val: Iterable[str]) -> Images:
    """Train and validation films from the cache, these paths alone."""
    images = open_images(manifest, size, Workspace(workspace))
    return replace(images, train=only(images.train, set(train)), val=only(images.val, set(val)))


def only(split: Split, paths: set[str]) -> Split:
    """The films of ``split`` at these paths."""
    return at(split, [place for place, path in enumerate(split.paths) if path in paths])


def at(split: Split, places: list[int]) -> Split:
    """The films of ``split`` at these places, which may repeat."""
    return replace(
        split,
        rows=split.rows[places],
        labels=split.labels[places],
        groups=tuple(split.groups[place] for place in places),
        paths=tuple(split.paths[place] for place in places),
    )


def settings(job: dict[str, Any]) -> Config:
    """Our settings for a job; every trial trains all its epochs."""
    return override(
        Config(),
        {
            "image.size": job["size"],
            "model.base": "random",
            "model.base_seed": SEED,
            "model.batch_norm": job["batch_norm"],
            "lora.rank": RANK,
            "lora.alpha": ALPHA,
            "training.batch_size": job["batch"],
            "training.epochs": job["epochs"],
            "training.early_stopping_patience": job["epochs"],
            "training.device": job["device"],
            "training.precision": job["precision"],
        },
    )


def job_of(
    folder: Path, args: argparse.Namespace, epochs: int, manifest: Manifest, films: int | None
) -> dict[str, Any]:
    """What every peer is told: films, network, settings. Writes the base weights into ``folder``.

    Args:
        films: training films, a quarter as many in validation; none means all of the manifest.
    """
    base = random_base(SEED)
    targets = lora_targets(build_network(base.state), LoraConfig(rank=RANK))
    known = flatten(Config())
    return {
        "root": manifest.root,
        "workspace": str(folder / "workspace"),
        "train": some(manifest, "train", films or len(manifest.films)),
        "val": some(manifest, "val", max(8, films // 4) if films else len(manifest.films)),
        "base": str(save_base(base, folder / "base.safetensors")),
        "targets": targets,
        "rank": RANK,
        "alpha": ALPHA,
        "seed": SEED,
        "size": args.size,
        "batch": args.batch,
        "epochs": epochs,
        "batch_norm": args.batch_norm,
        "device": args.device,
        "precision": measure.best_precision(args.device),
        "pruner": "none",
        "what": "train",
    } | {name: value for name, value in known.items() if name.startswith(("loss.", "augment.", "model.dropout"))}
