"""An embedded MLflow store whose workspace was moved or copied: MLflow keeps whole paths of artifacts, which then lead
to where it was. Left so, a moved workspace finds no model and takes all its files for nobody's, and a copy writes into
the workspace that it was copied from, and deletes there.
"""

from __future__ import annotations

import fcntl
from contextlib import suppress
from pathlib import Path
from typing import IO
from urllib.parse import unquote

from sqlalchemy import Engine, text

#: Tables and columns of MLflow that hold places of artifacts.
_PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
#: How the artifacts of every embedded store end.
_EMBEDDED = "/mlruns/artifacts"
#: Device and number of a file whose shared lock says that this process uses a store → the file, open until its end.
_USED: dict[tuple[int, int], IO[bytes]] = {}


def follow(engine: Engine, artifacts: Path) -> None:
    """Let what a store says of its artifacts lead to ``artifacts``, the folder that it has them in now.

    What was put elsewhere on purpose (a bucket, another disk) stays; so does all where another process uses the store:
    it sees the same folder at another place, in a container say, and would write to one that it does not have. The
    caller sees to it that no two processes do this at once.
    """
    used = _used(artifacts.parent / ".used.lock")
    try:
        with suppress(BlockingIOError):  # another process uses it
            fcntl.flock(used, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _follow(engine, artifacts)
    finally:
        fcntl.flock(used, fcntl.LOCK_SH)


def _used(path: Path) -> IO[bytes]:
    """The one file that this process has open there: two would lock each other out."""
    path.touch()
    status = path.stat()
    file = status.st_dev, status.st_ino
    if file not in _USED:
        _USED[file] = path.open("ab")
    return _USED[file]


def _follow(engine: Engine, artifacts: Path) -> None:
    here = artifacts.as_uri()
    with engine.begin() as store:
        locations = [str(row[0]) for row in store.execute(text("SELECT artifact_location FROM experiments"))]
        for was in sorted({_moved_from(location, here, artifacts) for location in locations} - {""}):
            for table, column in _PLACES:
                change = f"UPDATE {table} SET {column} = :here || substr({column}, length(:was) + 1)"
                change += f" WHERE substr({column}, 1, length(:was) + 1) = :was || '/'"
                store.execute(text(change), {"here": here, "was": was})


def _moved_from(location: str, here: str, artifacts: Path) -> str:
    """URI of the folder that an embedded store had its artifacts in, empty where this experiment's lie where they did.

    Args:
        location: of the artifacts of one experiment.
    """
    root, _, name = location.rpartition("/")
    if root == here or not root.startswith("file:///"):
        return ""
    return root if root.endswith(_EMBEDDED) or (artifacts / unquote(name)).is_dir() else ""
