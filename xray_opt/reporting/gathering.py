"""Gathers a study's records: Optuna's trials and notes, MLflow's runs and their files, the last audit here."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from xray_opt import __version__, registry
from xray_opt.config import Workspace
from xray_opt.dataset import kept_audit
from xray_opt.leaderboard import openings, study_looks
from xray_opt.mlflow_client import Connection, connect
from xray_opt.places import PARENT, Place
from xray_opt.report import ARTIFACTS, OUTSIDE, SHOWING_FILMS, Chosen, Evidence, Predictions, Split
from xray_opt.tracking import (
    MANIFEST,
    PREDICTIONS,
    TEST_PREDICTIONS,
    RunFacts,
    Seat,
    artifact_names,
    child_tags,
    film_seats,
    noted_run,
    prediction_rows,
    run_facts,
    run_file,
    run_looks,
)
from xray_opt.tuning import StudyRecord, importances, read_study

#: Tag of a run → what it is called on the page.
FACTS = {
    "xray_opt.host": "host",
    "xray_opt.cpu": "processor",
    "xray_opt.cpu_instructions": "its instructions",
    "xray_opt.threads": "threads",
    "xray_opt.device": "device",
    "version.python": "python",
    "xray_opt.version": "xray-opt",
    "mlflow.source.git.commit": "git commit",
    "xray_opt.git_changed": "changed since that commit",
    "xray_opt.manifest_sha256": "digest of the split",
    "xray_opt.data_sha256": "digest of the films",
    "xray_opt.base_sha256": "digest of the base weights",
    "xray_opt.seed": "seed of the training",
}
VERSION = "version."


@dataclass(frozen=True)
class Source:
    """Where the records of a study come from; ``parent`` is its run in MLflow, none where it has none there."""

    study: StudyRecord
    place: Place
    workspace: Workspace
    connection: Connection
    parent: str | None

    def facts(self, run: str | None) -> RunFacts:
        """What a run says of itself; nothing where it is not in the store."""
        return (run_facts(self.connection, run) if run else None) or RunFacts({}, {}, {})

    def made(self, noted: str | None) -> str | None:
        """Id of a run that the study noted."""
        return noted_run(self.connection, self.parent, noted) if noted and self.parent else noted


def source_of(place: Place, workspace: Workspace) -> Source:
    """Where the records of the study at ``place`` come from.

    Raises:
        StudyError: no such study.
        TrackingError: MLflow does not answer.
    """
    study = read_study(str(place.study), workspace, place.storage)
    connection = connect(place.tracking(workspace), workspace)
    parent = study.notes.get(PARENT)
    known = parent and run_facts(connection, parent)
    return Source(study, place, workspace, connection, parent if known else None)


def gather(source: Source, films: bool) -> Evidence:
    """All records of a study."""
    study, connection = source.study, source.connection
    parent = source.facts(source.parent)
    with tempfile.TemporaryDirectory(prefix="xray-opt-") as scratch:
        folder = Path(scratch)
        seats = film_seats(connection, source.parent, folder) if source.parent else {}
        noted, final = _chosen_run(study)
        run = source.made(noted)
        facts = source.facts(run)
        chosen = _chosen(source, run, final, facts) if run else None
        hosts = Counter(_machine(tags) for tags in child_tags(connection, source.parent)) if source.parent else {}
        return Evidence(
            study=study,
            made=datetime.now(UTC).isoformat(sep=" ", timespec="minutes"),
            version=__version__,
            importances=importances(study.name, source.workspace, source.place.storage),
            importances_second=importances(study.name, source.workspace, source.place.storage, study.second)
            if study.second
            else {},
            openings=tuple(openings(study)),
            looks=study_looks(study, source.workspace, run_looks(connection)),
            chosen=chosen,
            final=final,
            validation=_predictions(connection, run, PREDICTIONS, seats, folder) if facts.tags else None,
            test=_predictions(connection, run, TEST_PREDICTIONS, seats, folder) if final and facts.tags else None,
            splits=_splits(seats),
            shortcut={name: value for name, value in parent.metrics.items() if name.startswith("shortcut.")},
            audit=kept_audit(parent.tags.get(MANIFEST, ""), source.workspace),
            environment=_environment(facts.tags),
            hosts=dict(sorted(hosts.items())),
            files=_files(connection, run, folder, films) if facts.tags and run else {},
        )


def _chosen_run(study: StudyRecord) -> tuple[str | None, Mapping[str, Any] | None]:
    """The run of the model that was finalized last, else of the confirmed winner, else of the best trial."""
    finals = study.notes.get("finalized") or {}
    if finals:
        run, final = max(finals.items(), key=lambda item: str(item[1]["opening"]["when"]))
        return run, final
    verdict = study.notes.get("confirmation")
    if verdict and verdict["winner"] is not None:
        return next(one["run"] for one in verdict["settings"] if one["trial"] == verdict["winner"]), None
    return (study.best.notes.get("mlflow_run") if study.best else None), None


def _chosen(source: Source, run: str, final: Mapping[str, Any] | None, facts: RunFacts) -> Chosen:
    verdict, best = source.study.notes.get("confirmation"), source.study.best
    trial = facts.tags.get("xray_opt.trial") or facts.tags.get("xray_opt.confirms")
    number = int(trial) if trial and trial.isdecimal() else final["trial"] if final else best.number if best else None
    retrained = "xray_opt.confirms" in facts.tags
    if verdict and verdict["winner"] == number and retrained:
        why = "the winner of the confirmation: the median of its retrainings stands for it"
    elif best is not None and number == best.number and not retrained:
        why = "the best of the search by validation F1"
    else:
        why = "the model that was finalized"
    threshold = final["threshold"] if final else facts.metrics.get("best.threshold")
    temperature = final["temperature"] if final else facts.metrics.get("best.temperature")
    return Chosen(run, number, why, threshold, temperature, facts.params, _versions(source.connection, run))


def _versions(connection: Connection, run: str) -> tuple[str, ...]:
    found = []
    for version in registry.versions_of_runs(connection, {run: ""}):
        held = registry.aliases(connection, version.name)
        names = sorted(alias for alias, number in held.items() if number == str(version.version))
        found.append(f"{version.name} version {version.version}" + (f" ({', '.join(names)})" if names else ""))
    return tuple(found)


def _predictions(
    connection: Connection, run: str | None, name: str, seats: Mapping[str, Seat], folder: Path
) -> Predictions | None:
    """A run's predictions with the patient of each film; where films are not in the table each is a patient."""
    path = run_file(connection, run, name, folder) if run else None
    if path is None:
        return None
    rows = prediction_rows(path)
    groups = tuple(seats[row["film"]].group if row["film"] in seats else row["film"] for row in rows)
    labels = np.array([int(row["label"]) for row in rows], dtype=np.int64)
    return Predictions(labels, np.array([float(row["probability"]) for row in rows]), groups)


