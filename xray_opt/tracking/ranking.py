"""The best trials as MLflow LoggedModels, which its UI compares side by side."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from mlflow.entities import DatasetInput, LoggedModel, Metric

from xray_opt.mlflow_client import Connection, pages
from xray_opt.tracking.discard import discard_model
from xray_opt.tracking.experiments import ROLE, STUDY_ID

RANKED = "ranked"


@dataclass(frozen=True)
class RankedTrial:
    """A finished trial worth comparing: its run, number, validation F1, and where its run keeps the bundle."""

    run_id: str
    number: int
    value: float
    artifact: str = "adapter"


def rank(
    connection: Connection,
    experiment_id: str,
    best: Sequence[RankedTrial],
    tags: Mapping[str, str],
    datasets: Sequence[DatasetInput],
) -> None:
    """Bring the study's ranked models to exactly ``best``: keep, add, then delete what is no longer among them.

    Another study of the same name and experiment keeps its own. A model that a kill left unfinished is replaced.
    """
    kept: dict[str, LoggedModel] = {}
    stale = []
    wanted = {trial.run_id for trial in best}
    for model in logged_models(connection, experiment_id, RANKED):
        if model.tags.get(STUDY_ID) != tags.get(STUDY_ID):
            continue
        if model.source_run_id in wanted and model.source_run_id not in kept and str(model.status) == "READY":
            kept[model.source_run_id] = model
        else:
            stale.append(model)
    for place, trial in enumerate(best, start=1):
        model = kept.get(trial.run_id) or _add(connection, experiment_id, trial, tags, datasets)
        if model.tags.get("xray_opt.rank") != str(place):
            connection.client.set_logged_model_tags(model.model_id, {"xray_opt.rank": str(place)})
    for model in stale:
        discard_model(connection, model)


def logged_models(connection: Connection, experiment_id: str, role: str) -> Iterator[LoggedModel]:
    """Every LoggedModel of an experiment that this package made in a role (``ranked``, ``registered``)."""
    yield from (model for model in models_of(connection, experiment_id) if model.tags.get(ROLE) == role)


def models_of(connection: Connection, experiment_id: str) -> Iterator[LoggedModel]:
    """Every LoggedModel of an experiment, whoever made it."""
    return pages(lambda token: connection.client.search_logged_models([experiment_id], page_token=token))


def _add(
    connection: Connection,
    experiment_id: str,
    trial: RankedTrial,
    tags: Mapping[str, str],
    datasets: Sequence[DatasetInput],
) -> LoggedModel:
    client = connection.client
    run = client.get_run(trial.run_id)
    model = client.create_logged_model(
        experiment_id,
        name=f"trial-{trial.number:03d}",
        source_run_id=trial.run_id,
        tags={**tags, ROLE: RANKED, "xray_opt.trial": str(trial.number)},
        params=run.data.params,
        model_type="adapter",
    )
    with tempfile.TemporaryDirectory(prefix="xray-opt-") as folder:
        client.log_model_artifacts(model.model_id, client.download_artifacts(trial.run_id, trial.artifact, folder))
    scores = {name: value for name, value in run.data.metrics.items() if name.startswith(("best.", "objective."))}
    scores["best.f1"] = trial.value
    _attach(connection, model, trial.run_id, scores, datasets)
    return client.finalize_logged_model(model.model_id, "READY")


def _attach(
    connection: Connection,
    model: LoggedModel,
    run_id: str,
    scores: Mapping[str, float],
    datasets: Sequence[DatasetInput],
) -> None:
    """Log the scores once more as the model's, on the validation films: same names, same values as the run's."""
    validation = next((item.dataset for item in datasets if item.dataset.name.endswith("-val")), None)
    now = int(time.time() * 1000)
    metrics = [
        Metric(
            name,
            value,
            now,
            0,
            model_id=model.model_id,
            run_id=run_id,
            dataset_name=validation.name if validation else None,
            dataset_digest=validation.digest if validation else None,
        )
        for name, value in scores.items()
    ]
    connection.client.log_batch(run_id, metrics=metrics)
