"""``xray-opt sync``: what tune and train kept while MLflow was away gets there, and is settled as if it never was."""

from __future__ import annotations

import fcntl
import json
import re
import signal
import sqlite3
import uuid
from contextlib import closing

import forked
import pytest
from conftest import STUDY
from front import Faulty
from test_launchers import Listening, slots_of

from xray_opt.config import StudyConfig, TrackingConfig, Workspace
from xray_opt.experiment import run_experiment
from xray_opt.mlflow_client import connect
from xray_opt.places import PARENT
from xray_opt.settling import POSTPONED, done_with, note_postponed
from xray_opt.spool import Spool, spool_files
from xray_opt.syncing import sync
from xray_opt.tracking import send_left_behind
from xray_opt.tuning import existing_study, read_study

pytestmark = pytest.mark.slow
STATES = {"COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAIL": "FAILED"}


@pytest.fixture
def faulty(server):
    """The server behind a front that can fail."""
    with Faulty(server) as front:
        yield front


@pytest.fixture
def study(place):
    """A study of a name of its own, which is its registered model's, too: tests share the server."""
    name = f"tiny-{uuid.uuid4().hex[:8]}"
    text = STUDY.replace("name: tiny", f"name: {name}")
    text = text.replace("system_interval: 1.0", f"system_interval: 1.0, registered_model: {name}")
    (place.workspace.studies / f"{name}.yaml").write_text(text)
    return name


def runs_of(faulty, place, study):
    """The connection, the study's run and the runs of its trials; each there once."""
    connection = connect(TrackingConfig(uri=faulty.uri), place.workspace)
    experiment = connection.client.get_experiment_by_name(study).experiment_id
    runs = connection.client.search_runs([experiment])
    (parent,) = [run for run in runs if run.data.tags["xray_opt.role"] == "study"]
    trials = [run for run in runs if run.data.tags["xray_opt.role"] == "trial"]
    numbers = [int(run.data.tags["xray_opt.trial"]) for run in trials]
    assert len(set(numbers)) == len(numbers)
    return connection, parent, dict(zip(numbers, trials, strict=True))


def check_agreement(faulty, place, study):
    """Both stores tell the same of every trial: states, params, every epoch's value once, the adapter's files."""
    connection, parent, runs = runs_of(faulty, place, study)
    trials = [trial for trial in read_study(study, place.workspace).trials if trial.state != "WAITING"]
    assert sorted(runs) == [trial.number for trial in trials]
    for trial in trials:
        run = runs[trial.number]
        assert (run.info.status, run.data.tags.get("reason")) == (STATES[trial.state], trial.reason)
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert {name: float(run.data.params[name]) for name in trial.params} == dict(trial.params)
        history = connection.client.get_metric_history(run.info.run_id, "val.f1")
        points = [(point.step, point.value) for point in history]
        assert points[: len(trial.intermediate)] == sorted(trial.intermediate.items())
        assert len(points) - len(trial.intermediate) in (0, int(trial.state == "FAIL"))
        if trial.state == "COMPLETE":
            assert run.data.metrics["best.f1"] == trial.value
            assert connection.client.list_artifacts(run.info.run_id, "adapter")
    return connection, parent, runs


def check_champion(connection, place, study, runs):
    best = read_study(study, place.workspace).best
    champion = connection.client.get_model_version_by_alias(study, "champion")
    assert champion.run_id == runs[best.number].info.run_id
    assert len(connection.client.search_model_versions(f"name = '{study}'")) == 1


