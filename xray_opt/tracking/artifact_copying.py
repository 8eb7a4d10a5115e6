"""Copies the files of a run or LoggedModel to another store, and reads them back to compare every SHA-256."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from xray_opt.errors import TrackingError
from xray_opt.mlflow_client import Connection


def copy_artifacts(
    source: Connection, target: Connection, origin: str, copy: str, change: Callable[[Path], None]
) -> str:
    """Copy all files; a run or LoggedModel is meant by its id. To be done again where it was broken off.

    Args:
        change: told of the folder with the files before they are sent.

    Returns:
        The digest of their names and contents.

    Raises:
        TrackingError: what was read back is not what was sent.
    """
    with tempfile.TemporaryDirectory(prefix="xray-opt-") as scratch:
        folder, back = Path(scratch) / "there", Path(scratch) / "back"
        _fetch(source, origin, folder)
        change(folder)
        sent = _digests(folder)
        if sent:
            _files(target, copy).log_artifacts(str(folder))  # type: ignore[no-untyped-call]
            _fetch(target, copy, back)
            if _digests(back) != sent:
                raise TrackingError(
                    f"the files of {copy} at {target.shown} are not those of {origin} after they were copied: "
                    "check the artifact store, then migrate again"
                )
    return hashlib.sha256(repr(sorted(sent.items())).encode()).hexdigest()


def artifact_names(connection: Connection, run_id: str, folder: str | None = None) -> Iterator[str]:
    """Paths of a run's artifacts."""
    for item in connection.client.list_artifacts(run_id, folder):
        if item.is_dir:
            yield from artifact_names(connection, run_id, item.path)
        else:
            yield item.path


def _files(connection: Connection, owner: str) -> ArtifactRepository:
    """Where the files of a run or LoggedModel lie; ids of the latter begin with ``m-``."""
    client = connection.client
    model = owner.startswith("m-")
    place = client.get_logged_model(owner).artifact_location if model else client.get_run(owner).info.artifact_uri
    return get_artifact_repository(place, tracking_uri=connection.uri)


def _fetch(connection: Connection, owner: str, folder: Path) -> None:
    """Copies of all files below a new folder."""
    folder.mkdir()
    files = _files(connection, owner)
    if files.list_artifacts():
        files.download_artifacts("", str(folder))  # type: ignore[no-untyped-call]


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): _sha256(path) for path in files}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
