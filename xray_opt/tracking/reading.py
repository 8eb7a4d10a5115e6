"""What is read back of runs as plain values: facts, files, and who was on which film."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mlflow.exceptions import MlflowException

from xray_opt.dataset import Manifest
from xray_opt.mlflow_client import MISSING, Connection, speaking
from xray_opt.tracking.agreement import child_runs
from xray_opt.tracking.artifact_copying import artifact_names
from xray_opt.tracking.data import MANIFEST_FILE, PSEUDONYMISED_FILE
from xray_opt.tracking.experiments import run_of_key
from xray_opt.tracking.sending import WAITING


@dataclass(frozen=True)
class RunFacts:
    """Params, metrics (last values) and tags of a run."""

    params: Mapping[str, str]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]


def run_facts(connection: Connection, run_id: str) -> RunFacts | None:
    """The facts of a run, none where the store has no such run."""
    with speaking(connection.uri, f"read the run {run_id}"):
        try:
            data = connection.client.get_run(run_id).data
        except MlflowException as error:
            if error.error_code == MISSING:
                return None
            raise
    return RunFacts(data.params, data.metrics, data.tags)


def noted_run(connection: Connection, parent_id: str, noted: str) -> str:
    """Id of a run that a trial noted: MLflow may have been away then, and have made the run later.

    What the trial noted where the run is not made yet.
    """
    if not noted.startswith(WAITING):
        return noted
    with speaking(connection.uri, f"find the run {noted}"):
        experiment = connection.client.get_run(parent_id).info.experiment_id
        return run_of_key(connection, experiment, noted.removeprefix(WAITING)) or noted


def child_tags(connection: Connection, parent_id: str) -> list[Mapping[str, str]]:
    """The tags of every run below a study's run."""
    return [run.data.tags for run in child_runs(connection, parent_id)]


def run_file(connection: Connection, run_id: str, name: str, folder: Path) -> Path | None:
    """A copy of a run's artifact below ``folder``, none where it has none of that name."""
    with speaking(connection.uri, f"fetch {name} of the run {run_id}"):
        parent = name.rpartition("/")[0] or None
        if name not in artifact_names(connection, run_id, parent):
            return None
        return Path(connection.client.download_artifacts(run_id, name, str(folder)))


def prediction_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a run's predictions: film, label, probability; a film's name may be no UTF-8, or hold any character
    that ends a line elsewhere."""
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


@dataclass(frozen=True)
class Seat:
    """Where one film sits: its patient group, split and label."""

    group: str
    split: str
    label: int


def film_seats(connection: Connection, parent_id: str, folder: Path) -> dict[str, Seat]:
    """Film, named as the run's predictions name it, → where it sits; empty where the study's run keeps no manifest.

    Raises:
        DataError: the manifest is damaged.
    """
    if path := run_file(connection, parent_id, MANIFEST_FILE, folder):
        return {film.path: Seat(film.group, film.split, film.label) for film in Manifest.load(path).films}
    if path := run_file(connection, parent_id, PSEUDONYMISED_FILE, folder):
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file)
            return {row["film"]: Seat(row["group"], row["split"], int(row["label"])) for row in rows}
    return {}
