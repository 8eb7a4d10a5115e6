"""Models that look at no lungs beside a model that is scored: the same ones everywhere, and why there are none."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from xray_opt.config import LossConfig, TrackingConfig, find_study, load_study
from xray_opt.dataset import BASELINES, Manifest, prepared, trivial_models
from xray_opt.ledger import TRIVIAL_RECORD
from xray_opt.metrics import scores
from xray_opt.mlflow_client import connect
from xray_opt.scoring import FilmCases, film_cases
from xray_opt.scoring.trivial import beside
from xray_opt.tuning import read_study

LOSS = LossConfig()


@pytest.fixture(scope="module")
def own(tuned) -> Manifest:
    place, _, _ = tuned
    return prepared(load_study(find_study("tiny", place.workspace)).config.data, place.workspace)


def perfect(films) -> FilmCases:
    return film_cases(films, np.array([6.0 * film.label - 3 for film in films]), 1.0, LOSS)


def test_evaluate_shows_what_the_model_gains_over_each(tuned, own) -> None:
    place, _, _ = tuned
    found = place.json("evaluate")
    first, second = found["baselines"]
    assert {first["name"], second["name"]} == set(BASELINES)
    labels = [film.label for film in own.of("val")]
    for name, said in trivial_models(own, (own, own.of("val"))).items():
        (one,) = (one for one in (first, second) if one["name"] == name)
        area = one["image"]["scores"]["auc"]["value"]
        assert area == pytest.approx(scores(labels, said).auc)
        assert one["image"]["scores"]["f1"]["value"] == pytest.approx(scores(labels, said, one["threshold"]).f1)
        gain = one["gains"]["auc"]
        assert gain["value"] == pytest.approx(found["image"]["scores"]["auc"]["value"] - area)
        assert gain["why"] or gain["low"] <= gain["value"] <= gain["high"]
    assert first["image"]["scores"]["auc"]["value"] >= second["image"]["scores"]["auc"]["value"]
    client = connect(TrackingConfig(), place.workspace).client
    run = read_study("tiny", place.workspace).best.notes["mlflow_run"]
    kept = json.loads(Path(client.download_artifacts(run, TRIVIAL_RECORD)).read_text())
    assert [one["gains"]["auc"] for one in kept["models"]] == [one["gains"]["auc"] for one in found["baselines"]]
    assert kept["image"]["scores"]["auc"] == found["image"]["scores"]["auc"]
    assert not [film.path for film in own.films if film.path in json.dumps(kept)]
    shown = place.run("evaluate").stdout
    assert f"gain over {first['name']}: AUC {first['gains']['auc']['value']:+.4f}" in shown
    assert max(map(len, shown.splitlines())) <= 80
    scored, gained = (shown.partition(head)[2].splitlines() for head in ("same films", "gain over"))
    for one in (first, second):
        row = next(line for line in scored if line.strip().startswith(one["name"]))
        f1 = one["image"]["scores"]["f1"]
        ends = "-" if f1["low"] is None else f"{f1['low']:.3f} to {f1['high']:.3f}"
        assert " ".join(row.split()).endswith(f"{f1['value']:.4f} {ends}")
        assert f"{one['gains']['f1']['value']:.4f}" in next(
            line for line in gained if line.strip().startswith(one["name"])
        )


def test_train_films_have_none_and_it_is_said_why(tuned) -> None:
    place, _, _ = tuned
    found = place.json("evaluate", "--split", "train")
    assert (found["baselines"], found["no_baselines"]) == ([], "trivial models are fitted to these very films")
    assert "beside no trivial models: trivial models are fitted" in place.run("evaluate", "--split", "train").stdout
    left = place.json("evaluate", "--no-baselines")
    assert (left["baselines"], left["no_baselines"]) == ([], "left out, as asked")


def test_films_of_another_folder_are_read_there(own, tmp_path) -> None:
    """The film's own place is asked, not that of the training films: those of other patients in a copy elsewhere."""
    films = own.of("val")
    shutil.copytree(own.root, tmp_path / "copy")
    there = replace(own, root=str(tmp_path / "copy"))
    found = beside(own, there, films, perfect(films), 0.5, LOSS)
    assert {one.name for one in found.models} == set(BASELINES)
    shutil.rmtree(there.root)
    gone = beside(own, there, films, perfect(films), 0.5, LOSS)
    assert (gone.models, gone.why.partition(": ")[0]) == ((), "trivial models cannot be fitted here")


@pytest.mark.parametrize("kept", [3, 40])
def test_few_films_and_one_class_give_a_table_without_intervals(own, kept: int) -> None:
    films = tuple(film for film in own.of("val") if film.label)[:kept]
    found = beside(own, replace(own), films, perfect(films), 0.5, LOSS)
    assert len(found.models) == 2
    for one in found.models:
        assert np.isnan(one.gains["auc"].value)
        assert (one.gains["auc"].low, one.gains["auc"].why) == (None, "a class is missing that it needs")


def test_training_films_that_are_not_there_are_a_reason(own) -> None:
    films = own.of("val")
    assert "not known here" in beside(None, own, films, perfect(films), 0.5, LOSS).why
    moved = replace(own, root=own.root + "-that-is-gone")
    assert "cannot be fitted here" in beside(moved, own, films, perfect(films), 0.5, LOSS).why
    healthy = replace(own, films=tuple(film for film in own.films if film.split != "train" or not film.label))
    assert "of one class" in beside(healthy, own, films, perfect(films), 0.5, LOSS).why
