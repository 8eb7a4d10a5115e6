"""One run in MLflow as a context manager: how the block ends decides the run's state."""

from __future__ import annotations

import csv
import io
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from mlflow.entities import DatasetInput, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from numpy.typing import ArrayLike

from xray_opt.config import Config, as_text, flatten, redacted
from xray_opt.dataset import Pseudonyms
from xray_opt.errors import Pruned, StudyError, TrackingError, TrainingError
from xray_opt.mlflow_client import MISSING, Connection, speaking, without_credentials
from xray_opt.system_metrics import SystemSampler
from xray_opt.tracking.environment import environment_tags, machine_tags
from xray_opt.trainer import Epoch

log = logging.getLogger(__name__)

#: Settings that may name places on this machine or hold a password; they are cut short in what is logged.
PLACES = ("data.root", "model.base")
LONGEST_TAG = 500
#: Artifacts of a run: the probabilities of the validation films, and of the test films once ``finalize`` opened them.
PREDICTIONS, TEST_PREDICTIONS = "val_predictions.csv", "test_predictions.csv"
#: Tag: how often the test split was opened for a run, or for any run of a study.
OPENINGS = "xray_opt.test_openings"


@dataclass(frozen=True)
class Ending:
    """State and tags of a run that is over."""

    status: str
    tags: dict[str, str]


@dataclass(frozen=True)
class RunPlan:
    """What a run is started with."""

    experiment_id: str
    name: str
    config: Config
    params: Mapping[str, object]
    tags: Mapping[str, str]
    parent_id: str | None
    datasets: Sequence[DatasetInput]


class Run:
    """A run that is RUNNING inside the ``with`` block and ends in the state that the block's end calls for.

    ======================  ========  ================================
    the block ends by       state     tags
    ======================  ========  ================================
    its end                 FINISHED
    ``Pruned``              KILLED    ``pruned_epoch``
    ``TrainingError``       FAILED    ``reason`` = its reason, ``error``
    ``KeyboardInterrupt``   FAILED    ``reason`` = interrupted
    a store is away         FAILED    ``reason`` = interrupted, ``error``
    anything else           FAILED    ``reason`` = error, ``error``
    ======================  ========  ================================

    The exception passes on. A killed process leaves RUNNING behind; :func:`close_lost` ends that.

    Attributes:
        id: the run's id in MLflow.
    """

    def __init__(self, connection: Connection, plan: RunPlan) -> None:
        self._connection = connection
        self._client = connection.client
        self._plan = plan
        self.id = ""

    def __enter__(self) -> Self:
        plan = self._plan
        tags = environment_tags() | {"xray_opt.role": "trial" if plan.parent_id else "run"} | dict(plan.tags)
        tags |= {"xray_opt.seed": str(plan.config.training.seed)} | machine_tags(plan.config.training.device)
        if plan.parent_id:
            tags["mlflow.parentRunId"] = plan.parent_id
        if plan.params:
            tags["xray_opt.searched"] = ", ".join(sorted(plan.params))
        params = [Param(key, value) for key, value in settings_as_text(plan.config, self._connection.local).items()]
        with speaking(self._connection.uri, f"start the run {plan.name}"):
            self.id = self._client.create_run(plan.experiment_id, tags=tags, run_name=plan.name).info.run_id
        self._sampler = SystemSampler(self._log_system, plan.config.tracking.system_interval)
        try:
            with speaking(self._connection.uri, f"start the run {plan.name}"):
                self._client.log_batch(self.id, params=params)
                if plan.datasets:
                    self._client.log_inputs(self.id, list(plan.datasets))
            self._sampler.start()
        except BaseException as error:  # Ctrl-C too: no ``with`` block ends this run yet
            self.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._sampler.stop()
        end = ending(error, self._connection.local)
        try:
            close(self._connection, self.id, end)
        except TrackingError as lost:
            if error is None:
                raise
            # What went wrong first is what the caller must see.
            log.warning("the run %s stays RUNNING in MLflow: %s", self.id, lost)

    def log_epoch(self, epoch: Epoch) -> None:
        """Log one epoch's values under its number, in one request."""
        values = {
            "train.loss": epoch.train_loss,
            "val.loss": epoch.val_loss,
            **{f"val.{name}": value for name, value in asdict(epoch.val).items()},
            "learning_rate": epoch.learning_rate,
            "images_per_second": epoch.images_per_second,
        }
        self.log_metrics(values, epoch.number)

    def log_metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Log metrics in one request, at ``step`` (none means 0)."""
        log_run_metrics(self._connection, self.id, values, step or 0)

    def tag(self, key: str, value: str) -> None:
        """Set a tag."""
        tag_run(self._connection, self.id, key, value)

    def log_file(self, path: Path, folder: str | None = None) -> None:
        """Store a file among the run's artifacts, in ``folder`` of them."""
        log_run_file(self._connection, self.id, path, folder)

    def log_folder(self, path: Path, folder: str | None = None) -> None:
        """Store the contents of a folder among the run's artifacts, in ``folder`` of them."""
        with speaking(self._connection.uri, f"store {path.name}"):
            self._client.log_artifacts(self.id, str(path), folder)

    def log_predictions(
        self, paths: Sequence[str], labels: ArrayLike, probabilities: ArrayLike, pseudonyms: Pseudonyms
    ) -> None:
        """Store ``val_predictions.csv``; see :func:`log_run_predictions`."""
        log_run_predictions(self._connection, self.id, PREDICTIONS, paths, labels, probabilities, pseudonyms)

    def _log_system(self, sample: dict[str, float], index: int) -> None:
        log_run_metrics(self._connection, self.id, sample, index)


