"""Moving house between real stores: everything arrives once, whatever kills the move, and the study goes on there."""

import csv
import io
import itertools
import json
import os
import shutil
import signal
from contextlib import contextmanager
from pathlib import Path

import optuna
import pytest
from conftest import Place
from mlflow import MlflowClient
from mlflow_stores import tracking_server
from optuna.storages import RDBStorage
from postgres_server import postgres

from xray_opt import places
from xray_opt.config import TrackingConfig, Workspace
from xray_opt.errors import ConfigError, StudyError, TrackingError
from xray_opt.finalize import finalize
from xray_opt.migrate import migrate
from xray_opt.mlflow_client import connect
from xray_opt.settling import POSTPONED
from xray_opt.tuning import annotate, list_studies, read_study
from xray_opt.tuning.storage import open_storage

CHAMPION = "models:/xray-pneumonia@champion"
#: What changes in a copy on purpose.
REWRITTEN = {"xray_opt.storage", "xray_opt.dashboard", "mlflow.note.content", "mlflow.parentRunId"}
COPYING = {"xray_opt.migrated_from", "xray_opt.migrated"}
WRITES = ("create_run", "log_batch", "log_inputs", "set_terminated", "set_tag", "create_logged_model", "log_outputs")
WRITES += ("finalize_logged_model", "create_registered_model", "create_model_version", "set_logged_model_tags")
WRITES += ("set_registered_model_alias", "set_model_version_tag")
STORAGE_WRITES = ("create_new_study", "create_new_trial", "set_study_user_attr", "set_study_system_attr")


class Killed(BaseException):
    """Stands for the end of the process: nothing below catches it."""


