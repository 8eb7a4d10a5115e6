"""A study in MLflow: its experiment, its parent run, what is logged once a study, and the door to its child runs."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from mlflow.entities import DatasetInput, ViewType
from mlflow.exceptions import MlflowException

from xray_opt.config import Config
from xray_opt.dataset import Manifest
from xray_opt.errors import TrackingError
from xray_opt.mlflow_client import EXISTS, Connection, speaking
from xray_opt.tracking.agreement import STUDY_ID, TrialEnd, agree, child_runs
from xray_opt.tracking.data import dataset_inputs, manifest_files
from xray_opt.tracking.environment import environment_tags
from xray_opt.tracking.ranking import RankedTrial, rank
from xray_opt.tracking.run import Ending, Run, RunPlan, close, close_lost, ending, log_run_file, log_run_metrics

log = logging.getLogger(__name__)

#: MLflow takes 8,000 characters a tag.
LONGEST_NOTE = 7900


class Tracking:
    """One study's (or one experiment's) place in MLflow; a context manager that ends the parent run.

    The parent run is RUNNING inside the block, then FINISHED, FAILED on an error or KILLED on Ctrl-C, unless others
    still work below it; the next ``open`` takes it up again.

    Attributes:
        experiment_id: MLflow's id of the experiment.
    """

    def __init__(
        self,
        connection: Connection,
        experiment_id: str,
        parent: str | None,
        tags: Mapping[str, str],
        shared: Callable[[], bool] = lambda: False,
    ) -> None:
        self._connection = connection
        self._client = connection.client
        self.experiment_id = experiment_id
        self._parent = parent
        self._tags = dict(tags)
        self._shared = shared
        self._datasets: Sequence[DatasetInput] = ()

    @classmethod
    def open(
        cls,
        connection: Connection,
        experiment: str,
        tags: Mapping[str, str],
        parent: bool = True,
        shared: Callable[[], bool] = lambda: False,
    ) -> Tracking:
        """Find or create the experiment and, with ``parent``, its study run.

        Args:
            tags: tags of the parent run; ``STUDY_ID`` among them tells studies of one name apart.
            parent: false for single runs, which have none.
            shared: asked at the end of the block: whether others still work below the parent run, which then stays
                RUNNING for the last of them to end.

        Raises:
            TrackingError: the store does not answer, or the experiment was deleted.
        """
        with speaking(connection.uri, f"open the experiment {experiment}"):
            experiment_id = experiment_named(connection, experiment)
            if not parent:
                return cls(connection, experiment_id, None, tags)
            run_id = _parent_run(connection, experiment_id, experiment, dict(tags))
            tracking = cls(connection, experiment_id, run_id, tags, shared)
            tracking._take_up()
            return tracking

    def _take_up(self) -> None:
        """The parent run is at work (again): what an earlier call failed with is history."""
        self._client.update_run(self.parent_id, "RUNNING")
        run = self._client.get_run(self.parent_id)
        for tag in {"reason", "error"} & set(run.data.tags):
            self._client.delete_tag(self.parent_id, tag)
        self._datasets = run.inputs.dataset_inputs if run.inputs else ()

    @property
    def parent_id(self) -> str:
        """Id of the study's run.

        Raises:
            TrackingError: opened without one.
        """
        if self._parent is None:
            raise TrackingError("this experiment was opened without a study run")
        return self._parent

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._parent is None or self._shared():
            return
        end = Ending("KILLED", {}) if isinstance(error, KeyboardInterrupt) else ending(error, self._connection.local)
        try:
            close(self._connection, self._parent, end)
        except TrackingError as lost:
            if error is None:
                raise
            log.warning("the study's run %s stays RUNNING in MLflow: %s", self._parent, lost)

    def close(self, metrics: Mapping[str, float]) -> None:
        """Log summary metrics and end the parent run as FINISHED (what the ``with`` block does by itself)."""
        self.log_metrics(metrics)
        close(self._connection, self.parent_id, Ending("FINISHED", {}))

    def run(self, name: str, config: Config, params: Mapping[str, object], tags: Mapping[str, str]) -> Run:
        """A new run below the parent; use it as a context manager.

        Args:
            params: the searched settings among ``config``, by dotted name.
        """
        return Run(
            self._connection,
            RunPlan(self.experiment_id, name, config, params, tags, self._parent, self._datasets),
        )

    def close_trial(self, number: int, reason: str) -> None:
        """Make the runs of a failed trial FAILED; found by tag, as a kill may come before the trial knows its run."""
        for run in child_runs(self._connection, self.parent_id, number):
            close_lost(self._connection, run.info.run_id, reason)

    def agree(self, trials: Iterable[TrialEnd]) -> dict[str, int]:
        """Bring the trials' runs to the states of their trials, which must have been read before; see ``agree``."""
        return agree(self._connection, self.parent_id, trials)

    def log_dataset(self, manifest: Manifest) -> None:
        """Log the training and validation films as dataset inputs, and the manifest as an artifact of the parent.

        Runs opened from now on carry the inputs as well. A remote store gets pseudonyms and no paths.
        """
        self._datasets = dataset_inputs(manifest, self._connection.local)
        with tempfile.TemporaryDirectory(prefix="xray-opt-") as folder:
            manifest_files(manifest, self._connection, Path(folder))
            with speaking(self._connection.uri, "log the data set"):
                self._client.log_inputs(self.parent_id, list(self._datasets))
                self._client.log_artifacts(self.parent_id, folder, "data")

    def log_metrics(self, values: Mapping[str, float]) -> None:
        """Log metrics of the parent run."""
        log_run_metrics(self._connection, self.parent_id, values)

    def log_file(self, path: Path, folder: str | None = None) -> None:
        """Store a file among the parent's artifacts, in ``folder`` of them."""
        log_run_file(self._connection, self.parent_id, path, folder)

    def log_text(self, text: str, name: str) -> None:
        """Store a text as the parent's artifact ``name``."""
        with speaking(self._connection.uri, f"store {name}"):
            self._client.log_text(self.parent_id, text, name)

    def note(self, markdown: str) -> None:
        """Set the description of the parent run, which MLflow's UI renders, and store it whole as ``note.md``.

        A description that is longer than MLflow's limit of a tag is cut at a line.
        """
        lines, size = [], 0
        for line in markdown.splitlines():
            size += len(line) + 1
            if size > LONGEST_NOTE:
                lines.append("\nThe whole text: artifact note.md.")
                break
            lines.append(line)
        with speaking(self._connection.uri, "write the study's note"):
            self._client.set_tag(self.parent_id, "mlflow.note.content", "\n".join(lines))
        self.log_text(markdown, "note.md")

    def rank_models(self, best: Sequence[RankedTrial]) -> None:
        """Make exactly these trials the study's LoggedModels ``trial-NNN``, best first; safe to repeat."""
        with speaking(self._connection.uri, "rank the best models"):
            rank(self._connection, self.experiment_id, best, self._tags, self._datasets)

    def download(self, run_id: str, artifact: str, folder: Path) -> Path:
        """Copy an artifact (file or folder) of a run below ``folder``; returns its path there."""
        with speaking(self._connection.uri, f"fetch {artifact} of the run {run_id}"):
            return Path(self._client.download_artifacts(run_id, artifact, str(folder)))


