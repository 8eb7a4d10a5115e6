"""What both stores hold of a study, read with their own clients and nothing of the product, as plain records."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
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
    """A trial's run in MLflow; ``epochs`` are step, value and time of every point of ``val.f1`` as they lie there.

    ``series`` has the steps of every other value of an epoch, by name; none where they were not looked at.
    """

    run_id: str
    trial: int
    status: str
    params: dict[str, str] = field(default_factory=dict)
    epochs: tuple[tuple[int, float, float], ...] = ()
    reason: str | None = None
    best: float | None = None
    artifacts: tuple[str, ...] = ()
    series: dict[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Seen:
    """A study in both stores; ``parent`` is the state of its run, ``champion`` the run of the champion alias.

    ``postponed``: a note of the study says that MLflow was away when it was to be settled.
    """

    trials: tuple[Trial, ...]
    runs: tuple[TrialRun, ...]
    parent: str
    champion: str | None
    versions: tuple[str, ...]
    postponed: bool = False
    parent_id: str = ""


@dataclass(frozen=True)
class Kept:
    """Writes that wait for MLflow on this host: how many of each kind, and the trials whose runs they are of.

    ``study``: some are of the study's run.
    """

    writes: dict[str, int] = field(default_factory=dict)
    trials: frozenset[int] = frozenset()
    study: bool = False


def kept(folder: Path, seen: Seen) -> Kept:
    """Read what waits in the files of a folder; a file that cannot be read is not passed over."""
    numbers, writes, trials = {run.run_id: run.trial for run in seen.runs}, Counter[str](), set[int]()
    study = False
    for path in sorted(folder.glob("*.db")):
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=60)) as base:
            made = dict(base.execute("SELECT key, id FROM runs"))
            for run, kind, content in base.execute("SELECT run, kind, content FROM entries"):
                writes[kind] += 1
                run_id = made.get(run) or run
                study |= kind == "study" or run_id == seen.parent_id
                number = json.loads(content).get("tags", {}).get("xray_opt.trial", numbers.get(run_id))
                trials |= set() if number is None else {int(number)}
    return Kept(dict(writes), frozenset(trials), study)


def look(study: str, storage: str, uri: str, model: str, series: bool = True) -> Seen:
    """Read both stores; without ``series`` only one value of each epoch."""
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
        runs=tuple(_run(client, run, series) for run in runs if "xray_opt.trial" in run.data.tags),
        parent=parent.info.status,
        champion=champion,
        versions=tuple(version.run_id for version in versions),
        parent_id=parent.info.run_id,
        postponed=bool(opened.user_attrs.get("postponed")),
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


#: How the names of an epoch's values begin, but for the one that Optuna has too.
EPOCH, REPORTED = ("val.", "train.", "learning_rate"), "val.f1"


def _run(client: mlflow.MlflowClient, run: Run, series: bool) -> TrialRun:
    def history(name: str) -> list[mlflow.entities.Metric]:
        return client.get_metric_history(run.info.run_id, name)

    points = history(REPORTED)
    others = [name for name in sorted(run.data.metrics) if name.startswith(EPOCH) and name != REPORTED]
    return TrialRun(
        run_id=run.info.run_id,
        trial=int(run.data.tags["xray_opt.trial"]),
        status=run.info.status,
        params=dict(run.data.params),
        epochs=tuple((point.step, point.value, point.timestamp / 1000) for point in points),
        reason=run.data.tags.get("reason"),
        best=run.data.metrics.get("best.f1"),
        artifacts=tuple(item.path for item in client.list_artifacts(run.info.run_id)),
        series={name: tuple(point.step for point in history(name)) for name in others if series},
    )
