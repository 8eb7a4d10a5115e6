"""Deleting artifacts and LoggedModels: for good in a local store, as far as a client may in a remote one."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from mlflow.entities import LoggedModel
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from xray_opt.mlflow_client import Connection


def discard_model(connection: Connection, model: LoggedModel) -> None:
    """Delete a LoggedModel. A server only marks it deleted; its owner's ``mlflow gc`` frees the space."""
    connection.client.delete_logged_model(model.model_id)
    if connection.local:
        delete_artifacts(model.artifact_location)
        connection.store()._hard_delete_logged_model(model.model_id)


def delete_artifacts(uri: str) -> None:
    """Delete a run's or model's artifacts, and the folder that was its own if it is left empty."""
    get_artifact_repository(uri).delete_artifacts()  # type: ignore[no-untyped-call]
    owner = local_path(uri).parent
    if owner.is_dir() and not any(owner.iterdir()):
        owner.rmdir()


def local_path(uri: str) -> Path:
    """Path of a ``file:`` URI or of a plain path."""
    parts = urlsplit(uri)
    return Path(url2pathname(parts.path)) if parts.scheme == "file" else Path(uri)
