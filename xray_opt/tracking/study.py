"""A study in MLflow: its experiment, its parent run, what is logged once a study, and the door to its child runs."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mlflow.entities import DatasetInput

from xray_opt.config import Config
from xray_opt.dataset import Manifest
from xray_opt.errors import DiskFault, StoreAway, TrackingError
from xray_opt.mlflow_client import Connection, quickly, speaking
from xray_opt.tracking.agreement import TrialEnd, agree, child_runs
from xray_opt.tracking.checkpoints import discard, fetched
from xray_opt.tracking.data import dataset_inputs, manifest_files
from xray_opt.tracking.ending import Ending, close_lost, ending
from xray_opt.tracking.environment import environment_tags
from xray_opt.tracking.experiments import STUDY_ID, Choose, first, parent_run, run_of_key, take_up
from xray_opt.tracking.outbox import Outbox
from xray_opt.tracking.ranking import RankedTrial, rank
from xray_opt.tracking.run import Run, RunPlan
from xray_opt.tracking.sending import WAITING, as_file, end_content, files_below, now, plain_input, points
from xray_opt.tracking.unloading import LeftBehind, send_left_behind

log = logging.getLogger(__name__)

#: MLflow takes 8,000 characters a tag.
LONGEST_NOTE = 7900


class Tracking:
    """One study's (or one experiment's) place in MLflow; a context manager that ends the parent run.

    The parent run is RUNNING inside the block, then FINISHED, FAILED on an error or KILLED on Ctrl-C, unless others
    still work below it; the next ``open`` takes it up again. What is logged goes through an outbox: a server that is
    away, from the beginning or later, stops nothing.
    """

    def __init__(
        self,
        connection: Connection,
        outbox: Outbox,
        parent: str | None,
        tags: Mapping[str, str],
        shared: Callable[[bool], bool] = lambda hurried: False,
    ) -> None:
        self._connection = connection
        self._client = connection.client
        self._outbox = outbox
        self._parent = parent
        self._tags = dict(tags)
        self._shared = shared
        self._over = parent is None
        self._datasets: Sequence[DatasetInput] = ()

    @classmethod
    def open(
        cls,
        connection: Connection,
        experiment: str,
        tags: Mapping[str, str],
        parent: bool = True,
        shared: Callable[[bool], bool] = lambda hurried: False,
        excused: tuple[type[TrackingError], ...] = (StoreAway,),
        say: Callable[[str], None] = log.warning,
        choose: Choose = first,
    ) -> Tracking:
        """Find or create the experiment and, with ``parent``, its study run.

        Args:
            tags: tags of the parent run; ``STUDY_ID`` among them tells studies of one name apart.
            parent: false for single runs, which have none.
            shared: asked at the end of the block: whether others still work below the parent run, which then stays
                RUNNING for the last of them to end. It is told whether this process ends by an error or a signal, and
                must not wait for a store that is away.
            excused: errors of the store after which what is logged is kept for it.
            say: told when the store goes away and when it is back, and what it refuses.
            choose: which of several runs is the study's; see ``parent_run``.

        Raises:
            TrackingError: the store refuses, or the experiment was deleted.
        """
        outbox = Outbox(connection, experiment, tags, say, choose)
        name = WAITING + tags.get(STUDY_ID, experiment) if parent else None
        tracking = cls(connection, outbox, name, tags, shared)
        try:
            if connection.away:
                raise excused[0](connection.away)
            with quickly(), speaking(connection.uri, f"open the experiment {experiment}"):
                experiment_id = outbox.sender.experiment_id
                if name is not None:
                    own = environment_tags() | dict(tags)
                    run_id = parent_run(connection, experiment_id, experiment, own, choose)
                    outbox.sender.runs[name] = run_id
                    run = take_up(connection, run_id, now())
                    tracking._datasets = run.inputs.dataset_inputs if run.inputs else ()
        except excused as error:
            outbox.away(error)
            if name is not None and outbox.sender.id_of(name) is None:
                outbox.write("study", name, {"tags": environment_tags() | dict(tags), "at": now()})
        return tracking

    @property
    def experiment_id(self) -> str | None:
        """MLflow's id of the experiment; none while it waits to be looked up."""
        return self._outbox.sender.known_experiment

    @property
    def parent_id(self) -> str:
        """Id of the study's run; a name of its own (``sending.WAITING``) while it waits to be made.

        Raises:
            TrackingError: opened without one.
        """
        if self._parent is None:
            raise TrackingError("this experiment was opened without a study run")
        return self._outbox.sender.id_of(self._parent) or self._parent

    @property
    def is_made(self) -> bool:
        """Whether the study's run is in MLflow by now, and ``parent_id`` its id there."""
        return not self.parent_id.startswith(WAITING)

    @property
    def is_waiting(self) -> bool:
        """Whether writes of this process wait for the store."""
        return self._outbox.waiting > 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, KeyboardInterrupt):
            self._outbox.hurry()
        try:
            self.end(error)
            if not isinstance(error, KeyboardInterrupt):
                self._outbox.flush()
            if error is not None and (waiting := self._outbox.waiting):
                self._outbox.say(f"{waiting} writes wait for MLflow: the same command, or xray-opt sync, sends them")
        finally:
            self._outbox.close()

    def end(self, error: BaseException | None = None) -> None:
        """End the parent run now, as the end of the block would by ``error``; nothing where others work below it."""
        if self._over or self._shared(error is not None):
            return
        self._over = True
        end = Ending("KILLED", {}) if isinstance(error, KeyboardInterrupt) else ending(error, self._connection.local)
        try:
            self._outbox.write("end", self.parent_id, end_content(end))
        except DiskFault as lost:
            if error is None:
                raise
            log.warning("the study's run %s stays RUNNING in MLflow: %s", self._parent, lost)

    def run(self, name: str, config: Config, params: Mapping[str, object], tags: Mapping[str, str]) -> Run:
        """A new run below the parent; use it as a context manager.

        Args:
            params: the searched settings among ``config``, by dotted name.
        """
        parent = None if self._parent is None else self.parent_id
        return Run(self._connection, self._outbox, RunPlan(name, config, params, tags, parent, self._datasets))

    def close_trial(self, number: int, reason: str) -> None:
        """Make the runs of a failed trial FAILED; found by tag, as a kill may come before the trial knows its run.

        Where the store is away that is left to ``agree``.
        """
        if self.is_waiting:
            return
        try:
            with quickly():
                for run in child_runs(self._connection, self.parent_id, number):
                    close_lost(self._connection, run.info.run_id, reason)
        except TrackingError as error:
            log.warning("the run of trial %d is ended later: %s", number, error)

    def checkpoints_of(self, number: int, folder: Path) -> Iterator[Path]:
        """Copies of the checkpoints that a trial kept in MLflow, newest first; none where MLflow is away."""
        say = self._outbox.say
        if not self.is_made:
            return
        try:
            with quickly():
                runs = child_runs(self._connection, self.parent_id, number)
        except TrackingError as error:
            say(f"the checkpoints of trial {number} in MLflow cannot be had now: {error}")
            return
        yield from fetched(self._connection, runs, folder, say)

    def discard_checkpoints(self, numbers: Iterable[int]) -> None:
        """Remove the checkpoints that trials kept in MLflow; what cannot be removed now is by the next ``agree``."""
        try:
            if not self.is_waiting:
                with quickly():
                    for run in [run for each in numbers for run in child_runs(self._connection, self.parent_id, each)]:
                        discard(self._connection, run)
        except TrackingError as error:
            log.info("checkpoints are removed later: %s", error)

    def close_run(self, run_id: str, reason: str = "worker-lost") -> None:
        """Make a run FAILED that a killed process left; one that waits to be made is ended by who makes it."""
        if not run_id.startswith(WAITING):
            self._outbox.write("lost", run_id, {"reason": reason})

    def agree(self, trials: Iterable[TrialEnd]) -> dict[str, int]:
        """Bring the trials' runs to the states of their trials, which must have been read before; see ``agree``."""
        with quickly():
            return agree(self._connection, self.parent_id, trials)

    def send_waiting(self) -> LeftBehind:
        """Send what waits in this workspace for the store: this process's own writes, and those of processes that are
        gone."""
        self._outbox.flush()
        return send_left_behind(self._connection, self._connection.workspace.spool)

    def carry(self, manifest: Manifest) -> None:
        """Runs opened from now on carry the data set as inputs."""
        self._datasets = dataset_inputs(manifest, self._connection.local)

    def log_dataset(self, manifest: Manifest) -> None:
        """Log the training and validation films as dataset inputs, and the manifest as an artifact of the parent.

        Runs opened from now on carry the inputs as well. A remote store gets pseudonyms and no paths.
        """
        self.carry(manifest)
        with tempfile.TemporaryDirectory(prefix="xray-opt-") as folder:
            manifest_files(manifest, self._connection, Path(folder))
            self._write("inputs", {"datasets": [plain_input(item) for item in self._datasets]})
            self._write("files", {"folder": "data"}, files_below(Path(folder)))

    def log_metrics(self, values: Mapping[str, float]) -> None:
        """Log metrics of the parent run."""
        self._write("batch", {"metrics": points(values)})

    def log_file(self, path: Path, folder: str | None = None) -> None:
        """Store a file among the parent's artifacts, in ``folder`` of them."""
        self._write("files", {"folder": folder}, {path.name: path})

    def log_run_file(self, run_id: str, path: Path, folder: str | None = None) -> None:
        """Store a file among the artifacts of a run of this process, in ``folder`` of them."""
        self._outbox.write("files", run_id, {"folder": folder}, {path.name: path})

    def log_text(self, text: str, name: str) -> None:
        """Store a text as the parent's artifact ``name``."""
        with as_file(text, name) as path:
            self.log_file(path)

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
        self._write("batch", {"tags": {"mlflow.note.content": "\n".join(lines)}})
        self.log_text(markdown, "note.md")

    def _write(self, kind: str, content: Mapping[str, Any], files: Mapping[str, Path] | None = None) -> None:
        self._outbox.write(kind, self.parent_id, content, files)

    def find_run(self, noted: str) -> str:
        """Id of a run that a trial noted; it may have been noted before it was made.

        Raises:
            TrackingError: it is not there.
        """
        if not noted.startswith(WAITING):
            return noted
        with speaking(self._connection.uri, f"find the run {noted}"):
            found = run_of_key(self._connection, self._outbox.sender.experiment_id, noted.removeprefix(WAITING))
        if found is None:
            raise StoreAway(f"the run {noted} is not at {self._connection.shown} yet: run xray-opt sync")
        return found

    def rank_models(self, best: Sequence[RankedTrial]) -> None:
        """Make exactly these trials the study's LoggedModels ``trial-NNN``, best first; safe to repeat."""
        with speaking(self._connection.uri, "rank the best models"):
            rank(self._connection, self._outbox.sender.experiment_id, best, self._tags, self._datasets)

    def download(self, run_id: str, artifact: str, folder: Path) -> Path:
        """Copy an artifact (file or folder) of a run below ``folder``; returns its path there."""
        with speaking(self._connection.uri, f"fetch {artifact} of the run {run_id}"):
            return Path(self._client.download_artifacts(run_id, artifact, str(folder)))
