"""How a run ends: the state and tags that belong to what ended it, and the end of a run that was left behind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mlflow.entities import Run, RunTag
from mlflow.exceptions import MlflowException

from xray_opt.config import redacted
from xray_opt.errors import DeviceFault, DiskFault, Pruned, StudyError, TrackingError, TrainingError
from xray_opt.mlflow_client import MISSING, Connection, speaking, storable
from xray_opt.tracking.experiments import ROLE

LONGEST_TAG = 500


@dataclass(frozen=True)
class Ending:
    """State and tags of a run that is over."""

    status: str
    tags: dict[str, str]


def ending(error: BaseException | None, local: bool) -> Ending:
    """State and tags that belong to the exception (none: a clean end) that ended a run.

    The error's words may name films, so only its kind is told to a remote store.
    """
    if error is None:
        return Ending("FINISHED", {})
    if isinstance(error, Pruned):
        return Ending("KILLED", {"pruned_epoch": str(error.epoch)})
    if isinstance(error, KeyboardInterrupt):
        return Ending("FAILED", {"reason": "interrupted"})
    words = redacted(f"{type(error).__name__}: {error}") if local else type(error).__name__
    return Ending("FAILED", {"reason": _reason(error), "error": " ".join(words.split())[:LONGEST_TAG]})


def _reason(error: BaseException) -> str:
    if isinstance(error, StudyError | TrackingError | DiskFault):  # a store or disk is away: the trial is resumed
        return "interrupted"
    if isinstance(error, DeviceFault):
        return "worker-lost"
    return error.reason if isinstance(error, TrainingError) else "error"


def run_tags(tags: Mapping[str, str]) -> list[RunTag]:
    """Tags as MLflow wants them."""
    return [RunTag(key, storable(value)) for key, value in tags.items()]


def close(connection: Connection, run_id: str, end: Ending, ended: int | None = None) -> None:
    """End a run in a state, its tags first; ``ended`` is the time in ms, none means now."""
    with speaking(connection.uri, f"end the run {run_id}"):
        connection.client.log_batch(run_id, tags=run_tags(end.tags))
        connection.client.set_terminated(run_id, end.status, ended)


def close_lost(connection: Connection, run_id: str, reason: str = "worker-lost") -> None:
    """Make the run of a failed trial FAILED, whatever state it was left in; one that is FAILED keeps its reason.

    A worker that dies after its run ended but before its trial did leaves FINISHED behind: the trial has failed, so
    the run has. A run that is gone is no error.
    """
    with speaking(connection.uri, f"end the lost run {run_id}"):
        run = _active(connection, run_id)
        if run is not None and run.info.status != "FAILED":
            close(connection, run_id, Ending("FAILED", {"reason": reason}))


def close_left(connection: Connection, run_id: str) -> None:
    """Make a run FAILED that its process left RUNNING; a study's run is left alone, as others may work below it."""
    with speaking(connection.uri, f"end what is left of the run {run_id}"):
        run = _active(connection, run_id)
        if run is not None and run.info.status == "RUNNING" and run.data.tags.get(ROLE) != "study":
            close(connection, run_id, Ending("FAILED", {"reason": "worker-lost"}))


def _active(connection: Connection, run_id: str) -> Run | None:
    """A run; none where it is gone or marked as deleted."""
    try:
        run = connection.client.get_run(run_id)
    except MlflowException as error:
        if error.error_code == MISSING:
            return None
        raise
    return run if run.info.lifecycle_stage == "active" else None
