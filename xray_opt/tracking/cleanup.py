"""Finding and deleting what nobody refers to: runs of deleted studies, artifacts of deleted runs.

Only the workspace's own embedded store is searched: on a shared server, or in a database that someone named, the runs
of other people's studies look just like orphans.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from mlflow.entities import Run, ViewType
from mlflow.exceptions import MlflowException

from xray_opt.config import Workspace
from xray_opt.mlflow_client import MISSING, Connection, pages, speaking
from xray_opt.tracking.agreement import STORAGE
from xray_opt.tracking.discard import delete_artifacts, discard_model, local_path
from xray_opt.tracking.experiments import STUDY_ID
from xray_opt.tracking.ranking import RANKED, logged_models, models_of


def study_runs(connection: Connection, study_id: str) -> list[str]:
    """Ids of all runs of a study, its own run last, so that a kill while deleting leaves that one."""
    with speaking(connection.uri, f"list the runs of the study {study_id}"):
        runs = list(runs_everywhere(connection, f"tags.`{STUDY_ID}` = '{study_id}'"))
    return [run.info.run_id for run in sorted(runs, key=lambda run: run.data.tags.get("xray_opt.role") == "study")]


def orphan_runs(connection: Connection, storages: Mapping[str, Collection[str]]) -> tuple[list[str], list[str]]:
    """Ids of the embedded store's runs whose study is gone, and of those that cannot be judged; none in other stores.

    A run with a registered version is kept: the version refers to it.

    Args:
        storages: digest → ids of the studies of every storage that can be read now; runs of others cannot be judged.
    """
    if connection.artifact_root is None:
        return [], []
    orphans, unknown = [], []
    with speaking(connection.uri, "list runs"):
        registered = {version.run_id for version in _versions(connection)}
        for run in runs_everywhere(connection, ""):
            tags = run.data.tags
            if "xray_opt.study" not in tags or run.info.run_id in registered:
                continue
            if tags.get(STORAGE) not in storages:
                unknown.append(run.info.run_id)
            elif tags.get(STUDY_ID) not in storages[tags[STORAGE]]:
                orphans.append(run.info.run_id)
    return orphans, unknown


def delete_run(connection: Connection, run_id: str) -> None:
    """Delete a run with its ranked model; in a local store for good, artifacts included. A missing run is no error.

    What was registered from the run stays: a registered version has files of its own.
    """
    with speaking(connection.uri, f"delete the run {run_id}"):
        try:
            run = connection.client.get_run(run_id)
        except MlflowException as error:
            if error.error_code == MISSING:
                return
            raise
        for model in logged_models(connection, run.info.experiment_id, RANKED):
            if model.source_run_id == run_id:
                discard_model(connection, model)
        if run.info.lifecycle_stage == "active":
            connection.client.delete_run(run_id)
        if connection.local:
            delete_artifacts(run.info.artifact_uri)
            connection.store()._hard_delete_run(run_id)


def unreferenced_artifacts(connection: Connection, workspace: Workspace) -> list[Path]:
    """Folders among the embedded store's artifacts that belong to no run, model or version; none in any other store."""
    root = connection.artifact_root
    if root is None or not root.is_relative_to(workspace.mlruns.resolve()) or not root.is_dir():
        return []
    with speaking(connection.uri, "list artifacts"):
        used = set(_referenced(connection))
    return [folder for folder in _owned_folders(root) if not any(_same_or_below(path, folder) for path in used)]


def _owned_folders(root: Path) -> Iterator[Path]:
    """Folders that belong to one run or one model: ``EXPERIMENT/RUN`` and ``EXPERIMENT/models/MODEL``."""
    for experiment in sorted(path for path in root.iterdir() if path.is_dir()):
        for child in sorted(path for path in experiment.iterdir() if path.is_dir()):
            if child.name == "models":
                yield from sorted(path for path in child.iterdir() if path.is_dir())
            else:
                yield child


def _referenced(connection: Connection) -> Iterator[Path]:
    """Places of the artifacts of every run, LoggedModel and version, those marked as deleted included."""
    for run in runs_everywhere(connection, ""):
        yield local_path(run.info.artifact_uri)
    for experiment in _experiments(connection):
        yield from (local_path(model.artifact_location) for model in models_of(connection, experiment))
    for model_id in connection.store()._get_deleted_logged_models():
        yield Path("/models") / model_id
    for version in _versions(connection):
        yield local_path(connection.client.get_model_version_download_uri(version.name, version.version))


def _same_or_below(path: Path, folder: Path) -> bool:
    """Whether something referenced lies in ``folder``; of a deleted model only the id is known."""
    return path.is_relative_to(folder) or path == Path("/models") / folder.name


def _experiments(connection: Connection) -> list[str]:
    found = pages(lambda token: connection.client.search_experiments(ViewType.ALL, page_token=token))
    return [experiment.experiment_id for experiment in found]


def runs_everywhere(connection: Connection, condition: str) -> Iterator[Run]:
    """Every run that meets the condition, those marked as deleted included."""
    experiments = _experiments(connection)
    if not experiments:
        return iter(())
    search = connection.client.search_runs
    return pages(lambda token: search(experiments, condition, ViewType.ALL, 1000, page_token=token))


def _versions(connection: Connection) -> Iterator[Any]:
    return pages(lambda token: connection.client.search_model_versions(max_results=1000, page_token=token))