def experiment_named(connection: Connection, name: str) -> str:
    """Id of the experiment of that name, which is made where there is none.

    Raises:
        TrackingError: it was deleted.
    """
    client = connection.client
    found = client.get_experiment_by_name(name)
    if found is None:
        place = None if connection.artifact_root is None else (connection.artifact_root / name).as_uri()
        try:
            return str(client.create_experiment(name, artifact_location=place))
        except MlflowException as error:
            if error.error_code != EXISTS:
                raise
            return experiment_named(connection, name)
    if found.lifecycle_stage != "active":
        raise TrackingError(
            f"the experiment {name} was deleted in MLflow at {connection.shown}: restore it there "
            f"(mlflow experiments restore -x {found.experiment_id}), or use another --name"
        )
    return str(found.experiment_id)


def _parent_run(connection: Connection, experiment_id: str, name: str, tags: dict[str, str]) -> str:
    """The study's oldest run; of two processes that make one at once, both get the older one."""
    mine = None
    found = _study_run(connection, experiment_id, tags)
    if found is None:
        own = environment_tags() | tags | {"xray_opt.role": "study"}
        mine = connection.client.create_run(experiment_id, tags=own, run_name=name).info.run_id
        found = _study_run(connection, experiment_id, tags)
    if mine is not None and found is not None and found != mine:
        connection.client.delete_run(mine)
    return str(found or mine)


def _study_run(connection: Connection, experiment_id: str, tags: Mapping[str, str]) -> str | None:
    condition = "tags.`xray_opt.role` = 'study'"
    if STUDY_ID in tags:
        condition += f" and tags.`{STUDY_ID}` = '{tags[STUDY_ID]}'"
    runs = connection.client.search_runs(
        [experiment_id],
        condition,
        ViewType.ACTIVE_ONLY,
        max_results=1,
        order_by=["attributes.start_time ASC", "attributes.run_id ASC"],
    )
    return runs[0].info.run_id if runs else None
