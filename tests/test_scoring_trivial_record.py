"""The gain over trivial models from the predictions that a run recorded: no network, and only the right films."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import put_phantoms

from xray_opt.config import DataConfig, Workspace
from xray_opt.dataset import BASELINES, Manifest, Pseudonyms, prepared
from xray_opt.errors import DataError
from xray_opt.intervals import Patients, scored
from xray_opt.metrics import Cases
from xray_opt.mlflow_client import Connection
from xray_opt.scoring import recorded_trivial
from xray_opt.tracking import MANIFEST, PREDICTIONS, log_run_predictions


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    return Workspace(tmp_path / "workspace")


@pytest.fixture
def own(workspace, tmp_path) -> Manifest:
    put_phantoms(tmp_path / "films", 60, 1)
    shares = {"train_fraction": 0.15, "val_fraction": 0.75, "test_fraction": 0.1}
    return prepared(DataConfig(root=str(tmp_path / "films"), **shares), workspace)


def run_of(connection: Connection, own: Manifest) -> str:
    experiment = connection.client.create_experiment(f"recorded {own.root}")
    return connection.client.create_run(experiment, tags={MANIFEST: own.sha256}).info.run_id


def test_recorded_predictions_and_the_films_give_gains_with_intervals(connection, workspace, own) -> None:
    run, films = run_of(connection, own), own.of("val")
    labels = np.array([film.label for film in films])
    # So sure that a logit could not tell them apart: the recorded probabilities themselves are ranked.
    ranks = np.argsort(np.argsort(labels + np.random.default_rng(3).normal(size=len(films))))
    said = 1 - (len(films) - ranks) * 2.0**-50
    said[ranks < len(films) // 3] /= 2
    where = connection, run, PREDICTIONS
    tags, told = {MANIFEST: own.sha256}, []
    with pytest.raises(DataError, match="keeps no validation predictions"):
        recorded_trivial(connection, run, tags, 0.6, workspace, told.append)
    log_run_predictions(*where, [film.path for film in films], labels, said, Pseudonyms(workspace))
    record = recorded_trivial(connection, run, tags, 0.6, workspace, told.append)
    assert [line.partition(":")[0] for line in told] == [f"reading {len(own.of('train')) + len(films)} films"]
    assert {one["name"] for one in record["models"]} == set(BASELINES)
    ours = scored(Cases(labels, said), Patients([film.group for film in films]), 0.6)
    assert record["image"]["scores"]["auc"]["value"] == ours["auc"].value
    for one in record["models"]:
        gain, f1 = one["gains"]["auc"], one["image"]["scores"]["f1"]
        assert gain["low"] < gain["value"] < gain["high"], "paired, with an interval"
        assert gain["value"] == pytest.approx(ours["auc"].value - one["image"]["scores"]["auc"]["value"])
        assert f1["low"] < f1["value"] < f1["high"]
    assert not [film.path for film in own.films if film.path in str(record)]


def test_predictions_of_other_films_or_labels_are_refused(connection, workspace, own) -> None:
    run, films, names = run_of(connection, own), own.of("val"), Pseudonyms(workspace)
    labels = [film.label for film in films]
    paths, tags = [film.path for film in films], {MANIFEST: own.sha256}
    half = [0.5] * len(films)
    for wrong in (
        ([*paths[1:], "other.png"], labels, half),
        (paths, [1 - label for label in labels], half),
        (paths[1:], labels[1:], half[1:]),
    ):
        log_run_predictions(connection, run, PREDICTIONS, *wrong, names)
        with pytest.raises(DataError, match="are not of the films that are known here"):
            recorded_trivial(connection, run, tags, 0.5, workspace, lambda line: None)


def test_of_two_places_of_the_same_films_the_one_that_is_there_is_read(connection, workspace, own, tmp_path) -> None:
    run, films = run_of(connection, own), own.of("val")
    paths, labels = [film.path for film in films], [film.label for film in films]
    log_run_predictions(connection, run, PREDICTIONS, paths, labels, labels, Pseudonyms(workspace))
    (tmp_path / "films").rename(tmp_path / "moved")
    tags = {MANIFEST: own.sha256}
    with pytest.raises(DataError, match=r"^the training films are not here: "):
        recorded_trivial(connection, run, tags, 0.5, workspace, lambda line: None)
    replace(own, root=str(tmp_path / "moved"), source=str(tmp_path / "moved")).save(workspace.manifests)
    assert recorded_trivial(connection, run, tags, 0.5, workspace, lambda line: None)["models"]
    Path(tmp_path / "moved", paths[0]).unlink()
    with pytest.raises(DataError, match=r"^1 of \d+ films of train and val are not here: "):
        recorded_trivial(connection, run, tags, 0.5, workspace, lambda line: None)