def settings_as_text(config: Config, local: bool) -> dict[str, str]:
    """Every setting under its dotted name; a remote store gets file names instead of paths, and no store a password."""
    values = {}
    for name, value in flatten(config).items():
        text = without_credentials(as_text(value)) if name == "tracking.uri" else as_text(value)
        values[name] = Path(text).name if name in PLACES and not local else text
    return values


def ending(error: BaseException | None, local: bool) -> Ending:
    """State and tags that belong to the exception (none: a clean end) that ended a run.

    The error's words may name films, so only its kind is told to a remote store.
    """
    if error is None:
        return Ending("FINISHED", {})
    if isinstance(error, Pruned):
        return Ending("KILLED", {"pruned_epoch": str(error.epoch)})
    if isinstance(error, KeyboardInterrupt):
        return Ending("FAILED", {"reason": "interrupted"})
    reason = error.reason if isinstance(error, TrainingError) else "error"
    if isinstance(error, StudyError | TrackingError):  # a store is away: the trial is resumed
        reason = "interrupted"
    words = redacted(f"{type(error).__name__}: {error}") if local else type(error).__name__
    return Ending("FAILED", {"reason": reason, "error": " ".join(words.split())[:LONGEST_TAG]})


def close(connection: Connection, run_id: str, end: Ending) -> None:
    """End a run in a state, its tags first."""
    with speaking(connection.uri, f"end the run {run_id}"):
        connection.client.log_batch(run_id, tags=[RunTag(key, value) for key, value in end.tags.items()])
        connection.client.set_terminated(run_id, end.status)


def close_lost(connection: Connection, run_id: str, reason: str = "worker-lost") -> None:
    """Make the run of a failed trial FAILED, whatever state it was left in; one that is FAILED keeps its reason.

    A worker that dies after its run ended but before its trial did leaves FINISHED behind: the trial has failed, so
    the run has. A run that is gone is no error.
    """
    with speaking(connection.uri, f"end the lost run {run_id}"):
        try:
            info = connection.client.get_run(run_id).info
        except MlflowException as error:
            if error.error_code == MISSING:
                return
            raise
        if info.status != "FAILED" and info.lifecycle_stage == "active":
            close(connection, run_id, Ending("FAILED", {"reason": reason}))


def tag_run(connection: Connection, run_id: str, key: str, value: str) -> None:
    """Set a tag of any run."""
    with speaking(connection.uri, f"tag the run {run_id}"):
        connection.client.set_tag(run_id, key, value)


def tag_opening(connection: Connection, run_id: str, line: str, counts: tuple[int, int] | None) -> None:
    """Tag a run, and the study's run above it, with an opening of the test split and how many there were by now.

    Args:
        counts: openings for this run, and for all of its study; none where no study counts them, so the tag does.
    """
    with speaking(connection.uri, f"note the opening of the test split at the run {run_id}"):
        parent = connection.client.get_run(run_id).data.tags.get("mlflow.parentRunId")
        for one, count in zip((run_id, parent), counts or (None, None), strict=True):
            if one is None:
                continue
            if count is None:
                count = int(connection.client.get_run(one).data.tags.get(OPENINGS, "0")) + 1
            connection.client.set_tag(one, "xray_opt.test_opened", line[:LONGEST_TAG])
            connection.client.set_tag(one, OPENINGS, str(count))


def log_run_predictions(
    connection: Connection,
    run_id: str,
    name: str,
    paths: Sequence[str],
    labels: ArrayLike,
    probabilities: ArrayLike,
    pseudonyms: Pseudonyms,
) -> None:
    """Store the artifact ``name`` of any run (film, label, probability); films have pseudonyms unless the store is
    local."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["film", "label", "probability"])
    for path, label, probability in zip(paths, np.asarray(labels), np.asarray(probabilities), strict=True):
        film = path if connection.local else pseudonyms.film(path)
        writer.writerow([film, int(label), repr(float(probability))])
    with speaking(connection.uri, f"store {name}"):
        connection.client.log_text(run_id, text.getvalue(), name)


def log_run_file(connection: Connection, run_id: str, path: Path, folder: str | None = None) -> None:
    """Store a file among the artifacts of any run, in ``folder`` of them."""
    with speaking(connection.uri, f"store {path.name}"):
        connection.client.log_artifact(run_id, str(path), folder)


def log_run_metrics(connection: Connection, run_id: str, values: Mapping[str, float], step: int = 0) -> None:
    """Log metrics of any run in one request."""
    now = int(time.time() * 1000)
    metrics = [Metric(key, float(value), now, step) for key, value in values.items()]
    with speaking(connection.uri, f"log metrics of the run {run_id}"):
        connection.client.log_batch(run_id, metrics=metrics)