@contextmanager
def killed_after(writes, monkeypatch):
    """Ends the move right before one write to a store; the counter is shared by both kinds of store."""
    left = itertools.count(writes, -1)

    def deadly(real):
        def call(*args, **kwargs):
            if next(left) <= 0:
                raise Killed
            return real(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for owner, names in ((MlflowClient, WRITES), (RDBStorage, STORAGE_WRITES)):
            for name in names:
                patch.setattr(owner, name, deadly(getattr(owner, name)))
        yield


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    for name in list(os.environ):
        if name.startswith(("MLFLOW_TRACKING", "XRAY_OPT_")):
            monkeypatch.delenv(name)


@pytest.fixture
def home(tuned, tmp_path):
    """A copy of the tuned workspace, to be moved out of."""
    place, _, _ = tuned
    shutil.copytree(place.workspace.root, tmp_path / "home")
    return Place(Workspace(tmp_path / "home"), tmp_path / "home" / "films")


def connection(workspace, uri=None):
    return connect(TrackingConfig(uri=uri or workspace.mlflow_uri), workspace)


def snapshot(client, experiment="tiny"):
    """Run name → everything that MLflow knows of a run, in an experiment."""
    found = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    runs = {}
    for run in map(client.get_run, [run.info.run_id for run in found]):
        points = [client.get_metric_history(run.info.run_id, key) for key in sorted(run.data.metrics)]
        runs.setdefault(run.info.run_name, []).append(
            {
                "times": (run.info.status, run.info.start_time, run.info.end_time),
                "params": run.data.params,
                "tags": {key: value for key, value in run.data.tags.items() if key not in REWRITTEN | COPYING},
                "points": sorted((p.key, p.step, p.timestamp, p.value) for part in points for p in part),
                "data": sorted((i.dataset.name, i.dataset.digest, i.tags[0].value) for i in run.inputs.dataset_inputs),
            }
        )
    return runs


def trials(workspace, storage=None):
    rows = []
    for trial in read_study("tiny", workspace, storage).trials:
        row = trial.to_dict()
        row["notes"] = {key: value for key, value in row["notes"].items() if not key.startswith("mlflow_")}
        rows.append(row)
    return rows


def predictions(place):
    films = sorted(map(str, (place.films / "val").rglob("*.jpeg")))[:4]
    done = place.run("predict", *films, "--csv")
    assert done.returncode == 0, done.stderr
    return [(row["probability"], row["label"]) for row in csv.DictReader(io.StringIO(done.stdout))]


def files_below(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def test_to_another_workspace_and_once_more(home, tmp_path):
    other = Workspace(tmp_path / "other")
    other.root.mkdir()
    before = snapshot(connection(home.workspace).client)
    for _ in range(2):
        report = home.json("migrate", "--to", str(other.root))
        assert report["studies"] == ["tiny"]
        counts = {row["what"]: (row["source"], row["target"]) for row in report["counts"]}
        assert counts["trials"] == (3, 3)
        assert counts["runs"] == (4, 4)
        assert counts["reported values"] == (6, 6)
        assert counts["registered versions"] == (1, 1)
        assert all(row["equal"] and row["source"] for row in report["counts"])
    client = connection(other).client
    assert snapshot(client) == before == snapshot(connection(home.workspace).client)
    assert trials(other) == trials(home.workspace)
    assert len(client.search_model_versions("name='xray-pneumonia'")) == 1
    assert int(client.get_model_version_by_alias("xray-pneumonia", "champion").version) == 1
    experiment = client.get_experiment_by_name("tiny").experiment_id
    models = client.search_logged_models([experiment])
    assert sorted(model.name for model in models) == ["trial-000", "trial-001", "trial-002", "xray-pneumonia"]
    assert all(model.metrics for model in models if model.name.startswith("trial-"))


def test_notes_lead_to_the_copies(home, tmp_path):
    other = Workspace(tmp_path / "other")
    other.root.mkdir()
    migrate(home.workspace, end=str(other.root))
    client, record = connection(other).client, read_study("tiny", other)
    parent = client.get_run(record.notes["mlflow_parent"])
    assert parent.data.tags["xray_opt.role"] == "study"
    assert record.notes["described"] == parent.info.run_id
    storage = open_storage(f"sqlite:///{other.study_database}")
    study_id = storage.get_study_id_from_name("tiny")
    words = storage.get_study_system_attrs(study_id)
    for trial, frozen in zip(record.trials, storage.get_all_trials(study_id), strict=True):
        run = client.get_run(trial.notes["mlflow_run"])
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.data.tags["xray_opt.trial"] == str(trial.number)
        page = f"http://127.0.0.1:5000/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
        assert trial.notes["mlflow_page"] == page
        assert f"({page})" in words[f"dashboard:{frozen._trial_id}:note_str:0"]
        there = f"http://127.0.0.1:8080/dashboard/studies/{study_id}/trials?numbers={trial.number}"
        assert run.data.tags["xray_opt.dashboard"] == there
        assert f"({there})" in run.data.tags["mlflow.note.content"]


def test_a_finalized_model_stays_so(home, tmp_path):
    """The record names runs: at the other end it is found by the copies' ids, and nothing is opened again."""
    here = places.Place(storage=f"sqlite:///{home.workspace.study_database}")
    final = finalize(CHAMPION, home.workspace, device="cpu", place=here)
    annotate("tiny", home.workspace, "confirmation", {"settings": [{"run": final.run}]})
    number = connection(home.workspace).client.get_model_version_by_alias("xray-pneumonia", "champion").version
    evidence = f"runs:/{final.run}/confirmation.json"
    connection(home.workspace).client.set_model_version_tag("xray-pneumonia", number, "xray_opt.evidence", evidence)
    other = Workspace(tmp_path / "other")
    other.root.mkdir()
    migrate(home.workspace, end=str(other.root))
    said = []
    moved = finalize(CHAMPION, other, data=str(home.films), device="cpu", say=said.append)
    assert "opened already" in said[0]
    assert moved.run != final.run
    assert moved.image == final.image
    record = read_study("tiny", other)
    opened = {item["run"] for item in record.notes["test_openings"]}
    assert moved.run in opened
    assert final.run not in opened
    assert record.notes["confirmation"] == {"settings": [{"run": moved.run}]}
    version = connection(other).client.get_model_version_by_alias("xray-pneumonia", "champion")
    assert version.tags["xray_opt.evidence"] == f"runs:/{moved.run}/confirmation.json"


def test_wherever_it_is_killed_the_next_call_goes_on(home, tmp_path, monkeypatch):
    other = Workspace(tmp_path / "other")
    other.root.mkdir()
    kills, half = 0, None
    for writes in (1, 2, 3, 5, 8, 11, 14, 17, 20, 23, 26, 29, 32, 35, 38, 41, 50, 200):
        try:
            with killed_after(writes, monkeypatch):
                migrate(home.workspace, end=str(other.root))
            break
        except Killed:
            kills += 1
        if half is None and any(study.notes.get("migrating") for study in list_studies(other)):
            half = other.root.with_name("half")
            shutil.copytree(other.root, half)
    assert kills >= 8
    assert migrate(home.workspace, end=str(other.root)).equal
    assert snapshot(connection(other).client) == snapshot(connection(home.workspace).client)
    assert trials(other) == trials(home.workspace)
    assert len(connection(other).client.search_model_versions("name='xray-pneumonia'")) == 1
    models = connection(other).client.search_logged_models(["1"])
    assert len(models) == 4

    unfinished = Place(Workspace(half), home.films)
    shutil.copytree(home.films, half / "films")
    shutil.copytree(home.workspace.data, half / "data", dirs_exist_ok=True)
    shutil.copy(home.workspace.studies / "tiny.yaml", half / "studies")
    done = unfinished.run("tune", "--study", "tiny")
    assert done.returncode == 6
    assert "half here" in done.stderr


def test_what_must_not_be_copied_is_refused(home, tmp_path, monkeypatch):
    other, workspace = Workspace(tmp_path / "other"), home.workspace
    other.root.mkdir()
    storage = open_storage(f"sqlite:///{workspace.study_database}")
    study_id = storage.get_study_id_from_name("tiny")
    number = storage.create_new_trial(study_id)
    with pytest.raises(StudyError, match="trial 3 of study tiny is RUNNING"):
        migrate(workspace, end=str(other.root))
    storage.set_trial_state_values(number, state=optuna.trial.TrialState.FAIL)
    annotate("tiny", workspace, POSTPONED, {"tags": {}})
    with pytest.raises(TrackingError, match="run xray-opt sync"):
        migrate(workspace, end=str(other.root))
    annotate("tiny", workspace, POSTPONED, None)
    with pytest.raises(StudyError, match="no study 'unknown'"):
        migrate(workspace, ["unknown"], end=str(other.root))
    with pytest.raises(ConfigError, match="share a store"):
        migrate(workspace, end=str(workspace.root))
    with pytest.raises(ConfigError, match="XRAY_OPT_STORAGE"):
        migrate(workspace)
    with pytest.raises(StudyError, match="no studies to copy"):
        migrate(workspace, start=str(tmp_path), end=str(other.root))
    assert not other.study_database.exists() or list_studies(other) == []


def test_another_study_of_that_name_is_left_alone(home, tmp_path):
    other = Workspace(tmp_path / "other")
    other.root.mkdir()
    foreign = open_storage(f"sqlite:///{other.study_database}")
    optuna.create_study(study_name="tiny", storage=foreign).set_user_attr("identity", "another")
    with pytest.raises(StudyError, match="another study named tiny"):
        migrate(home.workspace, end=str(other.root))
    assert read_study("tiny", other).notes == {"identity": "another"}
    assert connection(other).client.get_experiment_by_name("tiny") is None


def test_a_source_that_went_on_is_refused_and_a_copy_that_went_on_is_fine(home, tmp_path):
    other = Workspace(tmp_path / "other")
    other.root.mkdir()
    assert migrate(home.workspace, end=str(other.root)).equal
    copy = open_storage(f"sqlite:///{other.study_database}")
    mine = copy.get_study_id_from_name("tiny")
    copy.create_new_trial(mine, copy.get_all_trials(mine)[0])
    report = migrate(home.workspace, end=str(other.root))
    assert report.equal
    source = open_storage(f"sqlite:///{home.workspace.study_database}")
    study_id = source.get_study_id_from_name("tiny")
    for _ in range(2):
        source.create_new_trial(study_id, source.get_all_trials(study_id)[1])
    with pytest.raises(StudyError, match=r"not the same in both|went on"):
        migrate(home.workspace, end=str(other.root))
    assert len(copy.get_all_trials(mine)) == 4


def test_what_is_missing_makes_the_exit_code_1(home, tmp_path):
    other = Workspace(tmp_path / "other")
    other.root.mkdir()
    assert migrate(home.workspace, end=str(other.root)).equal
    client = connection(other).client
    run = read_study("tiny", other).trials[0].notes["mlflow_run"]
    client.delete_run(run)
    done = home.run("migrate", "--to", str(other.root))
    assert done.returncode == 1
    (row,) = [line.split() for line in done.stdout.splitlines() if line.split()[:1] == ["runs"]]
    assert row == ["runs", "4", "3", "NO"]


def end_of_a_killed_move(home, storage, uri):
    """Start a move and kill it in the middle of its runs."""
    started = home.start("migrate")
    assert "copying" in started.stderr.readline()
    while not list_studies(home.workspace, storage):
        assert started.poll() is None
    while len(connection(home.workspace, uri).client.search_runs(["1"])) < 2:
        assert started.poll() is None, started.stderr.read()
    started.kill()
    started.communicate(timeout=60)
    return started.returncode


def without_roots(runs):
    """Runs as they arrive elsewhere: of the folder of films its name alone."""
    for (run,) in runs.values():
        if run["params"]:
            run["params"]["data.root"] = Path(run["params"]["data.root"]).name
    return runs


def holding(root, *texts):
    """Files below a folder in which one of the texts stands."""
    files = [path for path in root.rglob("*") if path.is_file()]
    return [path for path in files if any(text.encode() in path.read_bytes() for text in texts)]


def with_login(home, uri, storage):
    """A workspace's .env that names a service, and a login that must not be seen anywhere else."""
    env = home.workspace.root / ".env"
    secret = storage.replace("postgres@", "postgres:s3cret-storage@")
    env.write_text(
        f"MLFLOW_TRACKING_URI={uri}\nMLFLOW_TRACKING_USERNAME=me\nMLFLOW_TRACKING_PASSWORD=s3cret-tracking\n"
        f"XRAY_OPT_STORAGE='{secret}'\n"
    )
    env.chmod(0o600)
    return env


@pytest.mark.long
def test_into_a_service_where_the_study_goes_on(home, tmp_path, monkeypatch):
    """SQLite and files → PostgreSQL and a server with proxied artifacts; killed halfway; tuned and predicted there."""
    before = predictions(home)
    names = [path.name for path in home.films.rglob("*.jpeg")]
    (tmp_path / "server").mkdir()
    with postgres() as database, tracking_server(tmp_path / "server") as uri:
        storage = database.database("optuna")
        env = with_login(home, uri, storage)
        assert end_of_a_killed_move(home, storage, uri) == -signal.SIGKILL
        printed = []
        for migrate in (home.fresh, home.run):
            done = migrate("migrate", "--json")
            assert done.returncode == 0, done.stderr + done.stdout
            assert all(row["equal"] for row in json.loads(done.stdout)["counts"])
            printed += [done.stdout, done.stderr]
        client = connection(home.workspace, uri).client
        assert snapshot(client) == without_roots(snapshot(connection(home.workspace).client))
        assert trials(home.workspace, storage) == trials(home.workspace, f"sqlite:///{home.workspace.study_database}")
        assert len(client.search_model_versions("name='xray-pneumonia'")) == 1

        done = home.run("tune", "--study", "tiny", "--trials", "4", "--json")
        assert done.returncode == 0, done.stderr
        printed += [done.stdout, done.stderr]
        assert (json.loads(done.stdout)["complete"], json.loads(done.stdout)["started_now"]) == (4, 1)
        assert len(read_study("tiny", home.workspace, storage).trials) == 4
        assert len(read_study("tiny", home.workspace).trials) == 3
        assert snapshot(client)["tiny"][0]["times"][0] == "FINISHED"
        assert len(snapshot(client)["tiny"]) == 1
        assert predictions(home) == before
        assert len(home.json("compare", "tiny")["trials"]) == 4
        assert home.run("migrate").returncode == 0
        assert len(read_study("tiny", home.workspace, storage).trials) == 4

        database.control("stop")
        failed = [home.run(*words) for words in (("study", "list"), ("tune", "--study", "tiny"), ("migrate",))]
        assert all(done.returncode and "Traceback" not in done.stderr for done in failed)
        printed += [done.stdout + done.stderr for done in failed]
        database.control("start")
        assert "s3cret" not in "".join(printed)
        env.unlink()
        assert holding(home.workspace.root, "s3cret") == []
        assert holding(tmp_path / "server", "s3cret", *names) == []
