"""Films of another folder: those that are the model's own, or of its patients, are left out."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from xray_opt import registry
from xray_opt.backbone import Ancestor, read_base
from xray_opt.config import Config, DataConfig, Workspace, override
from xray_opt.dataset import Film, Manifest, resplit
from xray_opt.errors import ConfigError, DataError
from xray_opt.kept_base import kept_path
from xray_opt.mlflow_client import Connection
from xray_opt.overlap import seen_groups
from xray_opt.tracking import MANIFEST, study_manifest

OWN_FILMS = (
    "these are the model's own films: --split all would open their sealed test split unrecorded; use --split val, or "
    "--split test with --why"
)
OWN_PATIENTS = (
    "all these films are the model's own or of its patients, going by their keys: if they are of other people, give a "
    "CSV path,label,patient with other keys"
)


def own_settings(loaded: registry.Loaded) -> DataConfig:
    """The ``data.*`` settings that the model was made with, without the root."""
    kept = {name: value for name, value in loaded.bundle.config.items() if name.startswith("data.")}
    return override(Config(), kept).data


def strangers(
    manifest: Manifest, loaded: registry.Loaded, own: Manifest | None, workspace: Workspace
) -> tuple[tuple[Film, ...], Mapping[str, int] | None]:
    """The films of an outside set that are not the model's own nor of its patients, and a count of the others.

    The model's own films are known by their SHA-256, whatever their names; its patients by their keys, and by standing
    in one patient group with one of its films. Films and patients of its base are its own too, where the base tells
    them. The count is none where the model's own films (``own``) are not known.

    Raises:
        ConfigError: no film is left.
    """
    if own is None:
        if _is_own(manifest, loaded):
            raise ConfigError(OWN_FILMS)
        return manifest.films, None
    files = {film.sha256: film.split for film in own.films}
    patients = {key for film in own.films for key in (film.patient, film.group)}
    known = {film.group for film in manifest.films if film.sha256 in files or {film.patient, film.group} & patients}
    seen = seen_groups(_trained_on(loaded, workspace), manifest.films) - known
    left = tuple(film for film in manifest.films if film.group not in known | seen)
    out = Counter(files.get(film.sha256, "same_patient") for film in manifest.films if film.group in known)
    if of_base := sum(film.group in seen for film in manifest.films):
        out["of_the_base"] = of_base
    if not left:
        raise ConfigError(OWN_PATIENTS if {"same_patient", "of_the_base"} & out.keys() else OWN_FILMS)
    return left, dict(out)


def _trained_on(loaded: registry.Loaded, workspace: Workspace) -> tuple[Ancestor, ...]:
    """What the model's base was trained on, with the lists of films where its study keeps them here."""
    study = loaded.tags.get("xray_opt.study")
    if not loaded.trained_on or study is None:
        return loaded.trained_on
    kept = kept_path(study, workspace, loaded.bundle.base_sha256)
    return read_base(kept).trained_on if kept.is_file() else loaded.trained_on


def own_manifest(loaded: registry.Loaded, connection: Connection, workspace: Workspace) -> Manifest | None:
    """The manifest the model was made on: from the workspace, else from its study's run; none where neither has it."""
    digest = loaded.tags.get(MANIFEST)
    for path in workspace.manifests.glob("*.csv"):
        with suppress(DataError):
            manifest = Manifest.load(path)
            if manifest.sha256 == digest:
                return manifest
    with tempfile.TemporaryDirectory(prefix="xray-opt-") as folder, suppress(DataError):
        kept = study_manifest(connection, loaded.run_id, Path(folder)) if loaded.run_id else None
        return Manifest.load(kept) if kept else None
    return None


def _is_own(manifest: Manifest, loaded: registry.Loaded) -> bool:
    """Whether these films, split as the model's own were, are the model's own."""
    try:
        return resplit(manifest, own_settings(loaded)).sha256 == loaded.tags.get(MANIFEST)
    except DataError:  # films that cannot even be split so are others
        return False
