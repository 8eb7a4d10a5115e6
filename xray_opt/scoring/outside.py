"""Films of another folder: those that are the model's own, or of its patients, or sealed test films, are left out."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from xray_opt import registry
from xray_opt.backbone import Ancestor, read_base
from xray_opt.config import Config, DataConfig, Workspace, override
from xray_opt.dataset import Film, Manifest, kept_manifests, resplit
from xray_opt.errors import ConfigError, DataError
from xray_opt.kept_base import kept_path
from xray_opt.ledger import film_key, sealed_keys
from xray_opt.mlflow_client import Connection
from xray_opt.overlap import seen_groups
from xray_opt.tracking import MANIFEST, noted_test_films, study_manifest

OWN_FILMS = (
    "these are the model's own films: --split all would open their sealed test split unrecorded; use --split val, or "
    "--split test with --why"
)
OWN_PATIENTS = (
    "all these films are the model's own or of its patients, going by their keys: if they are of other people, give a "
    "CSV path,label,patient with other keys"
)
SEALED_FILMS = (
    "all these films stand in a sealed test split of this workspace or of the model: --why opens it for them, which is "
    "recorded"
)
NOT_ELSEWHERE = "--classes and --skip-bad are for films of another folder: they need --split all"
#: What sealed test films, and files that cannot be used, are counted under among those left out.
SEALED, UNUSABLE = "of_a_sealed_test", "unusable"


@dataclass(frozen=True)
class Elsewhere:
    """How films of another folder are read.

    Attributes:
        classes: what its negative and its positive class are called there; none: as the model calls them.
        skip_bad: leave out files that cannot be used instead of refusing the set.
    """

    classes: tuple[str, str] | None = None
    skip_bad: bool = False

    def settings(self, root: str | None, loaded: registry.Loaded) -> DataConfig:
        """The ``data.*`` settings of the films in ``root`` for a model."""
        negative, positive = self.classes or own_settings(loaded).classes
        return DataConfig(root=root, skip_bad=self.skip_bad, negative=negative, positive=positive)


@dataclass(frozen=True)
class Strangers:
    """Films of an outside set that may be scored.

    Attributes:
        opened: those of them that are sealed test films, which must be recorded.
        left_out: how many others there are, by what they are.
        own_known: whether the model's own films are known here; where not, some may be among ``films``.
    """

    films: tuple[Film, ...]
    opened: tuple[Film, ...]
    left_out: Mapping[str, int]
    own_known: bool


def own_settings(loaded: registry.Loaded) -> DataConfig:
    """The ``data.*`` settings that the model was made with, without the root."""
    kept = {name: value for name, value in loaded.bundle.config.items() if name.startswith("data.")}
    return override(Config(), kept).data


def strangers(
    manifest: Manifest,
    loaded: registry.Loaded,
    own: Manifest | None,
    connection: Connection,
    workspace: Workspace,
    opening: bool = False,
) -> Strangers:
    """The films of an outside set that are not the model's own nor of its patients, nor sealed test films.

    Sealed are the test films of every manifest in the workspace, those that were ever opened as such, and those that
    the model or its run tells of: to score labels of these is an opening, whatever the model was made on.

    Args:
        opening: take the sealed ones in; the caller records that.

    Raises:
        ConfigError: no film is left.
    """
    left, out = _not_own(manifest, loaded, own, workspace)
    sealed = sealed_keys(workspace, kept_manifests(workspace.manifests)) | loaded.test_films
    if own is None and loaded.run_id:
        sealed |= noted_test_films(connection, loaded.run_id)
    held = tuple(film for film in left if film_key(film.sha256) in sealed)
    if held and not opening:
        out[SEALED] = len(held)
        left, held = tuple(film for film in left if film_key(film.sha256) not in sealed), ()
        if not left:
            raise ConfigError(SEALED_FILMS)
    return Strangers(left, held, out, own is not None)


def _not_own(
    manifest: Manifest, loaded: registry.Loaded, own: Manifest | None, workspace: Workspace
) -> tuple[tuple[Film, ...], dict[str, int]]:
    """The films that are not the model's own nor of its patients, and a count of the others.

    The model's own films are known by their SHA-256, whatever their names; its patients by their keys, and by standing
    in one patient group with one of its films. Films and patients of its base are its own too, where the base tells
    them.
    """
    if own is None:
        if _is_own(manifest, loaded):
            raise ConfigError(OWN_FILMS)
        return manifest.films, {}
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
    found = own_manifests(loaded.tags.get(MANIFEST), loaded.run_id, connection, workspace)
    return found[0] if found else None


def own_manifests(
    digest: str | None, run_id: str, connection: Connection, workspace: Workspace
) -> tuple[Manifest, ...]:
    """The manifests of the split that a run was made on: those of the workspace (the same films may lie in several
    places), else that of its study's run."""
    if digest and (kept := tuple(kept_manifests(workspace.manifests, digest))):
        return kept
    with tempfile.TemporaryDirectory(prefix="xray-opt-") as folder, suppress(DataError):
        path = study_manifest(connection, run_id, Path(folder)) if run_id else None
        return (Manifest.load(path),) if path else ()
    return ()


def _is_own(manifest: Manifest, loaded: registry.Loaded) -> bool:
    """Whether these films, split as the model's own were, are the model's own."""
    try:
        return resplit(manifest, own_settings(loaded)).sha256 == loaded.tags.get(MANIFEST)
    except DataError:  # films that cannot even be split so are others
        return False
