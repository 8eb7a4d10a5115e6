"""Counts what the source holds and how much of that is found in the target, thing by thing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from xray_opt import registry
from xray_opt.tracking import Connection, Route, artifact_names, metric_points, outgoing_name

#: A run of MLflow, and (kind, whether of the source) → how many.
Run = Any
Counts = Counter[tuple[str, bool]]


@dataclass(frozen=True)
class Count:
    """How many of a kind the source holds, and how many of these were found in the target."""

    what: str
    source: int
    target: int

    @property
    def equal(self) -> bool:
        """Whether nothing is missing."""
        return self.source == self.target


def table(counts: Counts) -> tuple[Count, ...]:
    """The counts as rows, in the order in which they were taken."""
    kinds = dict.fromkeys(kind for kind, _ in counts)
    return tuple(Count(kind, counts[kind, True], counts[kind, False]) for kind in kinds)


def count(counts: Counts, kind: str, source: int, found: int) -> None:
    """Add to one row."""
    counts[kind, True] += source
    counts[kind, False] += found


def count_runs(counts: Counts, route: Route, runs: Sequence[Run], copies: Mapping[str, Run]) -> None:
    """Runs, and their params, metric points, data sets and artifacts."""
    for run in runs:
        copy = copies.get(run.info.run_id)
        count(counts, "runs", 1, int(copy is not None and _stands(copy) == _stands(run)))
        own = dict(_things(route.source, run, route.params(run.data.params)))
        there = dict(_things(route.target, copy, copy.data.params)) if copy is not None else {}
        for kind, things in own.items():
            count(counts, kind, len(things), len(things & there.get(kind, set())))


def count_versions(counts: Counts, route: Route, runs: Iterable[str]) -> None:
    """Registered versions."""
    versions = registry.versions_of_runs(route.source, dict.fromkeys(runs, ""))
    count(counts, "registered versions", len(versions), len(registry.copies_of_versions(route.target, versions)))


def _stands(run: Run) -> tuple[int, str]:
    """Start and state; a study's own run is RUNNING whenever somebody tunes it."""
    own = run.data.tags.get("xray_opt.role") == "study"
    return run.info.start_time, "" if own else run.info.status


def _things(connection: Connection, run: Run, params: Mapping[str, str]) -> Iterator[tuple[str, set[Any]]]:
    """Kind → everything of it that a run has, in a form in which both ends can be compared."""
    yield "params", set(params.items())
    points = metric_points(connection, run)
    yield "metric points", {(point.key, point.step, point.timestamp, repr(point.value)) for point in points}
    inputs = connection.client.get_run(run.info.run_id).inputs
    yield "data sets", {(item.dataset.name, item.dataset.digest) for item in (inputs.dataset_inputs if inputs else ())}
    yield "artifacts", {outgoing_name(name) for name in artifact_names(connection, run.info.run_id)}
