"""One training run with fixed settings, tracked like a trial but outside any study.

What a kill or Ctrl-C leaves is taken up by the next run of the same name and settings, from its last whole epoch.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shlex
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from xray_opt.backbone import Base, load_base
from xray_opt.cache import open_images
from xray_opt.config import Config, Workspace
from xray_opt.dataset import Manifest, Pseudonyms, prepared, settled
from xray_opt.errors import ConfigError, NotFinite, StoreAway
from xray_opt.experiment import Job, Result, run_experiment
from xray_opt.kept_base import log_base
from xray_opt.mlflow_client import connect
from xray_opt.overlap import overlap_tags, require_apart
from xray_opt.tracking import Tracking, data_tags, films_file
from xray_opt.trainer import Epoch, discard_checkpoint, has_checkpoint

#: MLflow's databases take so many characters of a run's name.
LONGEST_NAME = 250


@dataclass(frozen=True)
class TrainWatcher:
    """What a caller may see of a training run; every part may be left out."""

    say: Callable[[str], None] = lambda line: None
    progress: Callable[[str, int, int], None] = lambda what, done, total: None
    epoch: Callable[[Epoch], None] = lambda epoch: None


@dataclass(frozen=True)
class _Unfinished:
    """Files of a run that is not finished: its checkpoint, and the ids of the MLflow runs that worked on it."""

    checkpoint: Path
    runs: Path

    def add(self, run_id: str) -> None:
        with self.runs.open("a") as file:
            file.write(run_id + "\n")

    def close_lost(self, tracking: Tracking) -> None:
        """End what a killed process left RUNNING; nobody else works on this run, as its name is held."""
        for run_id in self.runs.read_text(errors="replace").split():
            tracking.close_run(run_id)

    def discard(self) -> None:
        discard_checkpoint(self.checkpoint)
        self.runs.unlink(missing_ok=True)


def train(
    config: Config,
    workspace: Workspace,
    name: str | None = None,
    keep: Path | None = None,
    watcher: TrainWatcher = TrainWatcher(),
) -> Result:
    """Train once and log it to the MLflow experiment ``train``; a run of this name that was stopped is resumed.

    Args:
        name: name of the run; none makes one from the time.
        keep: folder that gets a copy of the adapter bundle and the base weights it needs.

    Raises:
        XrayError: one line that says what is wrong.
    """
    if keep is not None and keep.exists():
        raise ConfigError(f"{keep} exists already; name a new folder with --out")
    label = _checked(name) if name is not None else datetime.now().strftime("train-%Y%m%d-%H%M%S-%f")
    config = replace(config, data=settled(config.data, workspace))
    manifest = prepared(config.data, workspace, lambda done, n: watcher.progress("index", done, n))
    base = load_base(config.model)
    if warning := base.warning():
        watcher.say(warning)
    tags = data_tags(manifest) | {"xray_opt.base_sha256": base.sha256}
    tags |= overlap_tags(require_apart(base, manifest, config.model, watcher.say))
    images = open_images(manifest, config.image.size, workspace, lambda done, n: watcher.progress("decode", done, n))
    connection = connect(config.tracking, workspace, excused=(StoreAway,))
    with (
        _held(label, workspace) as unfinished,
        Tracking.open(connection, "train", tags, parent=False, say=watcher.say) as tracking,
    ):
        unfinished.close_lost(tracking)
        watcher.say(f"if this run is stopped, it goes on with --name {shlex.quote(label)} and the same settings")

        def started(run_id: str) -> None:
            unfinished.add(run_id)
            _log_once(run_id, base, manifest, tracking)

        job = Job(
            config,
            label,
            {},
            tags,
            unfinished.checkpoint,
            watch=watcher.epoch,
            started=started,
            say=watcher.say,
            keep=keep,
        )
        try:
            result = run_experiment(job, images, base, tracking, Pseudonyms(workspace))
        except NotFinite:  # it would be so again
            unfinished.discard()
            raise
        unfinished.discard()
        if left := tracking.send_waiting().waiting:
            watcher.say(f"{left} writes wait for MLflow at {connection.shown}: run xray-opt sync")
        return result


def _log_once(run_id: str, base: Base, manifest: Manifest, tracking: Tracking) -> None:
    """What a run keeps that has no study to keep it: base weights, and the keys of its test films."""
    log_base(base, lambda path, folder: tracking.log_run_file(run_id, path, folder))
    with tempfile.TemporaryDirectory(prefix="xray-opt-") as folder:
        tracking.log_run_file(run_id, films_file(manifest, Path(folder)), "data")


def _checked(name: str) -> str:
    if not name.strip() or not name.isprintable() or len(name) > LONGEST_NAME:
        raise ConfigError(f"--name must be 1 to {LONGEST_NAME} printable characters, not {name[:60]!r}")
    return name


@contextmanager
def _held(name: str, workspace: Workspace) -> Iterator[_Unfinished]:
    """The files of the run of this name, held by this process alone; the hold dies with the process."""
    folder = workspace.unfinished_runs
    stem = hashlib.sha256(name.encode()).hexdigest()[:16]
    runs = folder / f"{stem}.runs"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = runs.open("a")
    except OSError as error:
        raise ConfigError(f"cannot write to {folder}: {error.strerror}; check free space and permissions") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its last holder may have finished, and removed the file, just before.
            held = runs.exists() and os.path.samestat(runs.stat(), os.fstat(lock.fileno()))
        except BlockingIOError:
            held = False
        if not held:
            raise ConfigError(f"a run named {name!r} is at work here already; give another --name")
        unfinished = _Unfinished(folder / f"{stem}.pt", runs)
        try:
            yield unfinished
        finally:
            if not has_checkpoint(unfinished.checkpoint):  # nothing to go on from
                unfinished.discard()
