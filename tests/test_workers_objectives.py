"""A study with two objectives, conditional settings and several image sizes, from ``tune`` to the report."""

import json
from pathlib import Path

import pytest
from conftest import Place, make_place

from xray_opt.config import TrackingConfig
from xray_opt.mlflow_client import connect
from xray_opt.tuning import read_study

TWO = """
name: two
trials: 4
objectives: [val.f1, robustness]
config:
  data: {train_films: 40, val_films: 24}
  image: {size: 32}
  model: {base: random, batch_norm: train}
  lora: {rank: 4, stages: late}
  training: {epochs: 1, batch_size: 8, device: cpu}
  tracking: {system_interval: 0.0}
space:
  model.strategy: {type: categorical, choices: [lora, linear]}
  lora.rank: {type: categorical, choices: [2, 8], when: {model.strategy: lora}}
  image.size: {type: categorical, choices: [32, 48]}
  loss.label_smoothing: {type: float, low: 0.0, high: 0.2}
  augment.recompress: {type: categorical, choices: [0.0, 0.5]}
sampler: {name: tpe, startup_trials: 2}
enqueue:
  - {model.strategy: lora, lora.rank: 8, image.size: 32, augment.recompress: 0.5}
  - {model.strategy: linear, image.size: 48}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Place:
    place = make_place(tmp_path_factory.mktemp("two") / "own")
    (place.workspace.studies / "two.yaml").write_text(TWO)
    return place


@pytest.fixture(scope="module")
def tuned_two(place) -> tuple[dict, str]:
    done = place.run("tune", "--study", "two", "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def runs(place):
    record = read_study("two", place.workspace)
    client = connect(TrackingConfig(), place.workspace).client
    return {t.number: client.get_run(t.notes["mlflow_run"]) for t in record.trials}, client


def test_the_study_ends_with_its_number_and_its_front(place, tuned_two):
    told, lines = tuned_two
    record = read_study("two", place.workspace)
    assert (told["complete"], told["pruned"], told["failed"]) == (4, 0, 0)
    assert [one[0] for one in told["front"]] == [trial.number for trial in record.front]
    assert all(0 <= trial.second <= 1 for trial in record.trials)
    assert f"robustness {record.trials[0].second:.4f}"[:14] in lines
    assert (told["best"]["trial"], told["registered"]["aliases"]) == (record.front[0].number, ["champion"])


def test_both_stores_agree_on_values_sizes_and_what_was_searched(place, tuned_two):
    record, (found, _) = read_study("two", place.workspace), runs(place)
    for trial in record.trials:
        run = found[trial.number]
        assert (trial.state, run.info.status) == ("COMPLETE", "FINISHED")
        assert run.data.metrics["objective.robustness"] == trial.second
        assert run.data.metrics["best.f1"] == trial.value
        assert run.data.params["image.size"] == str(trial.params["image.size"])
        searched = run.data.tags["xray_opt.searched"].split(", ")
        assert searched == sorted(trial.params)
        assert ("lora.rank" in searched) == (trial.params["model.strategy"] == "lora")
    assert found[1].data.params["lora.rank"] == "4", "the study's fixed value, where it is not searched"
    assert len(list(place.workspace.caches.glob("*/cache.json"))) == 2


def test_the_registered_model_is_of_the_best_f1_and_knows_its_second_value(place, tuned_two):
    record, (_, client) = read_study("two", place.workspace), runs(place)
    version = client.get_model_version_by_alias("xray-pneumonia", "champion")
    assert version.run_id == record.best.notes["mlflow_run"]
    assert float(version.tags["objective.robustness"]) == pytest.approx(record.best.second, abs=1e-5)


def test_leaderboards_mark_the_front(place, tuned_two):
    record = read_study("two", place.workspace)
    board = place.json("compare", "two")
    assert (board["second"], board["front"]) == ("robustness", [trial.number for trial in record.front])
    assert [trial["number"] for trial in board["trials"]] == [trial.number for trial in record.ranked]
    text = place.run("compare", "two").stdout
    assert text.count("★") == len(record.front)
    shown = place.json("study", "show", "two")
    assert shown["importances"].keys() == {"val.f1", "robustness"}
    assert "robustness" in place.run("study", "show", "two").stdout
    note = connect(TrackingConfig(), place.workspace).client.get_run(record.notes["mlflow_parent"]).data.tags
    assert note["mlflow.note.content"].count("★") == len(record.front)


def test_the_report_has_the_front(place, tuned_two):
    made = place.json("report", "two")
    shown = Path(made["page"]).read_text()
    assert '<section id="front"' in shown
    assert all(f'id="{name}"' in shown for name in ("front-best", "front-stairs", "importances-second-title"))


def test_the_same_command_again_does_nothing_and_shows_the_front(place, tuned_two):
    again = place.run("tune", "--study", "two")
    assert "nothing to do" in again.stdout
    assert "Pareto front: trial" in again.stdout


@pytest.mark.slow
def test_confirm_takes_its_settings_from_the_front(place, tuned_two):
    record = read_study("two", place.workspace)
    done = place.run("confirm", "--study", "two", "--top", "9", "--seeds", "2", "--json")
    assert done.returncode == 0, done.stderr
    assert "settings on its Pareto front" in done.stderr
    assert [one["trial"] for one in json.loads(done.stdout)["settings"]] == [trial.number for trial in record.front]
    _, client = runs(place)
    parent = record.notes["mlflow_parent"]
    experiment = client.get_run(parent).info.experiment_id
    retrained = [
        run
        for run in client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'")
        if "xray_opt.confirms" in run.data.tags
    ]
    assert all("objective.robustness" in run.data.metrics for run in retrained)
    sizes = {run.data.tags["xray_opt.confirms"]: run.data.params["image.size"] for run in retrained}
    assert sizes == {str(trial.number): str(trial.params["image.size"]) for trial in record.front}
