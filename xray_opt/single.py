"""One training run with fixed settings, tracked like a trial but outside any study."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from xray_opt.backbone import load_base
from xray_opt.cache import open_images
from xray_opt.config import Config, Workspace
from xray_opt.dataset import Pseudonyms, prepared, settled
from xray_opt.errors import ConfigError
from xray_opt.experiment import Job, Result, run_experiment
from xray_opt.mlflow_client import connect
from xray_opt.tracking import Tracking
from xray_opt.trainer import Epoch


@dataclass(frozen=True)
class TrainWatcher:
    """What a caller may see of a training run; every part may be left out."""

    say: Callable[[str], None] = lambda line: None
    progress: Callable[[str, int, int], None] = lambda what, done, total: None
    epoch: Callable[[Epoch], None] = lambda epoch: None


def train(
    config: Config,
    workspace: Workspace,
    name: str | None = None,
    keep: Path | None = None,
    watcher: TrainWatcher = TrainWatcher(),
) -> Result:
    """Train once and log it to the MLflow experiment ``train``.

    Args:
        name: name of the run; none makes one from the time.
        keep: folder that gets a copy of the adapter bundle and the base weights it needs.

    Raises:
        XrayError: one line that says what is wrong.
    """
    if keep is not None and keep.exists():
        raise ConfigError(f"{keep} exists already; name a new folder with --out")
    config = replace(config, data=settled(config.data, workspace))
    manifest = prepared(config.data, workspace, lambda done, n: watcher.progress("index", done, n))
    base = load_base(config.model)
    if warning := base.warning():
        watcher.say(warning)
    images = open_images(manifest, config.image.size, workspace, lambda done, n: watcher.progress("decode", done, n))
    tags = {"xray_opt.data_sha256": manifest.sha256, "xray_opt.base_sha256": base.sha256}
    label = name or datetime.now().strftime("train-%Y%m%d-%H%M%S")
    with Tracking.open(connect(config.tracking, workspace), "train", tags, parent=False) as tracking:
        job = Job(config, label, {}, tags, watch=watcher.epoch, say=watcher.say, keep=keep)
        return run_experiment(job, images, base, tracking, Pseudonyms(workspace))
