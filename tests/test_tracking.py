"""Room tracking: what a study and its trials leave in MLflow. One contract for the embedded store and a real server."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow.entities import ViewType
from mlflow_stores import CONFIG, ROOT, STORAGE_DIGEST, embedded, finished_run, free_port, manifest

from xray_opt.config import Workspace, flatten, override
from xray_opt.dataset import Pseudonyms
from xray_opt.errors import DataError, NotFinite, OutOfMemory, Pruned, StudyError, TrackingError, TrainingError
from xray_opt.metrics import Scores
from xray_opt.mlflow_client import Connection
from xray_opt.spool import spool_files
from xray_opt.tracking import (
    RankedTrial,
    Run,
    Tracking,
    TrialEnd,
    child_runs,
    close_lost,
    delete_run,
    log_run_metrics,
    log_run_predictions,
    orphan_runs,
    prediction_rows,
    require_same_store,
    run_file,
    send_left_behind,
    store_note,
    study_runs,
    tag_opening,
    tag_run,
    unreferenced_artifacts,
)
from xray_opt.tracking.data import TEST_FILMS_FILE
from xray_opt.tracking.outgoing import outgoing_files
from xray_opt.trainer import Epoch


@pytest.fixture
def study() -> str:
    """A name of its own for each test: they may share a server."""
    return f"study-{uuid.uuid4().hex[:8]}"


def tags(study: str) -> dict[str, str]:
    own = {"xray_opt.study": study, "xray_opt.study_id": f"id of {study}", "xray_opt.storage": STORAGE_DIGEST}
    return own | {"xray_opt.manifest_sha256": "d" * 64}


def epoch(number: int, f1: float = 0.5) -> Epoch:
    return Epoch(number, 0.3, 0.4, Scores(f1, 0.8, 0.7, 0.6, 0.55), 1e-4, 2.0, True, 100.0)


def text_of(connection: Connection, run_id: str, name: str, folder: Path) -> str:
    return Path(connection.client.download_artifacts(run_id, name, str(folder))).read_text()


def test_open_finds_what_it_made_before(connection: Connection, study: str) -> None:
    with Tracking.open(connection, study, tags(study)) as first:
        assert connection.client.get_run(first.parent_id).info.status == "RUNNING"
    assert connection.client.get_run(first.parent_id).info.status == "FINISHED"
    with Tracking.open(connection, study, tags(study)) as second:
        assert (second.parent_id, second.experiment_id) == (first.parent_id, first.experiment_id)
        assert connection.client.get_run(first.parent_id).info.status == "RUNNING"
    parent = connection.client.get_run(first.parent_id)
    assert parent.info.run_name == study
    assert parent.data.tags["xray_opt.role"] == "study"
    assert parent.data.tags["xray_opt.study"] == study


@pytest.mark.parametrize(
    ("error", "status"), [(DataError("x"), "FAILED"), (KeyboardInterrupt(), "KILLED"), (None, "FINISHED")]
)
def test_the_parent_ends_as_the_block_does(
    connection: Connection, study: str, error: BaseException | None, status: str
) -> None:
    tracking = Tracking.open(connection, study, tags(study))
    tracking.__exit__(type(error) if error else None, error, None)
    assert connection.client.get_run(tracking.parent_id).info.status == status


@pytest.mark.parametrize("error", [DataError("x"), KeyboardInterrupt(), None])
def test_the_parent_stays_running_while_others_work_below_it(
    connection: Connection, study: str, error: BaseException | None
) -> None:
    others = [True]
    for status in ("RUNNING", "FINISHED"):
        tracking = Tracking.open(connection, study, tags(study), shared=lambda hurried: bool(others))
        tracking.__exit__(type(error) if error and others else None, error if others else None, None)
        assert connection.client.get_run(tracking.parent_id).info.status == status
        others.clear()


def test_a_study_that_was_ended_stays_so(connection: Connection, study: str) -> None:
    tracking = Tracking.open(connection, study, tags(study))
    tracking.log_metrics({"best.f1": 0.9, "trials.complete": 3})
    tracking.end()
    tracking.__exit__(DataError, DataError("too late"), None)
    parent = connection.client.get_run(tracking.parent_id)
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics == {"best.f1": 0.9, "trials.complete": 3.0}


def test_two_parents_made_at_once_become_one(
    connection: Connection, study: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other process's run appears between looking and creating."""
    from xray_opt.tracking import experiments as module

    look = module._study_runs
    others = []

    def late(at: Connection, experiment_id: str, own: Mapping[str, str]) -> list[str]:
        if not others:
            run = at.client.create_run(experiment_id, start_time=1, tags={"xray_opt.role": "study", **own})
            others.append(run.info.run_id)
            return []
        return look(at, experiment_id, own)

    monkeypatch.setattr(module, "_study_runs", late)
    with Tracking.open(connection, study, tags(study)) as tracking:
        assert tracking.parent_id == others[0]
        found = connection.client.search_runs([tracking.experiment_id], "tags.`xray_opt.role` = 'study'")
        assert len(found) == 1