def test_a_study_whose_server_is_away_from_start_to_end(place, faulty, study):
    faulty.mood = "down"
    tune = ("tune", "--study", study, "--trials", "2", "--tracking-uri", faulty.uri)
    done = place.run(*tune, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["complete"], report["registered"], report["mlflow_experiment"]) == (2, None, None)
    assert report["waiting"] > 10
    assert done.stderr.count("training goes on") == 1
    (line,) = [line for line in done.stderr.splitlines() if "run xray-opt sync" in line]
    assert re.match(r"\d+ writes wait for MLflow at http.*registers the best adapter", line)
    away = place.run("sync")
    assert (away.returncode, away.stderr.count("error:"), "still wait" in away.stderr) == (7, 1, True), away.stderr
    kept = place.run("study", "delete", study, "--yes")
    assert (kept.returncode, "run xray-opt sync first" in kept.stderr) == (7, True), kept.stderr
    asked = ("compare", study), ("report", study), ("finalize", "--study", study), ("promote", "--study", study)
    told = [away.stderr, line, *(place.run(*command).stderr for command in asked)]
    assert all(text.count("\n") <= 1 and f"MLflow server answers at {faulty.uri}" in text for text in told[2:]), told
    assert not [text for text in told if "HTTPConnectionPool" in text], told

    faulty.mood = "ok"
    sent = place.json("sync")
    assert (sent["sent"], sent["waiting"], sent["problems"]) == (report["waiting"], 0, [])
    assert sent["registered"] == {study: {"name": study, "version": "1"}}
    connection, parent, runs = check_agreement(faulty, place, study)
    assert (parent.info.status, parent.data.metrics["trials.complete"]) == ("FINISHED", 2)
    assert [item.path for item in connection.client.list_artifacts(parent.info.run_id, "base")]
    check_champion(connection, place, study, runs)
    assert read_study(study, place.workspace).notes[PARENT] == parent.info.run_id
    again = place.run("sync")
    assert (again.returncode, again.stdout.strip()) == (0, "nothing to do: nothing waits for MLflow")
    # The study goes on where it was, in the same runs.
    more = place.run("tune", "--study", study, "--trials", "3", "--tracking-uri", faulty.uri)
    assert more.returncode == 0, more.stderr
    _, after, _ = check_agreement(faulty, place, study)
    assert after.info.run_id == parent.info.run_id


def test_a_server_that_is_away_for_a_while_and_a_worker_killed_meanwhile(place, faulty, study):
    """The worker that takes its place meets a refused login; and somebody calls ``sync`` beside the running tune."""
    process = forked.fork(
        place,
        *("tune", "--study", study, "--trials", "4", "--workers", "2", "--tracking-uri", faulty.uri),
        *("--set", "training.epochs=4", "--json"),
    )
    heard = Listening(process)
    heard.wait_for(r"trial \d+ · epoch 1/4")
    faulty.mood = "down"
    heard.wait_for(r"training goes on")
    faulty.mood = 401
    slots_of(place)[0].send_signal(signal.SIGKILL)
    heard.wait_for(r"is started again")
    heard.wait_for(r"trial \d+: val F1")
    faulty.mood = "ok"
    beside = place.run("sync")
    assert beside.returncode in (0, 7), beside.stderr
    code, out = heard.end()
    assert code == 0, heard.text
    report = json.loads(out)
    assert (report["complete"] + report["pruned"], report["waiting"]) == (4, 0), heard.text
    connection, parent, runs = check_agreement(faulty, place, study)
    assert parent.info.status == "FINISHED"
    check_champion(connection, place, study, runs)
    assert spool_files(place.workspace.spool) == []


def test_a_call_that_is_killed_while_the_server_is_away(place, faulty, study):
    faulty.mood = "down"
    tune = ("tune", "--study", study, "--trials", "2", "--tracking-uri", faulty.uri)
    process = forked.fork(place, *tune)
    heard = Listening(process)
    heard.wait_for(r"trial 1 · epoch 1/2")
    process.kill()
    heard.end()
    faulty.mood = "ok"
    both = [forked.fork(place, "sync") for _ in range(2)]
    heard = [Listening(process) for process in both]
    told = [(one.end(), one.text) for one in heard]
    assert {process.returncode for process in both} == {0}, told
    assert sum(int(sent) for (_, out), _ in told for sent in re.findall(r"(\d+) writes sent", out)) > 10
    assert place.json("sync")["waiting"] == 0
    assert spool_files(place.workspace.spool) == []
    _, _, runs = runs_of(faulty, place, study)
    assert {number: run.info.status for number, run in runs.items()} == {0: "FINISHED", 1: "FAILED"}
    done = place.run(*tune)
    assert done.returncode == 0, done.stderr
    connection, _, runs = check_agreement(faulty, place, study)
    check_champion(connection, place, study, runs)


def test_a_study_that_another_host_settles_meanwhile_is_settled_again(place, faulty, study, monkeypatch):
    faulty.mood = "down"
    process = forked.fork(place, "tune", "--study", study, "--trials", "2", "--tracking-uri", faulty.uri)
    heard = Listening(process)
    heard.wait_for(r"trial 1 · epoch 1/2")
    process.kill()
    heard.end()
    faulty.mood = "ok"
    opened = existing_study(StudyConfig(study), place.workspace)
    note_postponed(opened, lambda now: {"tags": {}}, print)
    noted = opened.notes[POSTPONED]

    def meanwhile(connection, spool, remember):
        def remembered(tags):
            remember(tags)
            done_with(noted, opened, print)

        return send_left_behind(connection, spool, remembered)

    monkeypatch.setattr("xray_opt.syncing.send_left_behind", meanwhile)
    report = sync(place.workspace)
    assert (report.waiting, report.settled) == (0, [study])
    _, _, runs = runs_of(faulty, place, study)
    assert {number: run.info.status for number, run in runs.items()} == {0: "FINISHED", 1: "FAILED"}
    assert not opened.notes.get(POSTPONED)


