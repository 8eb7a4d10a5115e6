"""A whole study through the command line: states agree, continuing, kills, registration."""

import csv
import io
import json
import os
import signal
import time
from pathlib import Path

import pytest

from xray_opt import tracking
from xray_opt.config import TrackingConfig
from xray_opt.mlflow_client import connect
from xray_opt.tuning import delete_study, read_study

STATES = {"COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAIL": "FAILED"}


def client(place):
    return connect(TrackingConfig(), place.workspace).client


def child_runs(place, study="tiny"):
    mlflow = client(place)
    experiment = mlflow.get_experiment_by_name(study)
    runs = mlflow.search_runs([experiment.experiment_id], max_results=1000)
    return {int(run.data.tags["xray_opt.trial"]): run for run in runs if "xray_opt.trial" in run.data.tags}


def check_agreement(place, study="tiny", storage=None):
    """Optuna and MLflow agree trial by trial: states, params, every epoch's value once."""
    mlflow, runs = client(place), child_runs(place, study)
    trials = [trial for trial in read_study(study, place.workspace, storage).trials if trial.state != "WAITING"]
    assert sorted(runs) == [trial.number for trial in trials]
    for trial in trials:
        run = runs[trial.number]
        assert run.info.status == STATES[trial.state]
        assert run.info.run_id == trial.notes["mlflow_run"]
        for name, value in trial.params.items():
            assert float(run.data.params[name]) == value
        logged = mlflow.get_metric_history(run.info.run_id, "val.f1")
        points, reported = sorted((point.step, point.value) for point in logged), sorted(trial.intermediate.items())
        # A kill or Ctrl-C may fall between logging an epoch and reporting it; the trial that resumes reports it.
        ahead = 1 if trial.reason in ("worker-lost", "interrupted") else 0
        assert points[: len(reported)] == reported
        assert len(points) - len(reported) in (0, ahead)
        if trial.state == "FAIL":
            assert run.data.tags["reason"] == trial.reason
    return trials, runs


def test_a_study_ends_with_its_number_and_both_stores_agree(tuned):
    place, report, _ = tuned
    assert (report["complete"], report["pruned"], report["failed"], report["stopped"]) == (3, 0, 0, "done")
    trials, _ = check_agreement(place)
    assert len(trials) == 3
    assert trials[0].params == {"optimizer.learning_rate": 2e-3, "lora.rank": 4}


def test_progress_lines_say_where_the_study_is(tuned):
    _, _, lines = tuned
    assert "RANDOM" in lines
    assert "trial 0 (1 of 3)" in lines
    assert "trial 2 (3 of 3)" in lines
    assert "shortcut screen" in lines
    assert "to go" in lines


def test_the_value_is_the_recorded_fp32_score_of_the_saved_adapter(tuned):
    place, report, _ = tuned
    trials, runs = check_agreement(place)
    for trial in trials:
        metrics = runs[trial.number].data.metrics
        assert metrics["best.f1"] == trial.value
        assert trial.value == max(trial.intermediate.values())
    assert report["best"]["val.f1"] == max(trial.value for trial in trials)


def test_the_parent_run_describes_the_study(tuned):
    place, _, _ = tuned
    mlflow = client(place)
    parent = mlflow.get_run(read_study("tiny", place.workspace).notes["mlflow_parent"])
    assert parent.info.status == "FINISHED"
    assert 0 <= parent.data.metrics["shortcut.thumbnail_auc"] <= 1
    assert parent.data.metrics["trials.complete"] == 3
    assert "| trial |" in parent.data.tags["mlflow.note.content"]
    assert {item.tags[0].value for item in parent.inputs.dataset_inputs} == {"training", "validation"}
    assert [item.path for item in mlflow.list_artifacts(parent.info.run_id, "base")] == ["base/base.safetensors"]


def test_every_complete_trial_keeps_its_adapter_and_its_environment(tuned):
    place, _, _ = tuned
    mlflow = client(place)
    for run in child_runs(place).values():
        names = {item.path for item in mlflow.list_artifacts(run.info.run_id, "adapter")}
        assert {"adapter/bundle.json", "adapter/adapter_model.safetensors", "adapter/head.safetensors"} <= names
        assert run.data.params["training.seed"] == "0"
        digests = {run.data.tags[f"xray_opt.{name}_sha256"] for name in ("data", "manifest", "base")}
        assert [len(digest) for digest in digests] == [64] * 3
        assert any(name.startswith("system/") for name in run.data.metrics)


