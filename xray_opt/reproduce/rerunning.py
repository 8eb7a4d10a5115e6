"""Trains a recorded run anew: the same films, base weights, settings, seed and number of threads, all checked first."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from xray_opt.adapter import read_bundle
from xray_opt.backbone import Base, load_base, read_base
from xray_opt.cache import open_images
from xray_opt.config import Workspace
from xray_opt.confirm.confirming import APART, WHICH
from xray_opt.dataset import Manifest, prepare, redrawn
from xray_opt.errors import ConfigError, DataError, ModelError, TrackingError, shortened
from xray_opt.experiment import save_best
from xray_opt.kept_base import kept_path
from xray_opt.mlflow_client import PARENT_RUN, Connection, connect, speaking
from xray_opt.places import Place
from xray_opt.registry import BASE
from xray_opt.reproduce.comparing import Judge, Reproduction, reproduction
from xray_opt.reproduce.recording import Recording, read_recording
from xray_opt.tracking import MANIFEST, environment_tags, machine_tags, study_manifest
from xray_opt.trainer import Epoch, Trainer

#: Tags that tell with what a run was computed.
COMPUTED_WITH = (
    *("version.", "xray_opt.version", "mlflow.source.git"),
    *("xray_opt.cpu", "xray_opt.threads", "xray_opt.device", "xray_opt.git_changed"),
)
THREADS = "xray_opt.threads"


@dataclass(frozen=True)
class RerunWatcher:
    """What a caller may see of a rerun; every part may be left out. ``epoch`` is told how many were recorded."""

    say: Callable[[str], None] = lambda line: None
    progress: Callable[[str, int, int], None] = lambda what, done, total: None
    epoch: Callable[[Epoch, int], None] = lambda epoch, recorded: None


def reproduce(
    run: str,
    workspace: Workspace,
    data: str | None = None,
    weights: Path | None = None,
    tolerance: float = 0.01,
    device: str | None = None,
    place: Place = Place(),
    watcher: RerunWatcher = RerunWatcher(),
) -> Reproduction:
    """Train ``run`` anew and compare every recorded value; nothing is written to MLflow or the study.

    A run that was pruned or failed is trained as far as it has epochs.

    Args:
        run: id of an MLflow run, or ``runs:/ID``.
        data: where the films lie now.
        weights: file of the base weights, where neither MLflow nor this workspace has them.
        tolerance: how far a value may be off, where it is not equal.
        device: another one than the recorded.

    Raises:
        ConfigError: there is nothing to reproduce.
        DataError: the films are not those of the run.
        ModelError: the base weights cannot be had.
        TrackingError: no such run.
    """
    connection = connect(place.tracking(workspace), workspace)
    recording = read_recording(connection, run)
    if device is not None:
        training = replace(recording.config.training, device=device)
        recording = replace(recording, config=replace(recording.config, training=training))
    manifest = _manifest(recording, connection, data, watcher)
    base = _base(recording, connection, workspace, weights)
    size = recording.config.image.size
    images = open_images(manifest, size, workspace, lambda done, n: watcher.progress("decode", done, n))
    if recording.added:
        watcher.say(f"not recorded, so at their defaults: {', '.join(recording.added)}")
    judge = Judge(recording, tolerance)
    with _threads(recording.tags.get(THREADS)):
        environment = _environment(recording)
        trainer = Trainer(recording.config, images, base, say=watcher.say)
        for epoch in trainer.epochs():
            watcher.epoch(epoch, recording.last)
            judge.epoch(epoch.number, epoch_values(epoch))
            if judge.beyond or (epoch.number >= recording.last and not recording.finished):
                break
        else:
            if recording.finished:
                with tempfile.TemporaryDirectory(prefix="xray-opt-") as folder:
                    saved = save_best(trainer, recording.config, images, base, Path(folder))
                    judge.end(saved.metrics(), read_bundle(saved.folder).files)
    return reproduction(judge, environment)


def epoch_values(epoch: Epoch) -> dict[str, float]:
    """What a run logs of an epoch and what follows from its settings, by the names that MLflow has."""
    values = {"train.loss": epoch.train_loss, "val.loss": epoch.val_loss, "learning_rate": epoch.learning_rate}
    return values | {f"val.{name}": value for name, value in asdict(epoch.val).items()}


def _environment(recording: Recording) -> tuple[tuple[str, str, str], ...]:
    """What differs between the recording and here."""
    here = environment_tags() | machine_tags(recording.config.training.device)

    def told(tags: Mapping[str, str]) -> dict[str, str]:
        return {name: text for name, text in tags.items() if name.startswith(COMPUTED_WITH)}

    before, now = told(recording.tags), told(here)
    names = sorted(before.keys() | now.keys())
    missing = "not recorded"
    return tuple(
        (name, before.get(name, missing), now.get(name, "none")) for name in names if before.get(name) != now.get(name)
    )


@contextmanager
def _threads(recorded: str | None) -> Iterator[None]:
    """As many threads as the run had: sums are split over them, so their number is in the last bits."""
    before = torch.get_num_threads()
    if recorded is not None and recorded.isdecimal() and 0 < int(recorded) <= 1024:
        torch.set_num_threads(int(recorded))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _manifest(recording: Recording, connection: Connection, data: str | None, watcher: RerunWatcher) -> Manifest:
    """The films of the run, every one of them read again.

    Raises:
        DataError: they are others; the first one is named where the run's own list is to be had.
    """
    root = data or recording.config.data.root
    if root is None or not os.path.exists(root):
        raise DataError(f"the films of run {recording.run_id} are not at {root}: name their place with --data PATH")
    own = replace(recording.config.data, root=root)
    found = prepare(own, lambda done, n: watcher.progress("index", done, n))
    which = recording.tags.get(WHICH, "")
    if which.startswith("split-"):  # of a confirmation
        found = redrawn(found, own.seed + int(which.removeprefix("split-")) + APART)
    wanted = recording.tags.get(MANIFEST)
    if wanted is None:
        raise ConfigError(f"run {recording.run_id} does not say on which films it was trained")
    if found.sha256 != wanted:
        other = _first_other(recording, connection, found)
        raise DataError(f"these are not the films of run {recording.run_id}: {other}")
    return found


def _first_other(recording: Recording, connection: Connection, found: Manifest) -> str:
    """The first film that is not as the run had it."""
    wanted = str(recording.tags.get(MANIFEST))
    kept = _kept_manifest(recording, connection)
    if kept is None:
        return f"their split has the digest {found.sha256[:12]}, the run's {wanted[:12]}"
    before, now = ({film.path: film for film in one.films} for one in (kept, found))
    for path in sorted(before.keys() | now.keys()):
        old, new, shown = before.get(path), now.get(path), shortened(path)
        if old is None or new is None:
            return f"{shown} {'is new' if old is None else 'is missing'}"
        if old != new:
            fields = [name for name, value in asdict(old).items() if asdict(new)[name] != value]
            return f"{shown} was changed ({', '.join(fields)})"
    return "another split"


def _kept_manifest(recording: Recording, connection: Connection) -> Manifest | None:
    wanted = recording.tags.get(MANIFEST)
    paths = list(connection.workspace.manifests.glob("*.csv"))
    with tempfile.TemporaryDirectory(prefix="xray-opt-") as folder:
        with suppress(TrackingError):
            if (kept := study_manifest(connection, recording.run_id, Path(folder))) is not None:
                paths.append(kept)
        for path in paths:
            with suppress(DataError):
                manifest = Manifest.load(path)
                if manifest.sha256 == wanted:
                    return manifest
    return None


def _base(recording: Recording, connection: Connection, workspace: Workspace, weights: Path | None) -> Base:
    """The base weights of the run: by their digest, from wherever they are.

    Raises:
        ModelError: nowhere, or ``weights`` are others.
    """
    wanted = recording.tags.get("xray_opt.base_sha256", "")
    if weights is not None:
        given = read_base(weights)
        if given.sha256 != wanted:
            raise ModelError(
                f"{weights} has the digest {given.sha256[:12]}; run {recording.run_id} was trained on {wanted[:12]}"
            )
        return given
    model = recording.config.model
    with tempfile.TemporaryDirectory(prefix="xray-opt-") as folder:
        sources: tuple[Callable[[], Base], ...] = (
            lambda: read_base(kept_path(recording.tags["xray_opt.study"], workspace, wanted)),
            lambda: load_base(model),
            lambda: read_base(_stored_base(recording, connection, folder)),
        )
        for source in sources:
            with suppress(ModelError, TrackingError, KeyError):
                base = source()
                if base.sha256 == wanted:
                    return base
    raise ModelError(
        f"the base weights of run {recording.run_id} ({wanted[:12]}, model.base {shortened(model.base)}) are neither "
        "in MLflow nor here: name their file with --weights PATH"
    )


def _stored_base(recording: Recording, connection: Connection, folder: str) -> Path:
    keeper = recording.tags.get(PARENT_RUN, recording.run_id)
    with speaking(connection.uri, f"fetch the base weights of run {keeper}"):
        return Path(connection.client.download_artifacts(keeper, BASE, folder))
