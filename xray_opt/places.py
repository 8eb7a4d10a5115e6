"""Finds where a study lies: which Optuna storage holds it, and which MLflow store its runs are in.

A study file that the workspace knows tells both; what a study noted while it ran tells the second. What the command
line names goes before either. Light: no torch, no MLflow.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from xray_opt.config import StudyConfig, TrackingConfig, Workspace, find_study, load_study, study_files
from xray_opt.errors import ConfigError, StudyError
from xray_opt.tuning import IDENTITY, list_studies, read_study, storage_digest, storage_url

#: Study notes: the id of its run in MLflow, and the store that this run is in.
PARENT, STORE = "mlflow_parent", "mlflow_store"
#: File in a study's state folder: digests of the storages whose study of that name used the folder.
MARKS = "storages"


@dataclass(frozen=True)
class Place:
    """Where a study lies; none means the default of variables and workspace.

    Attributes:
        study: its name in Optuna and MLflow.
        storage: URL of the Optuna storage.
        uri: tracking URI of MLflow.
    """

    study: str | None = None
    storage: str | None = None
    uri: str | None = None

    def tracking(self, workspace: Workspace) -> TrackingConfig:
        """Settings to connect to the store in which the study keeps its runs.

        Raises:
            StudyError: no such study, or the storage is away.
        """
        if self.uri or self.study is None:
            return TrackingConfig(uri=self.uri)
        note = read_study(self.study, workspace, self.storage).notes.get(STORE)
        return TrackingConfig(uri=note and (note["uri"] or workspace.mlflow_uri))


def find_place(
    workspace: Workspace, study: str | None = None, storage: str | None = None, uri: str | None = None
) -> Place:
    """Where ``study`` lies: a study's name, a study file or its short name; none means no study.

    The storage is the given one, else the study file's; so is the tracking URI.

    Raises:
        ConfigError: a study file was named that is missing or broken.
    """
    if study is None:
        return Place(None, storage, uri)
    known = _known(study, workspace)
    name = known.name if known else study
    storage = storage or (known.storage if known else None)
    return Place(name, storage, uri or (known.config.tracking.uri if known else None))


def known_storages(workspace: Workspace, more: Iterable[str] = ()) -> dict[str, str]:
    """Digest → URL of the storages of a workspace: those given, the default, the embedded one, those of its files."""
    urls = [*more, storage_url(workspace)]
    if workspace.study_database.is_file():
        urls.append(f"sqlite:///{workspace.study_database}")
    urls += [study.storage for study in _files(workspace) if study.storage]
    found = {}
    for url in reversed(urls):
        with suppress(ConfigError, StudyError):  # of a study file, or a proxy that is away; tune says what is wrong
            found[storage_digest(url)] = url
    return found


def moved_with(workspace: Workspace, identity: str) -> str | None:
    """URL of the workspace's own storage where it holds the study of this id, else none.

    A storage is known by its place, so after a move of the workspace its own is known no more: ask this where the
    study's runs are in the workspace's own MLflow store, which moves along.
    """
    with suppress(ConfigError, StudyError):
        if identity and workspace.study_database.is_file():
            url = f"sqlite:///{workspace.study_database}"
            if any(study.notes.get(IDENTITY) == identity for study in list_studies(workspace, url)):
                return url
    return None


def mark_state(workspace: Workspace, study: str, digest: str) -> None:
    """Note in a study's state folder which storage holds the study.

    Raises:
        StudyError: the folder cannot be written.
    """
    folder = workspace.study_folder(study)
    if digest in state_marks(folder):
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / MARKS).open("a") as file:
            file.write(digest + "\n")
    except OSError as error:
        raise StudyError(f"cannot write to {folder}: {error.strerror}; check free space and permissions") from error


def state_marks(folder: Path) -> set[str]:
    """Digests of the storages that a state folder belongs to; empty where that is unknown."""
    try:
        return set((folder / MARKS).read_text(errors="replace").split())  # what is damaged is no storage's
    except OSError:
        return set()


def _known(study: str, workspace: Workspace) -> StudyConfig | None:
    """The study file that is meant: the one of that path, else the one of a study of that name, else ``NAME.yaml``."""
    if "/" in study or study.endswith((".yaml", ".yml")):
        return load_study(find_study(study, workspace))
    files = list(_files(workspace))
    return next((file for file in files if file.name == study), None) or _of_stem(study, workspace)


def _of_stem(stem: str, workspace: Workspace) -> StudyConfig | None:
    try:
        return load_study(find_study(stem, workspace))
    except ConfigError:
        return None


def _files(workspace: Workspace) -> Iterator[StudyConfig]:
    """The study files that can be read; the others concern ``tune``, which says what is wrong with them."""
    for path in study_files(workspace):
        try:
            yield load_study(path)
        except ConfigError:
            continue
