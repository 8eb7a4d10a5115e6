"""Checkpoints of unfinished trials among the artifacts of their runs, for workers that share no disk.

Two files take turns, and a tag says which holds which epoch, with its SHA-256: a worker that is killed in mid upload
leaves the epoch before, and no store has to delete anything. Where the store is away the newest waits in the spool.
Nothing here fails a trial.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mlflow.entities import Run
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from xray_opt.errors import DiskFault, TrackingError
from xray_opt.mlflow_client import Connection, quickly, speaking

log = logging.getLogger(__name__)

#: Folder of a run's artifacts, and the tag that tells what is in it: epoch, file and SHA-256, newest first.
FOLDER, TAG = "checkpoint", "xray_opt.checkpoints"
#: Bytes of a large checkpoint: MLflow gets the time for these.
LARGE = 200_000_000

Write = Callable[[str, Mapping[str, Any], Mapping[str, Path] | None], None]


class Uploads:
    """The checkpoints of one run; ``write`` is the run's way to MLflow, through the spool where that is away."""

    def __init__(self, write: Write, say: Callable[[str], None]) -> None:
        self._write, self._say = write, say
        self._kept: list[dict[str, Any]] = []

    def add(self, path: Path, epoch: int) -> None:
        """Keep the checkpoint of an epoch in place of the one before the last."""
        name = f"{'odd' if epoch % 2 else 'even'}.pt"
        try:
            with tempfile.TemporaryDirectory(prefix="xray-opt-") as folder, path.open("rb") as file:
                (Path(folder) / name).symlink_to(path.resolve())
                one = {"epoch": epoch, "file": name, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
                self._write("files", {"folder": FOLDER, "replaces": True}, {name: Path(folder) / name})
            self._kept = [one, *(other for other in self._kept if other["file"] != name)]
            self._write("batch", {"tags": {TAG: json.dumps(self._kept)}}, None)
        except (DiskFault, OSError) as error:
            self._say(f"the checkpoint of epoch {epoch} is on this disk alone: {error}")


def fetched(connection: Connection, runs: Iterable[Run], folder: Path, say: Callable[[str], None]) -> Iterator[Path]:
    """Copies of the checkpoints of these runs below ``folder``, newest first, each of which is what was sent."""
    for run in runs:
        for number, kept in enumerate(_told(run)):
            path = folder / f"{run.info.run_id}-{number}"
            path.mkdir(parents=True)
            where = f"{FOLDER}/{kept['file']}"
            try:
                with quickly(LARGE), speaking(connection.uri, f"fetch {where} of the run {run.info.run_id}"):
                    file = Path(connection.client.download_artifacts(run.info.run_id, where, str(path)))
                with file.open("rb") as content:
                    whole = hashlib.file_digest(content, "sha256").hexdigest() == kept["sha256"]
            except (TrackingError, OSError) as error:
                say(f"going back to an earlier checkpoint, if any: {error}")
                continue
            if whole:
                yield file
            else:
                say(f"{where} of the run {run.info.run_id} is damaged; going back to the one before it, if any")


def discard(connection: Connection, run: Run) -> None:
    """Remove the checkpoints of a run that nobody resumes any more; a store that deletes nothing keeps two files.

    Raises:
        TrackingError: the store does not answer.
    """
    if TAG not in run.data.tags:
        return
    with quickly(), speaking(connection.uri, f"remove the checkpoints of the run {run.info.run_id}"):
        try:
            files = get_artifact_repository(run.info.artifact_uri, tracking_uri=connection.uri)
            files.delete_artifacts(FOLDER)  # type: ignore[no-untyped-call]
        except Exception as error:  # stores say in their own ways that they do not delete
            log.info("the checkpoints of the run %s stay: %s", run.info.run_id, error)
        connection.client.delete_tag(run.info.run_id, TAG)


def _told(run: Run) -> list[dict[str, Any]]:
    try:
        kept = json.loads(run.data.tags.get(TAG, "[]"))
        return [one for one in kept if isinstance(one["file"], str) and "/" not in one["file"] and one["sha256"]]
    except (ValueError, TypeError, KeyError):
        return []
