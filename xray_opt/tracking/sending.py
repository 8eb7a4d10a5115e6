"""One write to MLflow, of any kind, in a form that can be kept: sent at once, or later and perhaps a second time.

Whatever is sent twice is there once. Metrics carry their time from the beginning, and MLflow's database takes the same
point (key, step, time, value) once; params, tags, inputs and files are put in place of their like; a run carries a key
of its own among its tags, by which it is looked for before it is made again.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param

from xray_opt.errors import TrackingError
from xray_opt.mlflow_client import PARENT_RUN, QUICK, Connection, quickly, speaking, storable
from xray_opt.tracking.ending import Ending, close, close_left, close_lost, run_tags
from xray_opt.tracking.experiments import (
    KEY,
    Choose,
    experiment_named,
    first,
    parent_run,
    run_of_key,
    take_up,
    taken_up_since,
)

#: How the name of a run begins that MLflow has not given an id yet; the key follows.
WAITING = "waiting-"
#: Tag of an experiment: when its store was last asked whether it takes a write, in milliseconds since 1970.
ASKED = "xray_opt.asked"


class Behind(TrackingError):
    """A write belongs to a run that is not made yet."""


@dataclass(frozen=True)
class Write:
    """A write to a ``run`` (id, or ``WAITING`` and its key), its kind, its content (JSON-ready), its files by name.

    Attributes:
        kind: a method of :class:`Sender` without its underscore.
        again: it may have been sent before.
    """

    kind: str
    run: str
    content: Mapping[str, Any]
    files: Mapping[str, Path] = field(default_factory=dict)
    again: bool = False


class Sender:
    """Sends the writes of one process to one experiment.

    Args:
        choose: which of several runs is the study's; see ``parent_run``.

    Attributes:
        runs: key → id of the runs that were made meanwhile.
        known_experiment: id of the experiment; none before it was looked up.
        patience: seconds for an answer; see ``quickly``.
    """

    def __init__(
        self,
        connection: Connection,
        experiment: str,
        tags: Mapping[str, str],
        runs: dict[str, str | None],
        choose: Choose = first,
    ) -> None:
        self._connection, self._client = connection, connection.client
        self._experiment, self._tags, self._choose = experiment, tags, choose
        self.known_experiment: str | None = None
        self.runs = runs
        self.patience = QUICK

    @property
    def experiment_id(self) -> str:
        """Id of the experiment, looked up once; it may have to be made."""
        if self.known_experiment is None:
            with speaking(self._connection.uri, f"open the experiment {self._experiment}"):
                self.known_experiment = experiment_named(self._connection, self._experiment)
        return self.known_experiment

    def __call__(self, write: Write) -> str | None:
        """Send a write; the id of the run if it made one.

        Raises:
            Behind: its run is not made yet.
            TrackingError: see ``mlflow_client.speaking``.
        """
        size = sum(path.stat().st_size for path in write.files.values())
        send: Callable[[Write], str | None] = getattr(self, f"_{write.kind}")
        with quickly(size, self.patience), speaking(self._connection.uri, f"{DOING[write.kind]} {write.run}"):
            made = send(write)
        if made is not None:
            self.runs[write.run] = made
        return made

    def id_of(self, run: str) -> str | None:
        """The id of a run, none while it is not made."""
        return self.runs.get(run) if run.startswith(WAITING) else run

    def require_well(self, write: Write) -> None:
        """See that the store answers where a write would go, after a fault of its own.

        A database that is full or read-only answers every question, so it is given something to write.

        Raises:
            TrackingError: it does not.
        """
        with quickly(0, self.patience), speaking(self._connection.uri, "look whether it is well"):
            if write.files:
                self._client.list_artifacts(self._existing(write.run))
            else:
                self._client.set_experiment_tag(self.experiment_id, ASKED, str(now()))

    def _existing(self, run: str) -> str:
        found = self.id_of(run)
        if found is None:
            raise Behind(f"the run {run} waits to be made")
        return found

    def _study(self, write: Write) -> str:
        tags = write.content["tags"]
        run_id = parent_run(self._connection, self.experiment_id, self._experiment, tags, self._choose)
        at = write.content.get("at", 0)
        if not taken_up_since(self._connection, run_id, at):
            take_up(self._connection, run_id, at)
        return run_id

    def _create(self, write: Write) -> str:
        content = write.content
        tags = {key: storable(value) for key, value in content["tags"].items()}
        tags[KEY] = write.run.removeprefix(WAITING)
        if PARENT_RUN in tags:
            tags[PARENT_RUN] = self._existing(tags[PARENT_RUN])
        found = run_of_key(self._connection, self.experiment_id, tags[KEY]) if write.again else None
        return found or str(
            self._client.create_run(self.experiment_id, content["started"], tags, content["name"]).info.run_id
        )

    def _batch(self, write: Write) -> None:
        content = write.content
        self._client.log_batch(
            self._existing(write.run),
            metrics=[Metric(*point) for point in content.get("metrics", ())],
            params=[Param(key, storable(value)) for key, value in content.get("params", {}).items()],
            tags=run_tags(content.get("tags", {})),
        )

    def _inputs(self, write: Write) -> None:
        self._client.log_inputs(self._existing(write.run), [_input(item) for item in write.content["datasets"]])

    def _files(self, write: Write) -> None:
        run_id, folder = self._existing(write.run), write.content["folder"]
        for name, path in write.files.items():
            below = "/".join(part for part in (folder, name.rpartition("/")[0]) if part)
            self._client.log_artifact(run_id, str(path), below or None)

    def _end(self, write: Write) -> None:
        content, run_id = write.content, self._existing(write.run)
        if not (write.again and taken_up_since(self._connection, run_id, content["ended"])):
            close(self._connection, run_id, Ending(content["status"], content["tags"]), content["ended"])

    def _lost(self, write: Write) -> None:
        close_lost(self._connection, self._existing(write.run), write.content["reason"])

    def _left(self, write: Write) -> None:
        close_left(self._connection, self._existing(write.run))


#: Kind of a write → what is said to have failed; the run's name follows.
DOING = {
    "study": "open the study's run",
    "create": "start the run",
    "batch": "log to the run",
    "inputs": "log the data set of the run",
    "files": "store files of the run",
    "end": "end the run",
    "lost": "end the lost run",
    "left": "end what is left of the run",
}


def now() -> int:
    """The time as MLflow keeps it: milliseconds since 1970."""
    return int(time.time() * 1000)


def points(values: Mapping[str, float], step: int = 0) -> list[tuple[str, float, int, int]]:
    """Metrics of this moment as the content of a ``batch``: key, value, time, step."""
    at = now()
    return [(key, float(value), at, step) for key, value in values.items()]


def end_content(end: Ending) -> dict[str, Any]:
    """Content of an ``end`` at this moment."""
    return {"status": end.status, "tags": end.tags, "ended": now()}


def files_below(folder: Path) -> dict[str, Path]:
    """All files below a folder, by their names in it."""
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


@contextmanager
def as_file(text: str, name: str) -> Iterator[Path]:
    """A text as a file of that name, inside the block; names of films in it may be no UTF-8."""
    with tempfile.TemporaryDirectory(prefix="xray-opt-") as folder:
        path = Path(folder) / name
        path.write_text(text, encoding="utf-8", errors="surrogateescape")
        yield path


def plain_input(item: DatasetInput) -> dict[str, Any]:
    """A data set input as JSON."""
    return item.to_dictionary()


def _input(plain: Mapping[str, Any]) -> DatasetInput:
    fields = ("name", "digest", "source_type", "source", "schema", "profile")
    dataset = Dataset(**{name: plain["dataset"].get(name) for name in fields})
    return DatasetInput(dataset, [InputTag(key, value) for key, value in plain["tags"].items()])
