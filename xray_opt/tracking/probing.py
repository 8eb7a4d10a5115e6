"""Looks whether an MLflow store can be worked with: version, login, clock, and an artifact there and back."""

from __future__ import annotations

import tempfile
import time
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

from mlflow.entities import ViewType
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.version import VERSION

from xray_opt.errors import TrackingError
from xray_opt.mlflow_client import Connection, ask, speaking
from xray_opt.tracking.experiments import experiment_named

#: The one experiment, with one run, that the round trips of artifacts go through.
EXPERIMENT = "xray-opt-doctor"


@dataclass(frozen=True)
class ServerFacts:
    """How a server was found.

    Attributes:
        version: of MLflow there, ``client`` here.
        seconds: of one small request.
        skew: seconds that its clock is ahead of ours; whole ones, as HTTP tells no others. None where it tells none.
    """

    version: str
    client: str
    seconds: float
    skew: float | None


def probe_server(connection: Connection) -> ServerFacts:
    """Ask a server that ``connect`` was let in by.

    Raises:
        TrackingError: it does not answer.
    """
    began, before = time.monotonic(), datetime.now(UTC)
    answer = ask(connection.uri, "/version")
    seconds, after = time.monotonic() - began, datetime.now(UTC)
    version = answer.text.strip()[:20] if answer.status_code == 200 else "unknown"
    skew = None
    if stated := answer.headers.get("Date"):
        there = parsedate_to_datetime(stated)
        # It stands for a whole second: only what lies outside of that is skew.
        ahead, behind = (there - after).total_seconds(), (there - before).total_seconds() + 1
        skew = max(ahead, 0.0) or min(behind, 0.0)
    return ServerFacts(version, VERSION, seconds, skew)


def round_trip(connection: Connection) -> float:
    """Write, read and delete one small artifact; seconds taken. An experiment of its own holds the run it uses.

    Raises:
        TrackingError: one of the three fails, or what is read is not what was written.
    """
    client, name, text = connection.client, f"probe-{uuid.uuid4().hex}.txt", uuid.uuid4().hex
    began = time.monotonic()
    with speaking(connection.uri, "write, read and delete an artifact"):
        experiment = experiment_named(connection, EXPERIMENT)
        runs = client.search_runs([experiment], "", ViewType.ACTIVE_ONLY, 1)
        run = runs[0] if runs else client.create_run(experiment, tags={"xray_opt.role": "doctor"}, run_name="doctor")
        client.log_text(run.info.run_id, text, name)
        with tempfile.TemporaryDirectory(prefix="xray-opt-") as folder:
            read = Path(client.download_artifacts(run.info.run_id, name, folder)).read_text(encoding="utf-8")
        if read != text:
            raise TrackingError(f"an artifact read from {connection.shown} is not what was written: check its store")
        place = get_artifact_repository(run.info.artifact_uri, tracking_uri=connection.uri)
        place.delete_artifacts(name)  # type: ignore[no-untyped-call]
        if not runs:
            client.set_terminated(run.info.run_id)
    return time.monotonic() - began
