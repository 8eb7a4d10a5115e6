"""One run in MLflow as a context manager: how the block ends decides the run's state."""

from __future__ import annotations

import csv
import io
import json
import logging
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from mlflow.entities import DatasetInput, Metric
from numpy.typing import ArrayLike

from xray_opt.config import Config, as_text, flatten
from xray_opt.dataset import Pseudonyms
from xray_opt.errors import DiskFault
from xray_opt.mlflow_client import PARENT_RUN, Connection, speaking, storable, without_credentials
from xray_opt.system_metrics import SystemSampler
from xray_opt.tracking.checkpoints import Uploads
from xray_opt.tracking.ending import LONGEST_TAG, ending
from xray_opt.tracking.environment import environment_tags, machine_tags
from xray_opt.tracking.experiments import ROLE
from xray_opt.tracking.outbox import Outbox
from xray_opt.tracking.sending import WAITING, as_file, end_content, files_below, now, plain_input, points
from xray_opt.trainer import Epoch

log = logging.getLogger(__name__)

#: Settings that may name places on this machine or hold a password; they are cut short in what is logged.
PLACES = ("data.root", "model.base")
#: Artifacts of a run: the probabilities of the validation films, and of the test films once ``finalize`` opened them.
PREDICTIONS, TEST_PREDICTIONS = "val_predictions.csv", "test_predictions.csv"
#: Tag: how often the test split was opened for a run, or for any run of a study.
OPENINGS = "xray_opt.test_openings"


@dataclass(frozen=True)
class RunPlan:
    """What a run is started with."""

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
    a store or disk away    FAILED    ``reason`` = interrupted, ``error``
    ``DeviceFault``         FAILED    ``reason`` = worker-lost, ``error``
    anything else           FAILED    ``reason`` = error, ``error``
    ======================  ========  ================================

    The exception passes on. A killed process leaves RUNNING behind; :func:`close_lost` ends that. MLflow may be away
    all the time: see ``outbox``.

    Raises:
        DiskFault: from every method, where MLflow is away and nothing can be kept for it.
    """

    def __init__(self, connection: Connection, outbox: Outbox, plan: RunPlan) -> None:
        self._local = connection.local
        self._outbox = outbox
        self._plan = plan
        self._checkpoints = Uploads(self._write, outbox.say)
        self._name = WAITING + uuid.uuid4().hex

    @property
    def id(self) -> str:
        """The run's id in MLflow; a name of its own (``sending.WAITING``) while it waits to be made."""
        return self._outbox.sender.id_of(self._name) or self._name

    def __enter__(self) -> Self:
        plan = self._plan
        tags = environment_tags() | {ROLE: "trial" if plan.parent_id else "run"} | dict(plan.tags)
        tags |= {"xray_opt.seed": str(plan.config.training.seed)} | machine_tags(plan.config.training.device)
        if plan.parent_id:
            tags[PARENT_RUN] = plan.parent_id
        if plan.params:
            tags["xray_opt.searched"] = ", ".join(sorted(plan.params))
        self._write("create", {"name": plan.name, "tags": tags, "started": now()})
        self._sampler = SystemSampler(self._log_system, plan.config.tracking.system_interval)
        try:
            self._write("batch", {"params": settings_as_text(plan.config, self._local)})
            if plan.datasets:
                self._write("inputs", {"datasets": [plain_input(item) for item in plan.datasets]})
            self._sampler.start()
        except BaseException as error:  # Ctrl-C too: no ``with`` block ends this run yet
            self.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._sampler.stop()
        if isinstance(error, KeyboardInterrupt):
            self._outbox.hurry()
        end = ending(error, self._local)
        try:
            self._write("end", end_content(end))
        except DiskFault as lost:
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

    def keep_checkpoint(self, path: Path, epoch: int) -> None:
        """Keep the checkpoint of an epoch among the artifacts; see ``checkpoints``."""
        self._checkpoints.add(path, epoch)

    def log_metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Log metrics in one request, at ``step`` (none means 0)."""
        self._write("batch", {"metrics": points(values, step or 0)})

    def tag(self, key: str, value: str) -> None:
        """Set a tag."""
        self._write("batch", {"tags": {key: value}})

    def log_file(self, path: Path, folder: str | None = None) -> None:
        """Store a file among the run's artifacts, in ``folder`` of them."""
        self._write("files", {"folder": folder}, {path.name: path})

    def log_folder(self, path: Path, folder: str | None = None) -> None:
        """Store the contents of a folder among the run's artifacts, in ``folder`` of them."""
        self._write("files", {"folder": folder}, files_below(path))

    def log_predictions(
        self, paths: Sequence[str], labels: ArrayLike, probabilities: ArrayLike, pseudonyms: Pseudonyms
    ) -> None:
        """Store ``val_predictions.csv``; see :func:`log_run_predictions`."""
        text = _predictions(paths, labels, probabilities, None if self._local else pseudonyms)
        with as_file(text, PREDICTIONS) as table:
            self.log_file(table)

    def _log_system(self, sample: dict[str, float], index: int) -> None:
        self.log_metrics(sample, index)

    def _write(self, kind: str, content: Mapping[str, Any], files: Mapping[str, Path] | None = None) -> None:
        self._outbox.write(kind, self.id, content, files)


