"""The two ends of a move: an Optuna storage and an MLflow store each."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from xray_opt.config import TrackingConfig, Workspace
from xray_opt.errors import ConfigError, StudyError
from xray_opt.mlflow_client import Connection, connect
from xray_opt.tuning import storage_digest, storage_url

#: Names of the two usual ends; anything else is the folder of a workspace.
WORKSPACE, SERVICE = "workspace", "service"


@dataclass(frozen=True)
class Stores:
    """One end of a move; the storage's URL may hold a password, and ``workspace`` keeps its studies' checkpoints."""

    storage: str = field(repr=False)
    connection: Connection
    workspace: Workspace


def both_ends(
    workspace: Workspace, start: str, end: str, storage: str | None = None, uri: str | None = None
) -> tuple[Stores, Stores]:
    """Source and target, connected.

    Raises:
        ConfigError: an end is not known, or both share a store.
        StudyError: the source has no studies.
        TrackingError: an MLflow store does not answer.
    """
    ends = []
    for name in (start, end):
        if name == SERVICE:
            ends.append(_service(workspace, storage, uri))
        else:
            ends.append(_embedded(workspace, name, is_source=not ends))
    source, target = ends
    if source.connection.uri == target.connection.uri or storage_digest(source.storage) == storage_digest(
        target.storage
    ):
        raise ConfigError("source and target share a store: name two ends with --from and --to")
    return source, target


def _service(workspace: Workspace, storage: str | None, uri: str | None) -> Stores:
    storage = storage or os.environ.get("XRAY_OPT_STORAGE")
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not storage or not uri:
        raise ConfigError(
            "the service is not known: set XRAY_OPT_STORAGE and MLFLOW_TRACKING_URI in .env, or give --storage and "
            "--tracking-uri"
        )
    return Stores(storage_url(workspace, storage), connect(TrackingConfig(uri=uri), workspace), workspace)


def _embedded(workspace: Workspace, name: str, is_source: bool) -> Stores:
    place = workspace if name == WORKSPACE else Workspace(Path(name).resolve())
    if not place.root.is_dir():
        raise ConfigError(f"{name} is no folder: give {WORKSPACE}, {SERVICE}, or the folder of a workspace")
    if is_source and not place.study_database.is_file():
        raise StudyError(f"there are no studies to copy in {place.root}: {place.study_database} is missing")
    place.studies.mkdir(exist_ok=True)
    return Stores(f"sqlite:///{place.study_database}", connect(TrackingConfig(uri=place.mlflow_uri), place), place)
