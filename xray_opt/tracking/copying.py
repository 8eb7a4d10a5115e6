"""Copies runs from one MLflow store to another: params, tags, every metric point, times, data sets, artifacts.

Each copy carries the id of its original, so that a second call finds it; one that a kill left half is filled up, as
logging the same once more changes nothing. What may not leave the machine stays behind, see ``outgoing``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from mlflow.entities import Metric, Param, Run, RunTag, ViewType

from xray_opt.mlflow_client import PARENT_RUN, Connection, pages, speaking
from xray_opt.tracking.agreement import STORAGE
from xray_opt.tracking.artifact_copying import copy_artifacts
from xray_opt.tracking.experiments import STUDY_ID, experiment_named
from xray_opt.tracking.outgoing import outgoing_files, outgoing_inputs, outgoing_params, outgoing_tags

#: Tag of a copy: the id of its original. Tag of a whole copy: how its original stood, and the digest of its artifacts.
ORIGIN, WHOLE = "xray_opt.migrated_from", "xray_opt.migrated"

T = TypeVar("T")


@dataclass(frozen=True)
class Route:
    """From one store to another; ``storage`` is the digest of the Optuna storage that the copies belong to."""

    source: Connection
    target: Connection
    storage: str

    @property
    def leaves_machine(self) -> bool:
        """Whether names of films and places must stay behind."""
        return self.source.local and not self.target.local

    def tags(self, tags: Mapping[str, str]) -> dict[str, str]:
        """Tags as the target may hold them, with the digest of the storage that the copies belong to."""
        kept = outgoing_tags(tags) if self.leaves_machine else dict(tags)
        kept.pop(WHOLE, None)
        return kept | ({STORAGE: self.storage} if STORAGE in tags else {})

    def files(self, folder: Path) -> None:
        """Make a copy of a run's artifacts fit for the target."""
        if self.leaves_machine:
            outgoing_files(folder, self.source, self.target)

    def params(self, params: Mapping[str, str]) -> dict[str, str]:
        """Params as the target may hold them."""
        return outgoing_params(params) if self.leaves_machine else dict(params)


def runs_of(connection: Connection, condition: str) -> list[Run]:
    """Active runs that meet a condition, in every experiment, oldest first; a study's own run before its trials'."""
    client = connection.client
    with speaking(connection.uri, "list runs"):
        found = pages(lambda token: client.search_experiments(page_token=token))
        experiments = [experiment.experiment_id for experiment in found]
        runs: list[Run] = []
        for some in _batches(experiments, 100):
            search = partial(client.search_runs, list(some), condition, ViewType.ACTIVE_ONLY, 1000, None)
            runs += pages(search)
    return sorted(runs, key=lambda run: (PARENT_RUN in run.data.tags, run.info.start_time, run.info.run_id))


def runs_of_study(connection: Connection, identity: str) -> list[Run]:
    """Active runs of the study of this id, its own run first."""
    return runs_of(connection, f"tags.`{STUDY_ID}` = '{identity}'")


def copies_of(runs: Iterable[Run], others: Sequence[Run]) -> dict[str, Run]:
    """Id of each run → its copy among others, or the run that it is itself a copy of; what has none is left out."""
    by_origin = {run.data.tags.get(ORIGIN): run for run in others}
    by_id = {run.info.run_id: run for run in others}
    found = {}
    for run in runs:
        other = by_origin.get(run.info.run_id) or by_id.get(run.data.tags.get(ORIGIN, ""))
        if other is not None:
            found[run.info.run_id] = other
    return found


def copy_run(route: Route, run: Run, known: Run | None, parents: Mapping[str, str], more: Mapping[str, str]) -> str:
    """Copy one run, or fill up the copy that is known; returns the copy's id.

    Args:
        parents: id of each parent run at the source → its copy's.
        more: tags of the copy in place of the original's.

    Raises:
        TrackingError: a store does not answer, or an artifact is not the same after it was copied.
    """
    stand = f"{run.info.status} {run.info.end_time}"
    if known is not None and known.data.tags.get(WHOLE, "").startswith(f"{stand} "):
        return str(known.info.run_id)
    run = route.source.client.get_run(run.info.run_id)  # whole: a search leaves out its data sets
    tags = route.tags(run.data.tags) | dict(more) | {ORIGIN: run.info.run_id}
    if parent := run.data.tags.get(PARENT_RUN):
        tags[PARENT_RUN] = parents.get(parent, parent)
    with speaking(route.target.uri, f"copy the run {run.info.run_id}"):
        copy = str(known.info.run_id) if known is not None else _made(route, run, tags)
        _log(route, run, copy, tags)
        digest = copy_artifacts(route.source, route.target, run.info.run_id, copy, route.files)
        if run.info.status not in ("RUNNING", "SCHEDULED"):
            route.target.client.set_terminated(copy, run.info.status, run.info.end_time)
        route.target.client.set_tag(copy, WHOLE, f"{stand} {digest}")
    return copy


def metric_points(connection: Connection, run: Run) -> Iterator[Metric]:
    """Every point of every metric of a run."""
    for key in sorted(run.data.metrics):
        yield from connection.client.get_metric_history(run.info.run_id, key)


def _made(route: Route, run: Run, tags: Mapping[str, str]) -> str:
    """The copy, found by its tag from the moment that it exists."""
    experiment = route.source.client.get_experiment(run.info.experiment_id)
    place = experiment_named(route.target, experiment.name)
    have = route.target.client.get_experiment(place).tags
    for key in experiment.tags.keys() - have.keys():
        route.target.client.set_experiment_tag(place, key, experiment.tags[key])
    made = route.target.client.create_run(place, run.info.start_time, dict(tags), run.info.run_name)
    return str(made.info.run_id)


def _log(route: Route, run: Run, copy: str, tags: Mapping[str, str]) -> None:
    client = route.target.client
    for params in _batches([Param(*item) for item in route.params(run.data.params).items()], 100):
        client.log_batch(copy, params=params)
    for points in _batches(list(metric_points(route.source, run)), 1000):
        client.log_batch(copy, metrics=points)
    for words in _batches([RunTag(*item) for item in tags.items()], 100):
        client.log_batch(copy, tags=words)
    inputs = list(run.inputs.dataset_inputs) if run.inputs else []
    if inputs:
        client.log_inputs(copy, outgoing_inputs(inputs) if route.leaves_machine else inputs)


def _batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[first : first + size] for first in range(0, len(items), size))