def _splits(seats: Mapping[str, Seat]) -> tuple[Split, ...]:
    found = []
    for name in ("train", "val", "test"):
        own = [seat for seat in seats.values() if seat.split == name]
        sick = sum(seat.label for seat in own)
        if own:
            found.append(Split(name, len(own), len({seat.group for seat in own}), len(own) - sick, sick))
    return tuple(found)


def _environment(tags: Mapping[str, str]) -> dict[str, str]:
    found = {words: tags[name] for name, words in FACTS.items() if name in tags}
    versions = sorted(name for name in tags if name.startswith(VERSION) and name not in FACTS)
    return found | {name.removeprefix(VERSION): tags[name] for name in versions}


def _machine(tags: Mapping[str, str]) -> str:
    return ", ".join(tags[name] for name in ("xray_opt.host", "xray_opt.device", "xray_opt.cpu") if name in tags)


def _files(connection: Connection, run: str, folder: Path, films: bool) -> dict[str, bytes]:
    wanted = [name for name in ARTIFACTS if films or name not in SHOWING_FILMS]
    wanted += sorted(name for name in artifact_names(connection, run, None) if name.startswith(OUTSIDE))
    found = {name: run_file(connection, run, name, folder) for name in wanted}
    return {name: path.read_bytes() for name, path in found.items() if path is not None}
