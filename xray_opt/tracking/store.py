"""Which MLflow store a study is in: noted when it starts, so that it never splits over two."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Any

from mlflow.exceptions import MlflowException

from xray_opt.errors import TrackingError
from xray_opt.mlflow_client import MISSING, Connection, quickly, speaking


def store_note(connection: Connection) -> dict[str, str]:
    """The store as a study keeps it in mind (JSON-ready), without credentials.

    ``uri`` is empty for the workspace's own store, which may move with the workspace; ``shown`` is for people.
    """
    host = f" on {socket.gethostname()}" if connection.local else ""
    return {
        "uri": connection.address,
        "shown": connection.shown + host,
    }


def require_same_store(connection: Connection, study: str, kept: Mapping[str, Any] | None, parent: str | None) -> None:
    """Refuse to go on in a store that does not hold the study's run; one store may have several addresses.

    Args:
        kept: ``store_note`` of the study's former calls.
        parent: id of the study's run.

    Raises:
        TrackingError: the study's run is in another store.
    """
    here = store_note(connection)
    if not kept or not parent or kept["shown"] == here["shown"]:
        return
    with quickly():
        if run_exists(connection, parent):
            return
    raise TrackingError(
        f"study {study} keeps its runs in MLflow at {kept['shown']}, not at {here['shown']}: set --tracking-uri, "
        "tracking.uri or MLFLOW_TRACKING_URI back, or start another study with --name"
    )


def run_exists(connection: Connection, run_id: str) -> bool:
    """Whether the store has a run of this id, one marked as deleted included."""
    with speaking(connection.uri, f"look for the run {run_id}"):
        try:
            connection.client.get_run(run_id)
        except MlflowException as error:
            if error.error_code == MISSING:
                return False
            raise
    return True
