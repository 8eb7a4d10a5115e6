"""Deletes a whole study, and collects what nobody refers to: checkpoints, caches, runs, artifacts."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from xray_opt.config import TrackingConfig, Workspace
from xray_opt.dataset import Manifest
from xray_opt.errors import DataError
from xray_opt.mlflow_client import Connection, connect
from xray_opt.tracking import delete_run, orphan_runs, study_runs, unreferenced_artifacts
from xray_opt.tuning import RESUMABLE, StudyRecord, delete_study, list_studies


@dataclass(frozen=True)
class Garbage:
    """One thing that nobody refers to, with its size on disk."""

    what: str
    name: str
    bytes: int
    remove: Callable[[], None] = field(repr=False)


def delete_whole_study(name: str, workspace: Workspace) -> dict[str, int]:
    """Delete a study: MLflow runs first, so that a kill leaves a study that can be deleted again.

    Raises:
        StudyError: no such study.
    """
    connection = connect(TrackingConfig(), workspace)
    runs = study_runs(connection, name)
    for run_id in runs:
        delete_run(connection, run_id)
    shutil.rmtree(workspace.study_folder(name), ignore_errors=True)
    delete_study(name, workspace)
    return {"runs": len(runs)}


def collect_garbage(workspace: Workspace, dry_run: bool = False) -> list[Garbage]:
    """Remove (or only list) what nothing refers to; returns it. Registered models are always kept."""
    studies = list_studies(workspace)
    connection = connect(TrackingConfig(), workspace)
    found = [
        *_states(workspace, {study.name for study in studies}),
        *_checkpoints(workspace, studies),
        *_caches(workspace),
        *_runs(connection, {study.name for study in studies}),
        *_artifacts(connection, workspace),
    ]
    if not dry_run:
        for item in found:
            item.remove()
    return found


def _states(workspace: Workspace, known: set[str]) -> Iterator[Garbage]:
    folder = workspace.study_folder("any").parent
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name not in known:
            yield _folder("state of a deleted study", path)


def _checkpoints(workspace: Workspace, studies: list[StudyRecord]) -> Iterator[Garbage]:
    """Checkpoints of trials that are over and that no waiting or running trial resumes."""
    for study in studies:
        folder = workspace.study_folder(study.name) / "checkpoints"
        wanted = {f"trial-{number:05d}" for number in _resumable(study)}
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if path.name.split(".")[0] not in wanted:
                yield Garbage("checkpoint", str(path), path.stat().st_size, path.unlink)


def _resumable(study: StudyRecord) -> Iterator[int]:
    """Numbers of trials whose checkpoint is or may still be needed."""
    over = {"COMPLETE", "PRUNED"}
    done = {trial.notes.get("retry_of") for trial in study.trials if trial.state in over}
    for trial in study.trials:
        lost = trial.state == "FAIL" and trial.reason in RESUMABLE and trial.number not in done
        if lost or trial.state in ("RUNNING", "WAITING"):
            yield trial.number


def _caches(workspace: Workspace) -> Iterator[Garbage]:
    """Decoded caches whose manifest is not kept here any more."""
    known = set()
    for path in workspace.manifests.glob("*.csv"):
        try:
            known.add(Manifest.load(path).sha256[:16])
        except DataError:
            continue
    for path in sorted(workspace.caches.iterdir()) if workspace.caches.is_dir() else ():
        if not any(path.name.startswith(digest) for digest in known):
            yield _folder("cache", path) if path.is_dir() else Garbage("cache", str(path), _size(path), path.unlink)


def _runs(connection: Connection, known: set[str]) -> Iterator[Garbage]:
    for run_id in orphan_runs(connection, known):
        yield Garbage("run", run_id, 0, lambda run_id=run_id: delete_run(connection, run_id))  # type: ignore[misc]


def _artifacts(connection: Connection, workspace: Workspace) -> Iterator[Garbage]:
    for path in unreferenced_artifacts(connection, workspace):
        yield _folder("artifacts", path)


def _folder(what: str, path: Path) -> Garbage:
    return Garbage(what, str(path), _size(path), lambda: shutil.rmtree(path))


def _size(path: Path) -> int:
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return sum(file.stat().st_size for file in files)