def settings_as_text(config: Config, local: bool) -> dict[str, str]:
    """Every setting under its dotted name; a remote store gets file names instead of paths, and no store a password."""
    values = {}
    for name, value in flatten(config).items():
        text = without_credentials(as_text(value)) if name == "tracking.uri" else as_text(value)
        values[name] = Path(text).name if name in PLACES and not local else text
    return values


def tag_run(connection: Connection, run_id: str, key: str, value: str) -> None:
    """Set a tag of any run."""
    with speaking(connection.uri, f"tag the run {run_id}"):
        connection.client.set_tag(run_id, key, storable(value))


def tag_opening(connection: Connection, run_id: str, line: str, counts: tuple[int, int] | None) -> None:
    """Tag a run, and the study's run above it, with an opening of the test split and how many there were by now.

    Args:
        counts: openings for this run, and for all of its study; none where no study counts them, so the tag does.
    """
    with speaking(connection.uri, f"note the opening of the test split at the run {run_id}"):
        parent = connection.client.get_run(run_id).data.tags.get(PARENT_RUN)
        for one, count in zip((run_id, parent), counts or (None, None), strict=True):
            if one is None:
                continue
            if count is None:
                count = int(connection.client.get_run(one).data.tags.get(OPENINGS, "0")) + 1
            connection.client.set_tag(one, "xray_opt.test_opened", storable(line)[:LONGEST_TAG])
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
    text = _predictions(paths, labels, probabilities, None if connection.local else pseudonyms)
    with as_file(text, name) as path:
        log_run_file(connection, run_id, path)


def _predictions(
    paths: Sequence[str], labels: ArrayLike, probabilities: ArrayLike, pseudonyms: Pseudonyms | None
) -> str:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["film", "label", "probability"])
    for path, label, probability in zip(paths, np.asarray(labels), np.asarray(probabilities), strict=True):
        film = path if pseudonyms is None else pseudonyms.film(path)
        writer.writerow([film, int(label), repr(float(probability))])
    return text.getvalue()


def log_run_file(connection: Connection, run_id: str, path: Path, folder: str | None = None) -> None:
    """Store a file among the artifacts of any run, in ``folder`` of them."""
    with speaking(connection.uri, f"store {path.name}"):
        connection.client.log_artifact(run_id, str(path), folder)


def log_run_json(connection: Connection, run_id: str, name: str, record: Mapping[str, Any]) -> None:
    """Store a JSON-ready record as artifact ``name`` of any run; an earlier one is replaced."""
    with as_file(json.dumps(record, indent=1) + "\n", name) as path:
        log_run_file(connection, run_id, path)


def log_run_metrics(connection: Connection, run_id: str, values: Mapping[str, float], step: int = 0) -> None:
    """Log metrics of any run in one request."""
    metrics = [Metric(*point) for point in points(values, step)]
    with speaking(connection.uri, f"log metrics of the run {run_id}"):
        connection.client.log_batch(run_id, metrics=metrics)