def test_a_second_sync_waits_for_the_first_and_says_so(place):
    place.workspace.mlruns.mkdir(exist_ok=True)
    with (place.workspace.mlruns / ".sync.lock").open("w") as first:
        fcntl.flock(first, fcntl.LOCK_EX)
        process = forked.fork(place, "sync")
        heard = Listening(process)
        heard.wait_for("another xray-opt sync is at work here: waiting for its end")
        assert process.poll() is None
        fcntl.flock(first, fcntl.LOCK_UN)
    assert heard.end() == (0, "nothing to do: nothing waits for MLflow\n")


@pytest.mark.parametrize("facts", ["{garbage", "[1]", "{}", '{"uri": "http://localhost:1"}'])
def test_a_file_that_does_not_tell_whose_it_is_is_named_and_stays(tmp_path, facts):
    workspace = Workspace(tmp_path)
    spool = Spool.create(workspace.spool, {"uri": "http://localhost:1", "experiment": "e", "tags": {}})
    spool.append("waiting-1", "create", {})
    spool.close()
    with closing(sqlite3.connect(spool.path)) as base, base:
        base.execute("UPDATE about SET facts = ?", [facts])
    (line,) = sync(workspace).problems
    assert spool.path.name in line
    assert "damaged" in line
    assert spool_files(workspace.spool) == [spool.path]


def test_what_is_refused_is_named_and_stays(place, faulty, study):
    faulty.mood = "down"
    assert place.run("tune", "--study", study, "--trials", "1", "--tracking-uri", faulty.uri).returncode == 0
    faulty.mood = 403
    refused = place.run("sync")
    assert (refused.returncode, refused.stderr.count("error:")) == (7, 1), refused.stderr
    assert "MLFLOW_TRACKING_USERNAME" in refused.stderr
    assert spool_files(place.workspace.spool)


def test_a_single_run_waits_as_well(place, faulty, study):
    faulty.mood = "down"
    train = ("train", "--study", study, "--name", study, "--set", f"tracking.uri={faulty.uri}")
    done = place.run(*train)
    assert (done.returncode, "run xray-opt sync" in done.stderr) == (0, True), done.stderr
    faulty.mood = "ok"
    sent = place.json("sync")
    assert (sent["waiting"], sent["settled"]) == (0, [])
    client = connect(TrackingConfig(uri=faulty.uri), place.workspace).client
    experiment = client.get_experiment_by_name("train").experiment_id
    (run,) = client.search_runs([experiment], f"attributes.run_name = '{study}'")  # the server is others', too
    assert run.info.status == "FINISHED"
    assert [point.step for point in client.get_metric_history(run.info.run_id, "val.f1")] == [1, 2]
    assert {item.path for item in client.list_artifacts(run.info.run_id)} == {
        "adapter",
        "base",
        "data",
        "val_predictions.csv",
    }


def test_confirm_trains_on_while_the_server_is_away_and_judges_when_it_is_back(place, faulty, study, monkeypatch):
    def away_now(*arguments):
        faulty.mood = "down"
        return run_experiment(*arguments)

    tune = ("tune", "--study", study, "--trials", "1", "--tracking-uri", faulty.uri)
    assert place.run(*tune).returncode == 0
    confirm = ("confirm", "--study", study, "--top", "1", "--seeds", "2", "--tracking-uri", faulty.uri)
    faulty.mood = "down"
    away = place.run(*confirm)
    assert (away.returncode, away.stderr.count("error:"), "retraining 1" in away.stderr) == (7, 1, False), away.stderr
    faulty.mood = "ok"
    with monkeypatch.context() as patch:
        patch.setattr("xray_opt.confirm.confirming.run_experiment", away_now)
        done = place.run(*confirm)
    assert (done.returncode, "run it again then, none is lost" in done.stderr) == (7, True), done.stderr
    faulty.mood = "ok"
    again = place.run(*confirm)
    assert again.returncode == 0, again.stderr
    assert "2 of 2 retrainings are done already" in again.stderr
    assert len(read_study(study, place.workspace).notes["confirmation"]["settings"]) == 1