def test_a_run_that_looks_older_but_comes_late_is_not_the_studys(
    connection: Connection, study: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process makes the study's run and settles upon it while this one's request is on its way."""
    create, others = connection.client.create_run, []

    def slow(*arguments: object, **named: object) -> object:
        monkeypatch.undo()
        others.append(Tracking.open(connection, study, tags(study)))
        return create(*arguments, start_time=1, **named)

    monkeypatch.setattr(connection.client, "create_run", slow)
    with Tracking.open(connection, study, tags(study)) as tracking, others[0] as other:
        assert tracking.parent_id == other.parent_id
        found = connection.client.search_runs([tracking.experiment_id], "tags.`xray_opt.role` = 'study'")
        assert [run.info.run_id for run in found] == [tracking.parent_id]


def test_studies_of_one_name_have_runs_of_their_own(connection: Connection, study: str) -> None:
    """Deleted and made anew, or in two storages: the study's id tells which run is its own."""
    trial = {"xray_opt.trial": "0"}
    anew = tags(study) | {"xray_opt.study_id": "another"}
    with Tracking.open(connection, study, tags(study)) as first, first.run("r", CONFIG, {}, trial):
        pass
    with Tracking.open(connection, study, anew) as second, second.run("r", CONFIG, {}, trial):
        pass
    assert second.parent_id != first.parent_id
    with Tracking.open(connection, study, anew) as again:
        assert again.parent_id == second.parent_id
        again.close_trial(0, "worker-lost")
    assert [run.info.status for run in child_runs(connection, first.parent_id)] == ["FINISHED"]
    assert [run.info.status for run in child_runs(connection, second.parent_id)] == ["FAILED"]


def test_run_states_follow_the_trials(connection: Connection, study: str) -> None:
    started = []
    with Tracking.open(connection, study, tags(study)) as tracking:
        for number in range(6):
            run = tracking.run("r", CONFIG, {}, {"xray_opt.trial": str(number)})
            run.__enter__()
            run.log_metrics({"val.f1": 0.5}, 1)
            started.append(run)
        end_now(started[3], NotFinite("loss is NaN"))
        end_now(started[5], None)
        trials = [TrialEnd(0, "COMPLETE"), TrialEnd(1, "PRUNED", None, 3), TrialEnd(2, "FAIL", "interrupted")]
        trials += [TrialEnd(3, "COMPLETE"), TrialEnd(4, "RUNNING"), TrialEnd(5, "COMPLETE")]
        before = [connection.client.get_run(run.id).data for run in started]
        assert tracking.agree(trials) == {"FINISHED": 2, "KILLED": 1, "FAILED": 1}
        assert tracking.agree(trials) == {}
    after = [connection.client.get_run(run.id) for run in started]
    states = ["FINISHED", "KILLED", "FAILED", "FINISHED", "RUNNING", "FINISHED"]
    assert [run.info.status for run in after] == states
    assert [run.data.params for run in after] == [data.params for data in before]
    assert [run.data.metrics for run in after] == [data.metrics for data in before]
    told = [{k: v for k, v in run.data.tags.items() if k in ("reason", "error", "pruned_epoch")} for run in after]
    assert told == [{}, {"pruned_epoch": "3"}, {"reason": "interrupted"}, {}, {}, {}]
    end_now(started[4], None)


def test_the_reason_of_a_failure_follows_the_trial_too(connection: Connection, study: str) -> None:
    with Tracking.open(connection, study, tags(study)) as tracking:
        run = tracking.run("trial-000", CONFIG, {}, {"xray_opt.trial": "0"}).__enter__()
        end_now(run, StudyError("the storage stayed away"))
        ended = connection.client.get_run(run.id).info.end_time
        assert tracking.agree([TrialEnd(0, "FAIL", "worker-lost")]) == {"FAILED": 1}
        assert tracking.agree([TrialEnd(0, "FAIL", "worker-lost")]) == {}
    after = connection.client.get_run(run.id)
    assert (after.info.status, after.data.tags["reason"], after.info.end_time) == ("FAILED", "worker-lost", ended)
    assert "error" in after.data.tags


@pytest.mark.parametrize("late", [True, False], ids=["made after", "made before"])
def test_a_run_that_a_server_made_twice_is_there_once(connection: Connection, study: str, late: bool) -> None:
    """Its client gave up and asked again; the server then made the first one as well."""
    with Tracking.open(connection, study, tags(study)) as tracking:
        run = tracking.run("trial-000", CONFIG, {}, {"xray_opt.trial": "0"}).__enter__()
        run.log_epoch(epoch(1))
        made = connection.client.get_run(run.id)
        twin = {key: value for key, value in made.data.tags.items() if not key.startswith("mlflow.user")}
        began = made.info.start_time + (1000 if late else -1000)
        ghost = connection.client.create_run(made.info.experiment_id, began, twin, "trial-000").info.run_id
        tracking.agree([TrialEnd(0, "RUNNING")])
        assert len(child_runs(connection, tracking.parent_id, 0)) == 2  # as long as its worker may be between the two
        end_now(run, None)
        tracking.agree([TrialEnd(0, "COMPLETE")])
        assert [one.info.run_id for one in child_runs(connection, tracking.parent_id, 0)] == [run.id]
    assert connection.client.get_run(ghost).info.lifecycle_stage == "deleted"


def end_now(run: Run, error: BaseException | None) -> None:
    run.__exit__(type(error) if error else None, error, None)


def test_a_study_does_not_split_over_two_stores(tmp_path: Path, study: str) -> None:
    first, second = embedded(tmp_path / "a"), embedded(tmp_path / "b")
    with Tracking.open(first, study, {}) as tracking:
        note, parent = store_note(first), tracking.parent_id
    require_same_store(first, study, note, parent)
    require_same_store(second, study, None, None)
    with pytest.raises(TrackingError) as caught:
        require_same_store(second, study, note, parent)
    line = str(caught.value)
    assert "\n" not in line
    assert all(words in line for words in (first.uri, second.uri, "--name", "MLFLOW_TRACKING_URI"))
    # The same store under another address, as after the workspace was moved.
    require_same_store(first, study, note | {"shown": "sqlite:////before/mlflow.db"}, parent)
    remote = replace(first, uri="http://ann:secret@host", local=False, artifact_root=None)
    assert store_note(remote) == {"uri": "http://host", "shown": "http://host"}


def test_ctrl_c_while_a_run_is_being_started_ends_it(
    connection: Connection, study: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    with Tracking.open(connection, study, {}) as tracking:
        run = tracking.run("r", CONFIG, {}, {})
        monkeypatch.setattr(type(connection.client), "log_batch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run.__enter__()
    found = connection.client.get_run(run.id)
    assert (found.info.status, found.data.tags["reason"]) == ("FAILED", "interrupted")


def test_a_deleted_experiment_is_refused_with_the_way_back(connection: Connection, study: str) -> None:
    with Tracking.open(connection, study, tags(study)) as tracking:
        pass
    connection.client.delete_experiment(tracking.experiment_id)
    with pytest.raises(TrackingError, match="mlflow experiments restore"):
        Tracking.open(connection, study, tags(study))


def test_without_parent_there_is_no_study_run(connection: Connection, study: str) -> None:
    with Tracking.open(connection, study, {}, parent=False) as tracking:
        with tracking.run("one", CONFIG, {}, {}) as run:
            pass
        with pytest.raises(TrackingError, match="without a study run"):
            _ = tracking.parent_id
    found = connection.client.search_runs([tracking.experiment_id])
    assert [item.info.run_id for item in found] == [run.id]
    assert "mlflow.parentRunId" not in found[0].data.tags


def test_a_run_has_every_setting_and_its_surroundings(connection: Connection, study: str) -> None:
    searched = {"lora.rank": 2, "optimizer.learning_rate": 1e-4}
    own = tags(study) | {"xray_opt.trial": "7"}
    with (
        Tracking.open(connection, study, tags(study)) as tracking,
        tracking.run("trial-007", CONFIG, searched, own) as run,
    ):
        assert connection.client.get_run(run.id).info.status == "RUNNING"
    data = connection.client.get_run(run.id).data
    assert set(data.params) == set(flatten(CONFIG))
    assert data.params["lora.rank"] == "2"
    assert data.params["optimizer.learning_rate"] == "0.0001"
    assert data.params["training.micro_batch"] == "null"
    assert data.tags["mlflow.parentRunId"] == tracking.parent_id
    assert data.tags["xray_opt.searched"] == "lora.rank, optimizer.learning_rate"
    assert data.tags["xray_opt.seed"] == "0"
    assert {"version.torch", "version.mlflow", "version.python", "xray_opt.version", "mlflow.user"} <= set(data.tags)
    assert (data.params["data.root"] == "/a/b/films") is connection.local
    assert data.params["data.root"].endswith("films")


def test_the_commit_of_a_checkout_is_a_tag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from xray_opt.tracking.environment import _commit_tags

    def git(*arguments: str) -> None:
        who = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        subprocess.run(["git", "-C", tmp_path, *who, *arguments], check=True, capture_output=True)

    assert _commit_tags(tmp_path / "no", tmp_path / "nowhere") == {}
    (tmp_path / "__init__.py").write_text("")
    git("init")
    git("add", ".")
    git("commit", "-m", "one")
    found = _commit_tags(tmp_path, tmp_path / "nowhere")
    assert len(found["mlflow.source.git.commit"]) == 40
    assert found["xray_opt.git_changed"] == "false"
    (tmp_path / "installed").mkdir()
    assert _commit_tags(tmp_path / "installed", tmp_path / "nowhere") == {}


def test_no_password_of_a_tracking_uri_is_logged(connection: Connection, study: str) -> None:
    config = override(CONFIG, {"tracking.uri": "http://ann:secret@host"})
    with Tracking.open(connection, study, {}) as tracking, tracking.run("r", config, {}, {}) as run:
        pass
    assert connection.client.get_run(run.id).data.params["tracking.uri"] == "http://host"


def test_epochs_are_logged_under_their_numbers(connection: Connection, study: str) -> None:
    with Tracking.open(connection, study, {}) as tracking, tracking.run("r", CONFIG, {}, {}) as run:
        run.log_epoch(epoch(1, 0.4))
        run.log_epoch(epoch(2, 0.6))
    history = connection.client.get_metric_history(run.id, "val.f1")
    assert [(point.step, point.value) for point in history] == [(1, 0.4), (2, 0.6)]
    assert set(connection.client.get_run(run.id).data.metrics) == {
        *("train.loss", "val.loss", "val.f1", "val.auc", "val.accuracy", "val.precision", "val.recall"),
        *("learning_rate", "images_per_second"),
    }


def test_an_undefined_auc_can_be_logged(connection: Connection, study: str) -> None:
    with Tracking.open(connection, study, {}) as tracking, tracking.run("r", CONFIG, {}, {}) as run:
        run.log_epoch(replace(epoch(1), val=Scores(0.0, float("nan"), 0.5, 0.0, 0.0)))
    value = connection.client.get_run(run.id).data.metrics["val.auc"]
    assert value != value


def test_system_metrics_are_sampled(connection: Connection, study: str) -> None:
    import time

    config = override(CONFIG, {"tracking.system_interval": 0.05})
    with Tracking.open(connection, study, {}) as tracking, tracking.run("r", config, {}, {}) as run:
        deadline = time.monotonic() + 120
        while "system/cpu_utilization_percentage" not in connection.client.get_run(run.id).data.metrics:
            assert time.monotonic() < deadline
            time.sleep(0.05)


STATES = [
    (None, "FINISHED", {}),
    (Pruned(3), "KILLED", {"pruned_epoch": "3"}),
    (NotFinite("loss is NaN"), "FAILED", {"reason": "nan"}),
    (OutOfMemory("no memory"), "FAILED", {"reason": "oom"}),
    (TrainingError("why\never"), "FAILED", {"reason": "error"}),
    (KeyboardInterrupt(), "FAILED", {"reason": "interrupted"}),
    (TrackingError("no answer"), "FAILED", {"reason": "interrupted"}),
    (StudyError("no answer"), "FAILED", {"reason": "interrupted"}),
    (SystemExit(1), "FAILED", {"reason": "error"}),
    (ValueError("person1_virus_6.jpeg"), "FAILED", {"reason": "error"}),
]


@pytest.mark.parametrize(("error", "status", "expected"), STATES, ids=lambda value: type(value).__name__)
def test_a_run_ends_in_the_state_of_its_block(
    connection: Connection, study: str, error: BaseException | None, status: str, expected: dict[str, str]
) -> None:
    with Tracking.open(connection, study, {}) as tracking:
        run = end_by(tracking, error)
    found = connection.client.get_run(run.id)
    assert found.info.status == status
    assert found.info.end_time >= found.info.start_time
    own = {key: value for key, value in found.data.tags.items() if key in ("reason", "pruned_epoch")}
    assert own == expected
    words = found.data.tags.get("error", "")
    assert "\n" not in words
    assert ("person1" in words) is (connection.local and isinstance(error, ValueError))


def end_by(tracking: Tracking, error: BaseException | None) -> Run:
    run = tracking.run("r", CONFIG, {}, {})
    if error is None:
        with run:
            return run
    with pytest.raises(type(error)) as caught, run:
        raise error
    assert caught.value is error
    return run


def test_a_lost_run_is_closed_once_and_others_stay(connection: Connection, study: str) -> None:
    with Tracking.open(connection, study, {}) as tracking:
        lost = tracking.run("lost", CONFIG, {}, {})
        lost.__enter__()
        done = end_by(tracking, None)
    for run_id in (lost.id, lost.id, done.id, "0" * 32):
        close_lost(connection, run_id)
    found = connection.client.get_run(lost.id)
    assert (found.info.status, found.data.tags["reason"]) == ("FAILED", "worker-lost")
    ended = connection.client.get_run(done.id)
    assert (ended.info.status, ended.data.tags["reason"]) == ("FAILED", "worker-lost")
    close_lost(connection, done.id, "interrupted")
    assert connection.client.get_run(done.id).data.tags["reason"] == "worker-lost"


def test_the_runs_of_one_trial_are_found_by_their_tags(connection: Connection, study: str) -> None:
    with Tracking.open(connection, study, {}) as tracking:
        runs = [tracking.run("r", CONFIG, {}, {"xray_opt.trial": n}) for n in ("1", "11")]
        for run in runs:
            with run:
                pass
    assert [run.info.run_id for run in child_runs(connection, tracking.parent_id, 1)] == [runs[0].id]
    assert child_runs(connection, tracking.parent_id, 2) == []
    tracking.close_trial(1, "worker-lost")
    assert [connection.client.get_run(run.id).info.status for run in runs] == ["FAILED", "FINISHED"]


@pytest.mark.slow
def test_a_killed_worker_leaves_running_behind_which_close_lost_ends(tmp_path: Path) -> None:
    connection = embedded(tmp_path)
    code = (
        "import os, signal, sys; from pathlib import Path; sys.path[:0] = sys.argv[2:]\n"
        "from mlflow_stores import CONFIG; from xray_opt.config import TrackingConfig, Workspace\n"
        "from xray_opt.mlflow_client import connect; from xray_opt.tracking import Tracking\n"
        "with Tracking.open(connect(TrackingConfig(), Workspace(Path(sys.argv[1]))), 's', {}) as tracking:\n"
        "    with tracking.run('r', CONFIG, {}, {}) as run:\n"
        "        print(run.id, tracking.parent_id, flush=True)\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    command = [sys.executable, "-c", code, str(connection.workspace.root), str(ROOT), str(ROOT / "tests")]
    env = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    worker = subprocess.run(command, capture_output=True, text=True, timeout=300, env=env)
    assert worker.returncode == -signal.SIGKILL
    run_id, parent = worker.stdout.split()
    assert connection.client.get_run(run_id).info.status == "RUNNING"
    close_lost(connection, run_id)
    assert connection.client.get_run(run_id).info.status == "FAILED"
    with Tracking.open(connection, "s", {}) as tracking:
        assert tracking.parent_id == parent


def test_what_mlflow_does_not_take_is_said_once_and_kept(tmp_path: Path, study: str) -> None:
    """A run that somebody deletes while it is at work."""
    connection, said = embedded(tmp_path), []
    with Tracking.open(connection, study, {}, say=said.append) as tracking:
        run = tracking.run("r", CONFIG, {}, {})
        run.__enter__()
        connection.client.delete_run(run.id)
        run.log_metrics({"val.f1": 0.5}, 1)
        run.log_metrics({"val.f1": 0.6}, 2)
        end_now(run, NotFinite("loss is NaN"))
    lines = [line for line in said if "cannot log to the run" in line]
    assert (len(lines), "\n" in lines[0], "xray-opt sync" in lines[0]) == (1, False, True)
    left = send_left_behind(connection, connection.workspace.spool)
    assert (left.sent, left.waiting, left.stopped, len(left.refused)) == (0, 3, "", 3)


def test_predictions_carry_names_only_in_a_local_store(connection: Connection, study: str, tmp_path: Path) -> None:
    paths = ("train/PNEUMONIA/person1_virus_6.jpeg", "train/NORMAL/IM-0001-0001.jpeg")
    names = Pseudonyms(connection.workspace)
    with Tracking.open(connection, study, {}) as tracking, tracking.run("r", CONFIG, {}, {}) as run:
        run.log_predictions(paths, [1, 0], [0.1 + 0.2, 0.25], names)
    rows = list(csv.DictReader(io.StringIO(text_of(connection, run.id, "val_predictions.csv", tmp_path))))
    assert [float(row["probability"]) for row in rows] == [0.1 + 0.2, 0.25]
    assert [row["label"] for row in rows] == ["1", "0"]
    films = [row["film"] for row in rows]
    assert films == (list(paths) if connection.local else [names.film(path) for path in paths])


@pytest.mark.parametrize("odd", ["\u2028", "\x85", "\x1c", "\x0b", "\x0c", "\n", '"', ","])
def test_predictions_are_read_as_written_whatever_ends_a_line_in_a_films_name(odd: str, tmp_path: Path) -> None:
    store = embedded(tmp_path)
    paths, names = (f"NORMAL/a{odd}b.jpeg", f"{odd}.jpeg"), Pseudonyms(store.workspace)
    with Tracking.open(store, "odd-names", {}) as tracking, tracking.run("r", CONFIG, {}, {}) as run:
        run.log_predictions(paths, [1, 0], [0.5, 0.25], names)
    rows = prediction_rows(run_file(store, run.id, "val_predictions.csv", tmp_path))
    found = [(row["film"], row["label"], row["probability"]) for row in rows]
    assert found == [(paths[0], "1", "0.5"), (paths[1], "0", "0.25")]


def test_what_is_no_text_reaches_mlflow_all_the_same(connection: Connection, study: str, tmp_path: Path) -> None:
    """Names of files need not be UTF-8: MLflow gets them escaped, a table keeps their bytes."""
    odd, names, said = "films-\udcff\0", Pseudonyms(connection.workspace), []
    paths = ("NORMAL/IM-\udcff.jpeg", "NORMAL/b.jpeg")
    with Tracking.open(connection, study, {"odd": odd}, say=said.append) as tracking:
        tracking.log_dataset(replace(manifest(tmp_path), root=f"/a/{odd}"))
        with tracking.run("r", override(CONFIG, {"data.root": f"/a/{odd}"}), {}, {"odd": odd}) as run:
            run.tag("later", odd)
            run.log_predictions(paths, [1, 0], [0.5, 0.25], names)
        tracking.log_text(odd, "odd.txt")
        lost = tracking.run("lost", CONFIG, {}, {})
        lost.__enter__()
        end_now(lost, ValueError(odd))
    tag_run(connection, run.id, "last", odd)
    tag_opening(connection, run.id, odd, None)
    log_run_predictions(connection, run.id, "test_predictions.csv", paths, [1, 0], [0.5, 0.25], names)
    assert (said, spool_files(connection.workspace.spool)) == ([], [])
    data, told = connection.client.get_run(run.id).data, "films-\\udcff\\x00"
    assert data.params["data.root"] == (f"/a/{told}" if connection.local else told)
    assert [data.tags[key] for key in ("odd", "later", "last", "xray_opt.test_opened")] == [told] * 4
    films = paths if connection.local else [names.film(path) for path in paths]
    for name in ("val_predictions.csv", "test_predictions.csv"):
        text = Path(connection.client.download_artifacts(run.id, name, str(tmp_path))).read_bytes()
        rows = text.decode("utf-8", "surrogateescape").splitlines()[1:]
        assert [row.partition(",")[0] for row in rows] == list(films)
    if connection.local:
        outgoing_files(tmp_path, connection, replace(connection, local=False))
        assert names.film(paths[0]) in (tmp_path / name).read_text()


def test_predictions_of_both_splits_leave_the_machine_under_pseudonyms(tmp_path: Path) -> None:
    here = embedded(tmp_path)
    for name in ("val_predictions.csv", "test_predictions.csv"):
        (tmp_path / name).write_text("film,label,probability\nperson1_virus_6.jpeg,1,0.5\n")
    outgoing_files(tmp_path, here, replace(here, local=False))
    for name in ("val_predictions.csv", "test_predictions.csv"):
        own = Pseudonyms(here.workspace).film("person1_virus_6.jpeg")
        assert (tmp_path / name).read_text() == f"film,label,probability\n{own},1,0.5\n"


def test_the_data_set_is_an_input_of_study_and_trials(connection: Connection, study: str, tmp_path: Path) -> None:
    films = manifest(tmp_path)
    with Tracking.open(connection, study, tags(study)) as tracking:
        tracking.log_dataset(films)
        with tracking.run("r", CONFIG, {}, {}) as run:
            pass
    # A later call does not log it again, yet its trials carry it too.
    with Tracking.open(connection, study, tags(study)) as later, later.run("r", CONFIG, {}, {}) as second:
        pass
    for run_id in (tracking.parent_id, run.id, second.id):
        inputs = connection.client.get_run(run_id).inputs.dataset_inputs
        contexts = {item.tags[0].value: item.dataset for item in inputs}
        assert set(contexts) == {"training", "validation"}
        assert {dataset.digest for dataset in contexts.values()} == {films.sha256[:36]}
        assert json.loads(contexts["training"].profile) == {"films": 8, "patient_groups": 8, "pneumonia": 4}
        source = json.loads(contexts["training"].source)
        assert source["manifest_sha256"] == films.sha256
        assert ("root" in source) is connection.local


def test_a_remote_store_gets_no_name_of_a_film_or_patient(connection: Connection, study: str, tmp_path: Path) -> None:
    films = manifest(tmp_path)
    with Tracking.open(connection, study, tags(study)) as tracking:
        tracking.log_dataset(films)
        folder = tracking.download(tracking.parent_id, "data", tmp_path / "got")
    files = {path.name: path.read_text() for path in folder.iterdir()}
    table = "manifest.csv" if connection.local else "manifest-pseudonymised.csv"
    assert set(files) == {table} | (set() if connection.local else {Path(TEST_FILMS_FILE).name})
    assert files[table].count("\n") > len(films.films)
    text = "".join(files.values())
    told = [name for film in films.films for name in (Path(film.path).name, film.patient, film.group, film.sha256)]
    told.append(str(tmp_path))
    assert all((name in text) is connection.local for name in told)


def test_files_texts_and_notes_of_the_study(connection: Connection, study: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(b"123")
    with Tracking.open(connection, study, {}) as tracking:
        tracking.log_file(path, "base")
        tracking.log_text("shortcut AUC 0.9", "shortcut.txt")
        tracking.note("| trial | val F1 |")
        assert tracking.download(tracking.parent_id, "base/weights.bin", tmp_path / "got").read_bytes() == b"123"
    assert text_of(connection, tracking.parent_id, "shortcut.txt", tmp_path / "got") == "shortcut AUC 0.9"
    assert connection.client.get_run(tracking.parent_id).data.tags["mlflow.note.content"] == "| trial | val F1 |"


def test_a_long_note_is_cut_at_a_line_and_kept_whole_as_an_artifact(
    connection: Connection, study: str, tmp_path: Path
) -> None:
    lines = [f"| {number} | {'x' * 90} |" for number in range(500)]
    with Tracking.open(connection, study, {}) as tracking:
        tracking.note("\n".join(lines))
    shown = connection.client.get_run(tracking.parent_id).data.tags["mlflow.note.content"].splitlines()
    assert len(shown) > 50
    assert set(shown[:-2]) <= set(lines)
    assert text_of(connection, tracking.parent_id, "note.md", tmp_path / "got").splitlines() == lines


def test_a_study_taken_up_again_forgets_why_it_failed(connection: Connection, study: str) -> None:
    tracking = Tracking.open(connection, study, {})
    tracking.__exit__(DataError, DataError("x"), None)
    assert connection.client.get_run(tracking.parent_id).data.tags["reason"] == "error"
    with Tracking.open(connection, study, {}):
        pass
    assert not {"reason", "error"} & set(connection.client.get_run(tracking.parent_id).data.tags)


def test_any_run_can_be_tagged_and_given_metrics_later(connection: Connection, study: str, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("a")
    with Tracking.open(connection, study, {}) as tracking, tracking.run("r", CONFIG, {}, {}) as run:
        run.tag("k", "v")
        run.log_file(path, "texts")
    tag_run(connection, run.id, "xray_opt.test_opened", "today")
    log_run_metrics(connection, run.id, {"test.f1": 0.5})
    data = connection.client.get_run(run.id).data
    assert (data.tags["k"], data.tags["xray_opt.test_opened"], data.metrics["test.f1"]) == ("v", "today", 0.5)
    assert text_of(connection, run.id, "texts/a.txt", tmp_path / "got") == "a"


def test_what_is_missing_is_one_line(connection: Connection, study: str, tmp_path: Path) -> None:
    tracking = Tracking.open(connection, study, {})
    with pytest.raises(TrackingError, match="cannot fetch adapter"):
        tracking.download(tracking.parent_id, "adapter", tmp_path)
    with pytest.raises(TrackingError, match="cannot tag the run"):
        tag_run(connection, "0" * 32, "a", "b")


def test_a_server_that_goes_away_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    from mlflow import MlflowClient

    uri = f"http://ann:secret@127.0.0.1:{free_port()}"
    gone = Connection(MlflowClient(uri, uri), uri, False, None, Workspace(tmp_path))
    with pytest.raises(TrackingError) as caught:
        tag_run(gone, "0" * 32, "a", "b")
    assert "secret" not in str(caught.value)


def ranked(connection: Connection, study: str) -> dict[str, object]:
    experiment = connection.client.get_experiment_by_name(study)
    return {model.name: model for model in connection.client.search_logged_models([experiment.experiment_id])}


def test_the_best_trials_are_logged_models_with_scores_and_files(
    connection: Connection, study: str, tmp_path: Path
) -> None:
    runs = [finished_run(connection, tmp_path, study, seed, 0.5 + seed / 10)[0] for seed in range(3)]
    best = [RankedTrial(runs[number], number, 0.5 + number / 10) for number in (2, 1)]
    with Tracking.open(connection, study, tags(study)) as tracking:
        tracking.log_dataset(manifest(tmp_path))
        tracking.rank_models(best)
        first = ranked(connection, study)
        assert set(first) == {"trial-002", "trial-001"}
        tracking.rank_models(best)
        again = ranked(connection, study)
        assert {name: model.model_id for name, model in again.items()} == {
            name: model.model_id for name, model in first.items()
        }
        tracking.rank_models([RankedTrial(runs[0], 0, 0.9), best[0]])
    models = ranked(connection, study)
    assert set(models) == {"trial-000", "trial-002"}
    model = models["trial-002"]
    assert model.model_id == first["trial-002"].model_id
    assert str(model.status) == "READY"
    assert model.source_run_id == runs[2]
    assert model.params["lora.rank"] == "2"
    assert model.tags["xray_opt.rank"] == "2"
    assert {(metric.key, metric.value) for metric in model.metrics} == {("best.f1", 0.7), ("best.auc", 0.9)}
    assert {metric.dataset_name for metric in model.metrics} == {"chest-films-val"}
    files = connection.client.list_logged_model_artifacts(model.model_id)
    assert "bundle.json" in {Path(file.path).name for file in files}


def test_a_ranked_model_that_a_kill_left_unfinished_is_replaced(
    connection: Connection, study: str, tmp_path: Path
) -> None:
    run_id, _ = finished_run(connection, tmp_path, study)
    with Tracking.open(connection, study, tags(study)) as tracking:
        half = connection.client.create_logged_model(
            tracking.experiment_id, "trial-000", run_id, tags={**tags(study), "xray_opt.role": "ranked"}
        )
        foreign = connection.client.create_logged_model(tracking.experiment_id, "foreign", run_id)
        tracking.rank_models([RankedTrial(run_id, 0, 0.75)])
    models = ranked(connection, study)
    assert models["trial-000"].model_id != half.model_id
    assert models["foreign"].model_id == foreign.model_id


def test_a_local_store_keeps_no_files_of_models_that_are_out(tmp_path: Path, study: str) -> None:
    connection = embedded(tmp_path)
    run_id, _ = finished_run(connection, tmp_path, study)
    with Tracking.open(connection, study, tags(study)) as tracking:
        tracking.rank_models([RankedTrial(run_id, 0, 0.75)])
        assert connection.artifact_root is not None
        models = connection.artifact_root / study / "models"
        assert len(list(models.iterdir())) == 1
        tracking.rank_models([])
    assert list(models.iterdir()) == []


def test_a_deleted_study_leaves_no_run(connection: Connection, study: str, tmp_path: Path) -> None:
    run_id, _ = finished_run(connection, tmp_path, study)
    with Tracking.open(connection, study, tags(study)) as tracking:
        tracking.rank_models([RankedTrial(run_id, 0, 0.75)])
    runs = study_runs(connection, f"id of {study}")
    assert runs == [run_id, tracking.parent_id]
    for each in runs:
        delete_run(connection, each)
        delete_run(connection, each)
    # A server only marks what is deleted; its owner's gc removes it.
    assert study_runs(connection, f"id of {study}") == ([] if connection.local else runs)
    view = ViewType.ALL if connection.local else ViewType.ACTIVE_ONLY
    assert connection.client.search_runs([tracking.experiment_id], run_view_type=view) == []
    assert ranked(connection, study) == {}
    if connection.artifact_root:
        assert [path for path in connection.artifact_root.rglob("*") if path.is_file()] == []


def test_orphans_are_runs_of_gone_studies_in_the_own_store_only(
    connection: Connection, study: str, tmp_path: Path
) -> None:
    run_id, _ = finished_run(connection, tmp_path, study)
    with Tracking.open(connection, study, tags(study)) as parent:
        pass
    with Tracking.open(connection, "train", {}, parent=False) as tracking, tracking.run("r", CONFIG, {}, {}):
        pass
    mine = [parent.parent_id, run_id] if connection.artifact_root else []

    def judged(identity: str, digest: str = STORAGE_DIGEST) -> tuple[list[str], ...]:
        found = orphan_runs(connection, {digest: {identity}})
        return tuple(sorted(runs, key=[run_id, parent.parent_id].index, reverse=True) for runs in found)

    assert judged(f"id of {study}") == ([], [])
    assert judged("id of another") == (mine, [])
    assert judged("id of another", "digest of another") == ([], mine)


def test_unreferenced_artifacts_are_those_of_no_run_or_model(tmp_path: Path, study: str) -> None:
    connection = embedded(tmp_path)
    run_id, _ = finished_run(connection, tmp_path, study)
    with Tracking.open(connection, study, tags(study)) as tracking:
        tracking.rank_models([RankedTrial(run_id, 0, 0.75)])
    root = connection.artifact_root
    assert root is not None
    assert unreferenced_artifacts(connection, connection.workspace) == []
    stray = [root / study / ("e" * 32), root / study / "models" / "m-stray"]
    for folder in stray:
        (folder / "artifacts").mkdir(parents=True)
    connection.client.delete_run(run_id)
    assert unreferenced_artifacts(connection, connection.workspace) == stray
    elsewhere = replace(connection, artifact_root=None)
    assert unreferenced_artifacts(elsewhere, connection.workspace) == []
