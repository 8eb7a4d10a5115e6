"""What both stores hold of a study, read with their own clients and nothing of the product, as plain records."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import mlflow
import optuna
from mlflow.entities import Run


@dataclass(frozen=True)
class Trial:
    """A trial in Optuna; ``seconds`` from its start to its end, ``begun`` and ``ended`` in seconds since 1970."""

    number: int
    state: str
    value: float | None = None
    params: dict[str, Any] = field(default_factory=dict)
    epochs: dict[int, float] = field(default_factory=dict)
    reason: str | None = None
    retry_of: int | None = None
    begun: float = 0.0
    ended: float = 0.0


@dataclass(frozen=True)
class TrialRun:
    """A trial's run in MLflow; ``epochs`` are step, value and time of every point of ``val.f1`` as they lie there."""

    run_id: str
    trial: int
    status: str
    params: dict[str, str] = field(default_factory=dict)
    epochs: tuple[tuple[int, float, float], ...] = ()
    reason: str | None = None
    best: float | None = None
    artifacts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Seen:
    """A study in both stores; ``parent`` is the state of its run, ``champions`` the runs of the champion alias."""

    trials: tuple[Trial, ...]
    runs: tuple[TrialRun, ...]
    parent: str
    champion: str | None
    versions: tuple[str, ...]


def look(study: str, storage: str, uri: str, model: str) -> Seen:
    """Read both stores."""
    opened = optuna.load_study(study_name=study, storage=storage)
    client = mlflow.MlflowClient(uri)
    parent = client.get_run(opened.user_attrs["mlflow_parent"])
    runs = list[Run]()
    token = None
    while token is not None or not runs:
        page = client.search_runs(
            [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'", page_token=token
        )
        runs += page
        if (token := page.token) is None:
            break
    versions = client.search_model_versions(f"name = '{model}'")
    aliases = client.get_registered_model(model).aliases if versions else {}
    champion = client.get_model_version(model, aliases["champion"]).run_id if "champion" in aliases else None
    return Seen(
        trials=tuple(_trial(trial) for trial in opened.get_trials(deepcopy=False)),
        runs=tuple(_run(client, run) for run in runs if "xray_opt.trial" in run.data.tags),
        parent=parent.info.status,
        champion=champion,
        versions=tuple(version.run_id for version in versions),
    )


def _trial(trial: optuna.trial.FrozenTrial) -> Trial:
    notes = trial.user_attrs
    return Trial(
        number=trial.number,
        state=trial.state.name,
        value=trial.value,
        params=trial.params,
        epochs=dict(sorted(trial.intermediate_values.items())),
        reason=notes.get("reason"),
        retry_of=notes.get("retry_of"),
        begun=trial.datetime_start.timestamp() if trial.datetime_start else 0.0,
        ended=trial.datetime_complete.timestamp() if trial.datetime_complete else 0.0,
    )


def _run(client: mlflow.MlflowClient, run: Run) -> TrialRun:
    points = client.get_metric_history(run.info.run_id, "val.f1")
    return TrialRun(
        run_id=run.info.run_id,
        trial=int(run.data.tags["xray_opt.trial"]),
        status=run.info.status,
        params=dict(run.data.params),
        epochs=tuple((point.step, point.value, point.timestamp / 1000) for point in points),
        reason=run.data.tags.get("reason"),
        best=run.data.metrics.get("best.f1"),
        artifacts=tuple(item.path for item in client.list_artifacts(run.info.run_id)),
    )
