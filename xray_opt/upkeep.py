"""Deletes a whole study, and collects what nobody refers to: checkpoints, caches, runs, artifacts."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from xray_opt.config import TrackingConfig, Workspace
from xray_opt.dataset import Manifest
from xray_opt.errors import DataError, TrackingError, XrayError
from xray_opt.mlflow_client import Connection, connect
from xray_opt.places import Place, known_storages, state_marks
from xray_opt.settling import writes_waiting
from xray_opt.tracking import delete_run, orphan_runs, study_runs, unreferenced_artifacts
from xray_opt.tuning import (
    IDENTITY,
    StudyRecord,
    checkpoint_name,
    delete_study,
    list_studies,
    read_study,
    require_idle,
    storage_digest,
    storage_url,
)

#: Digest of a storage → its studies.
Studies = Mapping[str, list[StudyRecord]]


@dataclass(frozen=True)
class Garbage:
    """One thing that nobody refers to, with its size on disk."""

    what: str
    name: str
    bytes: int
    remove: Callable[[], None] = field(repr=False)


def delete_whole_study(place: Place, workspace: Workspace, force: bool = False) -> dict[str, int]:
    """Delete a study: MLflow runs first, so that a kill leaves a study that can be deleted again.

    Args:
        force: also where a worker is at work on it.

    Raises:
        StudyError: no such study, or a worker is at work on it.
        TrackingError: writes of it wait for MLflow, or MLflow does not answer.
    """
    name = str(place.study)
    identity = read_study(name, workspace, place.storage).notes.get(IDENTITY)
    if not force:
        require_idle(name, workspace, place.storage)
    if identity and writes_waiting(workspace, str(identity)):
        raise TrackingError(f"writes of study {name} wait, and would make its runs anew: run xray-opt sync first")
    connection = connect(place.tracking(workspace), workspace)
    runs = study_runs(connection, identity) if identity else []
    for run_id in runs:
        delete_run(connection, run_id)
    folder = workspace.study_folder(name)
    marks = state_marks(folder)  # a folder without any may belong to a study of that name elsewhere
    if marks and marks <= {storage_digest(storage_url(workspace, place.storage))}:
        shutil.rmtree(folder, ignore_errors=True)
    delete_study(name, workspace, place.storage, force)
    return {"runs": len(runs)}


def collect_garbage(
    workspace: Workspace,
    dry_run: bool = False,
    storages: Sequence[str] = (),
    uri: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> list[Garbage]:
    """Remove (or only list) what nothing refers to; returns it. Registered models are always kept.

    Args:
        storages: Optuna storages to look into besides those that the workspace knows.
        uri: tracking URI of MLflow.
        say: told what is left alone because its study may be in a storage that cannot be read now.
    """
    studies = _studies(workspace, storages, say)
    connection = connect(TrackingConfig(uri=uri), workspace)
    found = [
        *_states(workspace, studies, say),
        *_checkpoints(workspace, studies),
        *_caches(workspace),
        *_runs(connection, studies, say),
        *_artifacts(connection, workspace),
    ]
    if not dry_run:
        for item in found:
            item.remove()
    return found


def _studies(workspace: Workspace, storages: Sequence[str], say: Callable[[str], None]) -> Studies:
    """Digest → studies of every storage that can be read; one that the caller named must be readable."""
    studies = {storage_digest(url): list_studies(workspace, url) for url in storages}
    for digest, url in known_storages(workspace).items():
        try:
            if digest not in studies:
                studies[digest] = list_studies(workspace, url)
        except XrayError as error:
            say(f"left alone what belongs to a storage that cannot be read: {error}")
    return studies


def _states(workspace: Workspace, studies: Studies, say: Callable[[str], None]) -> Iterator[Garbage]:
    folder = workspace.study_folder("any").parent
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        marks = state_marks(path)
        if not marks or not marks <= set(studies):
            say(f"left alone: {path}: its study may be in another storage; name that with --storage URL")
        elif not any(study.name == path.name for digest in marks for study in studies[digest]):
            yield _folder("state of a deleted study", path)


def _checkpoints(workspace: Workspace, studies: Studies) -> Iterator[Garbage]:
    """Checkpoints of trials that are over and that no waiting or running trial of any storage resumes."""
    for name in sorted({study.name for held in studies.values() for study in held}):
        folder = workspace.study_folder(name)
        marks = state_marks(folder)
        if not marks or not marks <= set(studies):
            continue
        named = [study for held in studies.values() for study in held if study.name == name]
        wanted = {checkpoint_name(one.notes.get(IDENTITY), number) for one in named for number in one.resumable()}
        kept = folder / "checkpoints"
        for path in sorted(kept.iterdir()) if kept.is_dir() else ():
            if path.name.split(".")[0] not in wanted:
                yield Garbage("checkpoint", str(path), path.stat().st_size, path.unlink)


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


def _runs(connection: Connection, studies: Studies, say: Callable[[str], None]) -> Iterator[Garbage]:
    known = {digest: {str(study.notes.get(IDENTITY)) for study in held} for digest, held in studies.items()}
    orphans, unknown = orphan_runs(connection, known)
    if unknown:
        count = f"{len(unknown)} MLflow run{'s' * (len(unknown) > 1)}"
        say(f"left alone: {count} of studies in a storage that is not read here; name it with --storage URL")
    for run_id in orphans:
        yield Garbage("run", run_id, 0, lambda run_id=run_id: delete_run(connection, run_id))  # type: ignore[misc]


def _artifacts(connection: Connection, workspace: Workspace) -> Iterator[Garbage]:
    for path in unreferenced_artifacts(connection, workspace):
        yield _folder("artifacts", path)


def _folder(what: str, path: Path) -> Garbage:
    return Garbage(what, str(path), _size(path), lambda: shutil.rmtree(path))


def _size(path: Path) -> int:
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return sum(file.stat().st_size for file in files)