def test_the_best_are_logged_models_with_their_scores(tuned):
    place, _, _ = tuned
    mlflow = client(place)
    experiment = mlflow.get_experiment_by_name("tiny").experiment_id
    models = [m for m in mlflow.search_logged_models([experiment]) if m.name.startswith("trial-")]
    assert {model.name for model in models} == {"trial-000", "trial-001", "trial-002"}
    assert all(model.metrics for model in models)


def test_again_does_nothing_and_says_so(tuned):
    place, _, _ = tuned
    before = {number: run.info.end_time for number, run in child_runs(place).items()}
    done = place.run("tune", "--study", "tiny")
    assert done.returncode == 0
    assert "nothing to do" in done.stdout
    assert {number: run.info.end_time for number, run in child_runs(place).items()} == before


def test_changed_rules_are_refused_with_one_line(tuned):
    place, _, _ = tuned
    done = place.run("tune", "--study", "tiny", "--trials", "4", "--set", "training.epochs=3")
    assert done.returncode == 6
    assert "training.epochs was 2, now it is 3" in done.stderr
    assert done.stderr.count("error:") == 1
    assert "Traceback" not in done.stderr
    assert len(read_study("tiny", place.workspace).trials) == 3


def test_the_champion_predicts_as_recorded_in_a_fresh_process(tuned):
    place, report, _ = tuned
    assert report["registered"] == {"name": "xray-pneumonia", "version": "1", "aliases": ["champion"]}
    mlflow = client(place)
    run_id = child_runs(place)[report["best"]["trial"]].info.run_id
    path = mlflow.download_artifacts(run_id, "val_predictions.csv")
    recorded = {row["film"]: float(row["probability"]) for row in csv.DictReader(io.StringIO(Path(path).read_text()))}
    films = [str(place.films / name) for name in sorted(recorded)]
    rows = list(csv.DictReader(io.StringIO(place.fresh("predict", *films, "--csv").stdout)))
    assert len(rows) == len(recorded) >= 10
    for name, row in zip(sorted(recorded), rows, strict=True):
        assert float(row["probability"]) == pytest.approx(recorded[name], abs=1e-5)
        assert row["label"] == ("PNEUMONIA" if float(row["probability"]) >= float(row["threshold"]) else "NORMAL")


def wait_for_line(process, text, seconds=300):
    deadline = time.monotonic() + seconds
    seen = []
    while time.monotonic() < deadline:
        line = process.stderr.readline()
        seen.append(line)
        if text in line:
            return
        assert line or process.poll() is None, "".join(seen)
    raise AssertionError("".join(seen))


def test_states_that_came_apart_are_repaired_by_the_next_call(place):
    place.json("tune", "--study", "tiny", "--trials", "1")
    mlflow, (run,) = client(place), child_runs(place).values()
    mlflow.set_terminated(run.info.run_id, "FAILED")
    done = place.run("tune", "--study", "tiny", "--trials", "1")
    assert "1 MLflow run brought to FINISHED" in done.stderr
    check_agreement(place)


def test_a_study_is_kept_in_one_mlflow_store(place, tmp_path):
    place.json("tune", "--study", "tiny", "--trials", "1")
    done = place.run("tune", "--study", "tiny", "--trials", "2", "--tracking-uri", f"sqlite:///{tmp_path}/other.db")
    assert (done.returncode, done.stderr.count("error:")) == (7, 1), done.stderr
    assert all(words in done.stderr for words in ("mlruns/mlflow.db", "other.db", "--name"))
    assert len(read_study("tiny", place.workspace).trials) == 1


def test_a_study_made_anew_does_not_touch_the_runs_of_the_one_before(place):
    """Deleted in optuna-dashboard, say: MLflow still holds the old runs."""
    first = place.json("tune", "--study", "tiny", "--trials", "1")
    old = read_study("tiny", place.workspace).notes["mlflow_parent"]
    delete_study("tiny", place.workspace)
    again = place.json("tune", "--study", "tiny", "--trials", "1")
    new = read_study("tiny", place.workspace).notes["mlflow_parent"]
    assert new != old
    assert again["mlflow_experiment"] == first["mlflow_experiment"]
    connection = connect(TrackingConfig(), place.workspace)
    kept = tracking.child_runs(connection, new)
    assert [run.info.status for run in kept] == ["FINISHED"]
    models = connection.client.search_logged_models([again["mlflow_experiment"]])
    assert [model.tags["xray_opt.role"] for model in models].count("ranked") == 2
    garbage = {item["name"] for item in place.json("gc", "--dry-run") if item["what"] == "run"}
    assert old in garbage
    assert not garbage & {run.info.run_id for run in kept}


