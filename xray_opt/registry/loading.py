"""From a name to a network that predicts: a registered version, a run's adapter, or a bundle folder on disk."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import mlflow.artifacts
import mlflow.pyfunc
import torch
from mlflow.entities import Run
from mlflow.models import Model

from xray_opt.adapter import Bundle, load_bundle, read_bundle
from xray_opt.backbone import Ancestor, Base, load_base, read_base
from xray_opt.config import Config, override
from xray_opt.errors import TrackingError, brief
from xray_opt.evaluate import Predictor
from xray_opt.ledger import known_of
from xray_opt.mlflow_client import PARENT_RUN, Connection, speaking
from xray_opt.registry.versions import Version, aliased, find

#: Where a run keeps its bundle, and a study's or a single run the base weights that cannot be fetched again.
ADAPTER, BASE = "adapter", "base/base.safetensors"
FORMS = "models:/NAME@ALIAS, models:/NAME/VERSION, runs:/RUN_ID, or the folder of a bundle"


@dataclass(frozen=True)
class Loaded:
    """A model ready to predict, and where it came from; ``run_id`` is empty for a folder.

    Attributes:
        tags: of the version or run (study, trial, digests).
        trained_on: the trainings that its base weights went through, without the lists of their films.
        version: registered version, ``NAME/NUMBER``; empty for runs and folders.
        test_films: keys of its test films (:mod:`xray_opt.ledger`), where a folder tells them.
    """

    predictor: Predictor
    run_id: str
    tags: Mapping[str, str]
    trained_on: tuple[Ancestor, ...] = ()
    version: str = ""
    test_films: frozenset[str] = frozenset()

    @property
    def bundle(self) -> Bundle:
        """The record of its adapter: threshold, sizes, settings."""
        return self.predictor.bundle


def load(connection: Connection, uri: str, device: torch.device) -> Loaded:
    """Load the model that ``uri`` names: ``models:/NAME@ALIAS``, ``models:/NAME/3``, ``runs:/ID``, a bundle folder.

    Raises:
        TrackingError: no such model, version or run.
        ModelError: its files are damaged.
        BaseMismatch: the base weights found are not the adapter's.
    """
    if version := named(connection, uri):
        return _load_version(connection, version, device)
    if match := re.fullmatch(r"runs:/([0-9a-f]{32})(?:/adapter)?/?", uri):
        return _load_run(connection, match[1], device)
    if os.path.isdir(uri):
        return _load_folder(Path(uri), device)
    raise TrackingError(f"no model {brief(uri)}: give {FORMS}")


def named(connection: Connection, uri: str) -> Version | None:
    """The version that ``models:/NAME@ALIAS`` or ``models:/NAME/NUMBER`` names; none where it is no such URI.

    Raises:
        TrackingError: there is no such version.
    """
    match = re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))", uri)
    if match is None:
        return None
    name, alias, number = match.groups()
    return find(connection, name, number) if number else _by_alias(connection, name, alias)


def _by_alias(connection: Connection, name: str, alias: str) -> Version:
    version = aliased(connection, name, alias)
    if version is None:
        raise TrackingError(
            f"no model {name}@{alias} at {connection.shown}: make one with xray-opt tune, "
            "or name another with models:/NAME/VERSION or runs:/RUN_ID"
        )
    return version


def _load_version(connection: Connection, version: Version, device: torch.device) -> Loaded:
    with tempfile.TemporaryDirectory(prefix="xray-opt-") as scratch:
        with speaking(connection.uri, f"fetch version {version.version} of {version.name}"):
            place = connection.client.get_model_version_download_uri(version.name, version.version)
            folder = _fetch(connection, place, Path(scratch))
            saved = Model.load(str(folder)).flavors.get(mlflow.pyfunc.FLAVOR_NAME, {}).get("artifacts", {})
        if not {"base", "bundle"} <= set(saved):
            raise TrackingError(f"version {version.version} of {version.name} was not registered by xray-opt")
        base = read_base(folder / saved["base"]["path"])
        network, bundle = load_bundle(folder / saved["bundle"]["path"], base)
    own = f"{version.name}/{version.version}"
    return Loaded(Predictor(network, bundle, device), version.run_id, version.tags, base.trained_on, own)


def _load_run(connection: Connection, run_id: str, device: torch.device) -> Loaded:
    with tempfile.TemporaryDirectory(prefix="xray-opt-") as scratch:
        with speaking(connection.uri, f"fetch the adapter of run {run_id} (only finished runs have one)"):
            run = connection.client.get_run(run_id)
            folder = Path(connection.client.download_artifacts(run_id, ADAPTER, scratch))
        bundle = read_bundle(folder)
        base = base_of_run(connection, run, bundle, Path(scratch))
        network, bundle = load_bundle(folder, base)
    return Loaded(Predictor(network, bundle, device), run_id, run.data.tags, base.trained_on)


def base_of_run(connection: Connection, run: Run, bundle: Bundle, scratch: Path) -> Base:
    """ImageNet's, or the base that the study's run keeps, or the run itself where it has no study."""
    if bundle.base_origin == "imagenet":
        return _named_base(bundle)
    keeper = run.data.tags.get(PARENT_RUN, run.info.run_id)
    with speaking(connection.uri, f"fetch the base weights of run {keeper}"):
        return read_base(Path(connection.client.download_artifacts(keeper, BASE, str(scratch))))


def _load_folder(folder: Path, device: torch.device) -> Loaded:
    """A folder with ``bundle.json`` in it or in ``adapter/``, and ``base.safetensors`` in either or beside it.

    What ``train --out`` wrote also tells the digest of its split and its test films.
    """
    inner = folder / ADAPTER if (folder / ADAPTER).is_dir() else folder
    bundle = read_bundle(inner)
    places = [place / "base.safetensors" for place in (inner, folder, inner.parent)]
    kept = next((path for path in places if path.is_file()), None)
    base = read_base(kept) if kept else _named_base(bundle)
    network, bundle = load_bundle(inner, base)
    split, test_films = next(filter(any, map(known_of, dict.fromkeys((folder, inner.parent)))), ("", frozenset[str]()))
    tags = {"xray_opt.manifest_sha256": split} if split else {}
    return Loaded(Predictor(network, bundle, device), "", tags, base.trained_on, test_films=test_films)


def _named_base(bundle: Bundle) -> Base:
    names = ("model.base", "model.base_seed")
    chosen = {name: value for name, value in bundle.config.items() if name in names}
    return load_base(override(Config(), chosen).model)


def _fetch(connection: Connection, place: str, scratch: Path) -> Path:
    """A folder of artifacts, read in place where it lies on this machine."""
    parts = urlsplit(place)
    if parts.scheme in ("", "file"):
        return Path(url2pathname(parts.path))
    return Path(mlflow.artifacts.download_artifacts(place, dst_path=str(scratch), tracking_uri=connection.uri))
