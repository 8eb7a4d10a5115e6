"""What MLflow has of a run that is to be reproduced: settings, digests, versions, every epoch's values."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from xray_opt.config import Config, flatten, override, read_value
from xray_opt.errors import ConfigError, brief
from xray_opt.experiment import ADAPTER_ARTIFACT
from xray_opt.mlflow_client import Connection, speaking

#: Values of an epoch that follow from settings, films and seed; speeds do not.
EPOCH = ("train.", "val.", "learning_rate")
BEST = "best."


@dataclass(frozen=True)
class Recording:
    """A run as recorded.

    Attributes:
        state: ``FINISHED``, ``KILLED`` (pruned) or ``FAILED``.
        config: its settings; where MLflow keeps it is left out.
        added: settings that are new since, and stand at their default.
        epochs: number → value by name.
        best: scores of the saved adapter; empty where the run was not finished.
        files: name → SHA-256 of the adapter's files.
    """

    run_id: str
    name: str
    state: str
    tags: Mapping[str, str]
    config: Config
    added: tuple[str, ...]
    epochs: Mapping[int, Mapping[str, float]]
    best: Mapping[str, float]
    files: Mapping[str, str]

    @property
    def last(self) -> int:
        """Number of the last recorded epoch."""
        return max(self.epochs)

    @property
    def finished(self) -> bool:
        """Whether the training came to its own end."""
        return self.state == "FINISHED"


def read_recording(connection: Connection, run: str) -> Recording:
    """The recording of ``run``, an id or ``runs:/ID``.

    Raises:
        ConfigError: it is no run of a training, still at work, without an epoch, or of settings that are not known.
        TrackingError: there is no such run.
    """
    match = re.fullmatch(r"(?:runs:/)?([0-9a-f]{32})/?", run)
    if match is None:
        raise ConfigError(f"{brief(run)} is no run: give the id of an MLflow run, or runs:/ID")
    with speaking(connection.uri, f"read the run {match[1]}"):
        found = connection.client.get_run(match[1])
        names = [name for name in found.data.metrics if name.startswith(EPOCH)]
        points = [point for name in names for point in connection.client.get_metric_history(match[1], name)]
    if "training.seed" not in found.data.params:
        raise ConfigError(f"run {match[1]} is of no training: give the run of a trial, of a retraining or of train")
    if found.info.status == "RUNNING":
        raise ConfigError(f"run {match[1]} is still at work; wait for its end")
    epochs: dict[int, dict[str, float]] = {}
    for point in points:
        epochs.setdefault(point.step, {})[point.key] = point.value
    if not epochs:
        reason = found.data.tags.get("reason", found.info.status.lower())
        raise ConfigError(f"run {match[1]} has no epoch to reproduce: it ended ({reason}) in its first one")
    config, added = _config(match[1], found.data.params)
    done = found.info.status == "FINISHED"
    best = {name: value for name, value in found.data.metrics.items() if name.startswith(BEST)} if done else {}
    files = _files(connection, match[1]) if done else {}
    name, state = found.info.run_name, found.info.status
    return Recording(match[1], name, state, found.data.tags, config, added, dict(sorted(epochs.items())), best, files)


def _config(run: str, params: Mapping[str, str]) -> tuple[Config, tuple[str, ...]]:
    known = flatten(Config())
    ours = {name: text for name, text in params.items() if not name.startswith("tracking.")}
    if strangers := sorted(ours.keys() - known.keys()):
        raise ConfigError(
            f"run {run} has the setting {brief(strangers[0])}, which this version of xray-opt does not know: "
            "reproduce it with the version that its tag xray_opt.version names"
        )
    config = override(Config(), {name: read_value(name, text) for name, text in ours.items()})
    added = (name for name in known if name not in params and not name.startswith("tracking."))
    return config, tuple(added)


def _files(connection: Connection, run_id: str) -> dict[str, str]:
    """Digests of the adapter's files, as its record names them."""
    with (
        tempfile.TemporaryDirectory(prefix="xray-opt-") as folder,
        speaking(connection.uri, f"fetch the adapter's record of the run {run_id}"),
    ):
        path = connection.client.download_artifacts(run_id, f"{ADAPTER_ARTIFACT}/bundle.json", folder)
        return dict(json.loads(Path(path).read_text(encoding="utf-8"))["files"])
