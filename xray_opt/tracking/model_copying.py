"""Copies LoggedModels: the best trials that MLflow's UI compares, and the files that registered versions point at."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

import yaml
from mlflow.entities import LoggedModel, LoggedModelOutput, Metric

from xray_opt.mlflow_client import Connection, speaking
from xray_opt.tracking.artifact_copying import copy_artifacts
from xray_opt.tracking.copying import ORIGIN, Route
from xray_opt.tracking.ranking import models_of

#: Tag with which MLflow links a LoggedModel to its registered versions; made anew there.
VERSIONS = "mlflow.modelVersions"


def models_of_runs(connection: Connection, experiments: Iterable[str], runs: Mapping[str, str]) -> list[LoggedModel]:
    """The whole LoggedModels of these runs (the keys), oldest first."""
    with speaking(connection.uri, "list models"):
        found = [model for experiment in sorted(set(experiments)) for model in models_of(connection, experiment)]
    whole = [model for model in found if model.source_run_id in runs and str(model.status) == "READY"]
    return sorted(whole, key=lambda model: (model.creation_timestamp, model.model_id))


def copies_of_models(connection: Connection, experiments: Iterable[str]) -> dict[str, LoggedModel]:
    """Id of an original → its copy, whole or not."""
    with speaking(connection.uri, "list models"):
        found = [model for experiment in sorted(set(experiments)) for model in models_of(connection, experiment)]
    return {model.tags[ORIGIN]: model for model in found if ORIGIN in model.tags}


def copy_model(
    route: Route, model: LoggedModel, known: LoggedModel | None, runs: Mapping[str, str], experiment_id: str
) -> str:
    """Copy one LoggedModel with its files and scores, or finish the copy that is known; returns the copy's id.

    Args:
        runs: id of each run at the source → its copy's.
        experiment_id: of the copied run.

    Raises:
        TrackingError: a store does not answer, or a file is not the same after it was copied.
    """
    if known is not None and str(known.status) == "READY":
        return str(known.model_id)
    client, run = route.target.client, runs[str(model.source_run_id)]
    with speaking(route.target.uri, f"copy the model {model.model_id}"):
        tags = route.tags(model.tags) | {ORIGIN: model.model_id}
        tags.pop(VERSIONS, None)
        copy = known or client.create_logged_model(
            experiment_id,
            name=model.name,
            source_run_id=run,
            tags=tags,
            params=route.params(model.params),
            model_type=model.model_type,
        )
        copy_artifacts(route.source, route.target, model.model_id, copy.model_id, partial(_rename, copy, run))
        if scores := list(_scores(model, copy.model_id, run)):
            client.log_batch(run, metrics=scores)
        was_output = model.model_id in _outputs(route.source, str(model.source_run_id))
        if was_output and copy.model_id not in _outputs(route.target, run):
            client.log_outputs(run, [LoggedModelOutput(copy.model_id, step=0)])
        client.finalize_logged_model(copy.model_id, "READY")
    return str(copy.model_id)


def _outputs(connection: Connection, run_id: str) -> set[str]:
    """Ids of the LoggedModels that a run names as its output."""
    outputs = connection.client.get_run(run_id).outputs
    return {output.model_id for output in outputs.model_outputs} if outputs else set()


def _rename(copy: LoggedModel, run_id: str, folder: Path) -> None:
    """Give the copy's own ids to the record that MLflow loads a model by."""
    record = folder / "MLmodel"
    if not record.is_file():
        return
    content = yaml.safe_load(record.read_text(encoding="utf-8"))
    own = {
        "run_id": run_id,
        "model_id": copy.model_id,
        "model_uuid": copy.model_id,
        "artifact_path": copy.artifact_location,
    }
    content |= {key: value for key, value in own.items() if key in content}
    record.write_text(yaml.safe_dump(content, sort_keys=False, width=1000), encoding="utf-8")


def _scores(model: LoggedModel, copy: str, run_id: str) -> Iterator[Metric]:
    for metric in model.metrics or ():
        yield Metric(
            metric.key,
            metric.value,
            metric.timestamp,
            metric.step,
            model_id=copy,
            run_id=run_id,
            dataset_name=metric.dataset_name,
            dataset_digest=metric.dataset_digest,
        )