@pytest.mark.slow
def test_a_killed_study_goes_on_to_exactly_its_number(place):
    process = place.start("tune", "--study", "tiny")
    wait_for_line(process, "trial 1 · epoch 1/2")
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert read_study("tiny", place.workspace).count("RUNNING") == 1
    report = place.json("tune", "--study", "tiny")
    assert (report["complete"], report["failed"]) == (3, 1)
    trials, runs = check_agreement(place)
    assert [t.state for t in trials].count("RUNNING") == 0
    lost = next(trial for trial in trials if trial.state == "FAIL")
    resumed = next(trial for trial in trials if trial.notes.get("retry_of") == lost.number)
    assert (lost.reason, resumed.params) == ("worker-lost", lost.params)
    assert resumed.intermediate[1] == lost.intermediate.get(1, resumed.intermediate[1])
    assert runs[resumed.number].data.tags["xray_opt.retry_of"] == str(lost.number)
    assert not list((place.workspace.study_folder("tiny") / "checkpoints").glob("*"))


@pytest.mark.slow
def test_the_last_worker_ends_the_studys_run(place):
    """A call that ends while another one trains leaves the study's run RUNNING."""
    long = ("tune", "--study", "tiny", "--set", "training.epochs=200", "--set", "training.early_stopping_patience=200")
    process = place.start(*long)
    wait_for_line(process, "trial 0 · epoch 1/200")
    assert place.json(*long, "--timeout", "0")["stopped"] == "timeout"
    parent = read_study("tiny", place.workspace).notes["mlflow_parent"]
    status = client(place).get_run(parent).info.status
    assert (status, process.poll()) == ("RUNNING", None)
    process.terminate()
    process.communicate(timeout=400)
    assert client(place).get_run(parent).info.status == "KILLED"


@pytest.mark.slow
def test_an_interrupted_study_equals_an_uninterrupted_one(place, tuned):
    process = place.start("tune", "--study", "tiny")
    wait_for_line(process, "trial 0 · epoch 1/2")
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=400)
    assert process.returncode == 130
    assert "run the same command again" in rest
    assert "Traceback" not in rest
    assert read_study("tiny", place.workspace).count("RUNNING") == 0
    report = place.json("tune", "--study", "tiny")
    assert report["complete"] == 3
    check_agreement(place)
    resumed = [t for t in read_study("tiny", place.workspace).trials if t.notes.get("retry_of") == 0]
    straight = read_study("tiny", tuned[0].workspace).trials[0]
    assert [dict(trial.intermediate) for trial in resumed] == [dict(straight.intermediate)]


def test_the_study_is_json_for_scripts(tuned):
    place, _, _ = tuned
    shown = place.json("study", "show", "tiny")
    assert json.dumps(shown)
    assert [trial["state"] for trial in shown["trials"]] == ["COMPLETE"] * 3


def test_a_trial_and_its_run_lead_to_each_other(tuned):
    place, _, _ = tuned
    from xray_opt.tuning.storage import open_storage

    storage = open_storage(f"sqlite:///{place.workspace.study_database}")
    study_id = storage.get_study_id_from_name("tiny")
    words, runs = storage.get_study_system_attrs(study_id), child_runs(place)
    for trial in storage.get_all_trials(study_id):
        run = runs[trial.number]
        page = f"http://127.0.0.1:8080/dashboard/studies/{study_id}/trials?numbers={trial.number}"
        assert run.data.tags["xray_opt.dashboard"] == page
        assert (
            run.data.tags["mlflow.note.content"] == f"[Trial {trial.number} of study tiny in optuna-dashboard]({page})"
        )
        page = f"http://127.0.0.1:5000/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
        assert trial.user_attrs["mlflow_page"] == page
        assert words[f"dashboard:{trial._trial_id}:note_str:0"] == f"[Run of trial {trial.number} in MLflow]({page})"
