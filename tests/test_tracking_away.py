"""Tracking while its server is away, slow, or refuses: nothing is lost, nothing is there twice, order is kept."""

from __future__ import annotations

import os
import signal
import sqlite3
import time
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from front import Faulty
from mlflow_stores import CONFIG, STORAGE_DIGEST, embedded

from xray_opt.config import TrackingConfig, Workspace, override
from xray_opt.dataset import Pseudonyms
from xray_opt.errors import AccessRefused, DataError, StoreAway
from xray_opt.mlflow_client import Connection, connect
from xray_opt.spool import Spool, look, spool_files
from xray_opt.tracking import LeftBehind, Run, Tracking, send_left_behind

pytestmark = pytest.mark.slow
SAMPLED = "system/system_memory_usage_megabytes"


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
    return connect(TrackingConfig(uri=front.uri), Workspace(folder), excused=(StoreAway,))


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


@pytest.mark.parametrize("mood", ["down", "drop", "slow", "full", 503, 500, 429])
def test_a_server_that_goes_away_in_the_middle(
    faulty: Faulty, tmp_path: Path, study: str, mood: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    if mood == "slow":
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
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


def test_a_store_that_is_full_is_away_and_what_is_logged_keeps_its_order(
    faulty: Faulty, tmp_path: Path, study: str
) -> None:
    connection, said = through(faulty, tmp_path), []
    with Tracking.open(connection, study, tags(study), say=said.append) as tracking:
        with tracking.run("r", CONFIG, {}, {}) as run:
            faulty.mood = "full"
            run.tag("k", "first")
            asked, deadline = faulty.asked, time.monotonic() + 120
            while faulty.asked < asked + 2:  # it was tried again
                assert time.monotonic() < deadline
                time.sleep(0.1)
            faulty.mood = "ok"
            run.tag("k", "second")
        wait_until_sent(tracking)
    assert connection.client.get_run(run.id).data.tags["k"] == "second"
    assert not [line for line in said if "tries again" in line]


@pytest.mark.parametrize("mood", ["down", "drop"])
def test_a_server_that_is_away_from_the_start(faulty: Faulty, tmp_path: Path, study: str, mood: str) -> None:
    faulty.mood = "down"
    connection = through(faulty, tmp_path)
    assert connection.away
    faulty.mood = mood
    with Tracking.open(connection, study, tags(study), say=lambda line: None) as tracking:
        sampled = override(CONFIG, {"tracking.system_interval": 60.0})
        with tracking.run("trial-000", sampled, {"lora.rank": 2}, {"xray_opt.trial": "0"}) as run:
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
    assert [point.step for point in client.get_metric_history(child.info.run_id, SAMPLED)] == [0]
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


@pytest.mark.parametrize("poison", [b"poison", b"poisonous file"])
def test_what_a_store_fails_at_again_and_again_does_not_hold_up_others(
    faulty: Faulty, tmp_path: Path, study: str, poison: bytes
) -> None:
    connection, said = through(faulty, tmp_path), []
    faulty.poison = poison
    (tmp_path / "poison.txt").write_text("poisonous file")
    with Tracking.open(connection, study, tags(study), say=said.append) as tracking:
        with tracking.run("r", CONFIG, {}, {}) as run:
            run.tag("odd", "poison")
            run.log_file(tmp_path / "poison.txt")
            log_all(run, tmp_path)
        assert tracking.send_waiting().stopped == ""
    check_all(connection, run.id, tmp_path)
    kept = 2 - (poison == b"poisonous file")
    assert len({line for line in said if "is kept in" in line and "xray-opt sync tries again" in line}) == kept
    left = send_left_behind(connection, connection.workspace.spool)
    assert (left.waiting, len(left.refused), left.stopped) == (kept, kept, "")
    faulty.mood = 500
    assert send_left_behind(connection, connection.workspace.spool).stopped
    faulty.mood, faulty.poison = "ok", b""
    assert send_left_behind(connection, connection.workspace.spool).waiting == 0
    assert connection.client.get_run(run.id).data.tags["odd"] == "poison"


def leave_behind(faulty: Faulty, connection: Connection, study: str, folder: Path) -> Run:
    """A whole run that waits, as the server is down."""
    faulty.mood = "down"
    with (
        Tracking.open(connection, study, tags(study), say=lambda line: None) as tracking,
        tracking.run("r", CONFIG, {}, {}) as run,
    ):
        log_all(run, folder)
    return run


@pytest.mark.parametrize("away", ["from the start", "at the end"])
@pytest.mark.parametrize("sent", ["beside", "after"])
def test_the_late_end_of_a_call_ends_no_later_one(
    faulty: Faulty, tmp_path: Path, study: str, away: str, sent: str
) -> None:
    with Tracking.open(through(faulty, tmp_path), study, tags(study)):
        pass
    if away == "from the start":
        faulty.mood = "down"
    first = Tracking.open(through(faulty, tmp_path), study, tags(study), say=lambda line: None)
    faulty.mood = "down"
    first.__exit__(DataError, DataError("late"), None)
    faulty.mood = "ok"
    connection = through(faulty, tmp_path)

    def stands() -> tuple[str, bool]:
        assert send_left_behind(connection, connection.workspace.spool).waiting == 0
        run = connection.client.get_run(second.parent_id)
        return run.info.status, bool({"reason", "error"} & set(run.data.tags))

    with Tracking.open(connection, study, tags(study)) as second:
        assert sent == "after" or stands() == ("RUNNING", False)
    assert stands() == ("FINISHED", False)


def test_what_waits_for_one_store_is_sent_to_no_other(faulty: Faulty, server: str, tmp_path: Path, study: str) -> None:
    own = embedded(tmp_path)
    leave_behind(faulty, connect(TrackingConfig(uri=faulty.uri), own.workspace, excused=(StoreAway,)), study, tmp_path)
    (path,) = spool_files(own.workspace.spool)
    waiting = look(path)
    assert waiting[1] > 5
    for other in (own, connect(TrackingConfig(uri=server), own.workspace)):
        assert send_left_behind(other, own.workspace.spool) == LeftBehind()
        assert other.client.get_experiment_by_name(study) is None
    assert look(path) == waiting
    faulty.mood = "ok"
    right = connect(TrackingConfig(uri=faulty.uri), own.workspace)
    assert send_left_behind(right, own.workspace.spool).sent >= waiting[1]
    assert right.client.get_experiment_by_name(study) is not None


def test_what_waits_for_the_workspaces_own_store_moves_with_it(tmp_path: Path, study: str) -> None:
    own = embedded(tmp_path / "before")
    with Tracking.open(own, study, tags(study)) as tracking, tracking.run("r", CONFIG, {}, {}) as run:
        pass
    spool = Spool.create(own.workspace.spool, {"uri": own.address, "experiment": study, "tags": tags(study)})
    spool.append(run.id, "batch", {"tags": {"k": "late"}})
    spool.close()
    (tmp_path / "before").rename(tmp_path / "after")
    moved = connect(TrackingConfig(), Workspace((tmp_path / "after" / "workspace").resolve()))
    left = send_left_behind(moved, moved.workspace.spool)
    assert (left.sent, left.waiting, left.refused, left.stopped) == (1, 0, [], "")
    kept = moved.client.get_run(run.id)
    assert (kept.info.status, kept.data.tags["k"]) == ("FINISHED", "late")


def test_no_password_and_no_place_of_films_is_kept(
    faulty: Faulty, tmp_path: Path, study: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "swordfish")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ann")
    with_login = faulty.uri.replace("//", "//ann:hunter2@")
    faulty.mood = "down"
    connection = connect(TrackingConfig(uri=with_login), Workspace(tmp_path), excused=(StoreAway,))
    config = override(CONFIG, {"tracking.uri": with_login, "model.base": "/a/b/base.safetensors"})
    with Tracking.open(connection, study, tags(study), say=lambda line: None) as tracking:
        run = tracking.run("r", config, {}, {})
        run.__enter__()
        run.log_predictions(["/a/b/films/Anna.png"], [1], [0.5], Pseudonyms(connection.workspace))
        run.__exit__(DataError, DataError(f"/a/b/films/Anna.png at {with_login}"), None)
    kept = b"".join(path.read_bytes() for path in connection.workspace.spool.iterdir())
    assert study.encode() in kept
    assert not [word for word in (b"swordfish", b"hunter2", b"/a/b", b"Anna") if word in kept]


def test_a_damaged_file_is_named_and_holds_up_no_other(faulty: Faulty, tmp_path: Path, study: str) -> None:
    connection = through(faulty, tmp_path)
    run = leave_behind(faulty, connection, study, tmp_path)
    (connection.workspace.spool / "00000000-000000-1-damaged.db").write_bytes(b"this is no database" * 100)
    faulty.mood = "ok"
    left = send_left_behind(connection, connection.workspace.spool)
    assert (left.waiting, left.stopped, len(left.refused)) == (0, "", 1)
    assert "damaged.db" in left.refused[0]
    with Tracking.open(connection, study, tags(study)) as tracking:
        check_all(connection, tracking.find_run(run.id), tmp_path)


#: What a disk may change in a file of the spool that is a whole database all the same.
CHANGED = {
    "a content that is no JSON": "UPDATE entries SET content = '{' || content WHERE kind = 'batch' AND number < 4",
    "a content that is no text": "UPDATE entries SET content = CAST(X'7BFF' AS TEXT) WHERE number BETWEEN 2 AND 3",
    "a content of another kind": "UPDATE entries SET content = '[3]' WHERE kind = 'batch' AND number < 4",
    "a kind that there is not": "UPDATE entries SET kind = 'bbtch' WHERE kind = 'batch' AND number < 4",
    "a name of a file that is none": "UPDATE files SET name = replace(hex(zeroblob(150)), '00', 'ab')",
    "a name of a file that is no text": "UPDATE files SET name = CAST(X'61FF' AS TEXT)",
    "facts that are no JSON": "UPDATE about SET facts = '{' || facts",
    "facts of another kind": "UPDATE about SET facts = '[1]'",
    "facts without a study": "UPDATE about SET facts = replace(facts, '\"tags\"', '\"tagz\"')",
}


@pytest.mark.parametrize("change", CHANGED.values(), ids=CHANGED.keys())
def test_what_a_disk_changed_in_a_file_is_named_kept_and_holds_up_no_other(
    faulty: Faulty, tmp_path: Path, study: str, change: str
) -> None:
    connection = through(faulty, tmp_path)
    leave_behind(faulty, connection, study, tmp_path)
    (changed,) = spool_files(connection.workspace.spool)
    with closing(sqlite3.connect(changed)) as base, base:
        assert base.execute(change).rowcount
    run = leave_behind(faulty, connection, study, tmp_path)
    faulty.mood = "ok"
    left = send_left_behind(connection, connection.workspace.spool)
    assert left.stopped == ""
    assert left.refused
    assert {changed.name in line for line in left.refused} == {True}
    assert spool_files(connection.workspace.spool) == [changed]
    with Tracking.open(connection, study, tags(study)) as tracking:
        check_all(connection, tracking.find_run(run.id), tmp_path)


def killed_in_mid_run(connection: Connection) -> None:
    """The life of a forked child: it logs five epochs to a server that is away, and is killed."""
    try:
        with (
            Tracking.open(connection, "killed", tags("killed"), say=lambda line: None) as tracking,
            tracking.run("r", CONFIG, {}, {}) as run,
        ):
            for step in range(1, 6):
                run.log_metrics({"val.f1": step / 10}, step)
            os.kill(os.getpid(), signal.SIGKILL)
    finally:
        os._exit(1)


def test_a_killed_process_leaves_what_it_logged(faulty: Faulty, tmp_path: Path) -> None:
    faulty.mood = "down"
    connection = through(faulty, tmp_path)
    if (pid := os.fork()) == 0:
        killed_in_mid_run(connection)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
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
