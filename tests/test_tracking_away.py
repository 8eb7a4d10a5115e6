"""Tracking while its server is away, slow, or refuses: nothing is lost, nothing is there twice, order is kept."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from front import Faulty
from mlflow_stores import CONFIG, ROOT, STORAGE_DIGEST

from xray_opt.config import TrackingConfig, Workspace
from xray_opt.errors import AccessRefused, StoreAway
from xray_opt.mlflow_client import Connection, connect
from xray_opt.spool import spool_files
from xray_opt.tracking import Run, Tracking, send_left_behind

pytestmark = pytest.mark.slow


@pytest.fixture
def study() -> str:
    return f"study-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def faulty(server: str) -> Iterator[Faulty]:
    with Faulty(server) as front:
        yield front


def tags(study: str) -> dict[str, str]:
    return {"xray_opt.study": study, "xray_opt.study_id": f"id of {study}", "xray_opt.storage": STORAGE_DIGEST}


def through(front: Faulty, folder: Path) -> Connection:
    return connect(TrackingConfig(uri=front.uri), Workspace(folder), must_answer=False)


def wait_until_sent(tracking: Tracking) -> None:
    deadline = time.monotonic() + 120
    while tracking.is_waiting:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def log_all(run: Run, folder: Path) -> None:
    """Something of every kind."""
    for step in (1, 2, 3):
        run.log_metrics({"val.f1": step / 10, "val.loss": float(step)}, step)
    run.tag("k", "first")
    run.tag("k", "second")
    (folder / "adapter" / "deep").mkdir(parents=True, exist_ok=True)
    (folder / "adapter" / "deep" / "a.txt").write_text("a")
    (folder / "adapter" / "b.txt").write_text("b")
    run.log_folder(folder / "adapter", "adapter")


def check_all(connection: Connection, run_id: str, folder: Path) -> None:
    """Every value is there, once."""
    client = connection.client
    run = client.get_run(run_id)
    assert (run.info.status, run.data.tags["k"], run.data.params["lora.rank"]) == ("FINISHED", "second", "2")
    for name in ("val.f1", "val.loss"):
        assert [point.step for point in client.get_metric_history(run_id, name)] == [1, 2, 3]
    got = Path(client.download_artifacts(run_id, "adapter", str(folder)))
    assert [(got / name).read_text() for name in ("deep/a.txt", "b.txt")] == ["a", "b"]


@pytest.mark.parametrize("mood", ["down", "drop", 503, 429])
def test_a_server_that_goes_away_in_the_middle(faulty: Faulty, tmp_path: Path, study: str, mood: object) -> None:
    connection, said = through(faulty, tmp_path), []
    with Tracking.open(connection, study, tags(study), say=said.append) as tracking:
        with tracking.run("r", CONFIG, {}, {}) as run:
            faulty.mood = mood
            log_all(run, tmp_path)
        assert tracking.is_waiting
        faulty.mood = "ok"
        wait_until_sent(tracking)
    check_all(connection, run.id, tmp_path)
    assert len([line for line in said if "training goes on" in line]) == 1
    assert [line for line in said if "is back" in line]
    assert spool_files(connection.workspace.spool) == []


@pytest.mark.parametrize("mood", ["down", "drop"])
def test_a_server_that_is_away_from_the_start(faulty: Faulty, tmp_path: Path, study: str, mood: str) -> None:
    faulty.mood = "down"
    connection = through(faulty, tmp_path)
    assert connection.away
    faulty.mood = mood
    with Tracking.open(connection, study, tags(study), say=lambda line: None) as tracking:
        with tracking.run("trial-000", CONFIG, {"lora.rank": 2}, {"xray_opt.trial": "0"}) as run:
            assert run.id.startswith("waiting-")
            log_all(run, tmp_path)
        tracking.note("# words")
    assert send_left_behind(connection, connection.workspace.spool).stopped
    faulty.mood = "ok"
    left = send_left_behind(connection, connection.workspace.spool)
    assert (left.waiting, left.refused, left.stopped) == (0, [], "")
    client = connection.client
    experiment = client.get_experiment_by_name(study).experiment_id
    found = {found.info.run_name: found for found in client.search_runs([experiment])}
    assert set(found) == {study, "trial-000"}
    parent, child = found[study], found["trial-000"]
    assert (parent.info.status, parent.data.tags["mlflow.note.content"]) == ("FINISHED", "# words")
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert child.info.start_time <= child.info.end_time
    check_all(connection, child.info.run_id, tmp_path)
    again = Tracking.open(connect(TrackingConfig(uri=faulty.uri), Workspace(tmp_path)), study, tags(study))
    with again:
        assert again.find_run(run.id) == child.info.run_id
        assert again.parent_id == parent.info.run_id


@pytest.mark.parametrize("mood", ["drop", "slow"])
def test_a_run_whose_making_was_not_answered_is_made_once(
    faulty: Faulty, tmp_path: Path, study: str, mood: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    connection = through(faulty, tmp_path)
    with Tracking.open(connection, study, tags(study), say=lambda line: None) as tracking:
        faulty.mood = mood
        with tracking.run("r", CONFIG, {}, {}) as run:
            faulty.mood = "ok"
            log_all(run, tmp_path)
        wait_until_sent(tracking)
        experiment = tracking.experiment_id
    runs = connection.client.search_runs([experiment], "attributes.run_name = 'r'")
    assert [found.info.run_id for found in runs] == [run.id]
    check_all(connection, run.id, tmp_path)


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_login_is_said_once_and_kept(faulty: Faulty, tmp_path: Path, study: str, status: int) -> None:
    connection, said = through(faulty, tmp_path), []
    with Tracking.open(connection, study, tags(study), say=said.append) as tracking:
        with tracking.run("r", CONFIG, {}, {}) as run:
            faulty.mood = status
            log_all(run, tmp_path)
        assert [str(status) in line for line in said] == [True]
        faulty.mood = "ok"
        assert tracking.send_waiting().waiting == 0
    check_all(connection, run.id, tmp_path)
    faulty.mood = status
    with pytest.raises(AccessRefused):  # at the start nothing is lost yet
        through(faulty, tmp_path)


def test_a_value_that_is_refused_does_not_hold_up_others(faulty: Faulty, tmp_path: Path, study: str) -> None:
    connection, said = through(faulty, tmp_path), []
    with (
        Tracking.open(connection, study, tags(study), say=said.append) as tracking,
        tracking.run("r", CONFIG, {}, {}) as run,
    ):
        run.log_metrics({"no:such?name": 1.0}, 1)
        log_all(run, tmp_path)
    check_all(connection, run.id, tmp_path)
    assert len([line for line in said if "no:such?name" in line]) == 1
    left = send_left_behind(connection, connection.workspace.spool)
    assert (left.waiting, len(left.refused), left.stopped) == (1, 1, "")


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = sys.argv[3:]
from mlflow_stores import CONFIG
from xray_opt.config import TrackingConfig, Workspace
from xray_opt.mlflow_client import connect
from xray_opt.tracking import Tracking
connection = connect(TrackingConfig(uri=sys.argv[1]), Workspace(Path(sys.argv[2])), must_answer=False)
with Tracking.open(connection, "killed", {"xray_opt.study_id": sys.argv[2]}, say=lambda line: None) as tracking:
    with tracking.run("r", CONFIG, {}, {}) as run:
        for step in range(1, 6):
            run.log_metrics({"val.f1": step / 10}, step)
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_leaves_what_it_logged(faulty: Faulty, tmp_path: Path) -> None:
    faulty.mood = "down"
    command = [sys.executable, "-c", KILLED, faulty.uri, str(tmp_path), str(ROOT), str(ROOT / "tests")]
    env = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_TRACKING")}
    assert subprocess.run(command, env=env, timeout=300).returncode == -signal.SIGKILL
    with pytest.raises(StoreAway):
        connect(TrackingConfig(uri=faulty.uri), Workspace(tmp_path))
    faulty.mood = "ok"
    connection = through(faulty, tmp_path)
    assert send_left_behind(connection, connection.workspace.spool).waiting == 0
    experiment = connection.client.get_experiment_by_name("killed").experiment_id
    (run,) = connection.client.search_runs([experiment], "attributes.run_name = 'r'")
    assert (run.info.status, run.data.tags["reason"]) == ("FAILED", "worker-lost")
    history = connection.client.get_metric_history(run.info.run_id, "val.f1")
    assert [point.step for point in history] == [1, 2, 3, 4, 5]
