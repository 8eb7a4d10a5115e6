"""Hosts that share a PostgreSQL and an MLflow server but no disk: each is a workspace of its own.

Needs PostgreSQL's own programs and psycopg; skipped where either is missing.
"""

import json
import signal
import threading
import time

import forked
import pytest
from conftest import make_place
from front import Faulty
from test_launchers import Listening, trials_of, wait_until, write_study
from test_syncing import runs_of
from test_tuning_hangs import Stopped

from xray_opt.tracking.checkpoints import FOLDER, TAG

pytestmark = pytest.mark.slow


@pytest.fixture
def faulty(server):
    """The module's MLflow server behind a front that can fail."""
    with Faulty(server) as front:
        yield front


def hosts(tmp_path, name, epochs, count=2):
    """Workspaces with the same films and study, and nothing else in common."""
    places = [make_place(tmp_path / f"host-{number}") for number in range(count)]
    for place in places:
        write_study(place, name, epochs=epochs)
    return places


def tune(name, front):
    options = ("--set", "tracking.checkpoints=mlflow", "--set", "training.early_stopping_patience=12")
    return ("tune", "--study", name, "--trials", "1", "--tracking-uri", front.uri, *options)


def history(connection, run):
    return [(point.step, point.value) for point in connection.client.get_metric_history(run.info.run_id, "val.f1")]


def test_another_host_goes_on_behind_the_last_epoch_without_its_disk(tmp_path, postgresql, faulty):
    """Twice: the third one meets a newest checkpoint whose bytes are not those that were sent."""
    url = postgresql.database("hosts")
    first, second, third = hosts(tmp_path, "hosts", 12, 3)
    newest: dict = {}
    for place, last in ((first, 2), (second, 6)):
        process = forked.fork(place, *tune("hosts", faulty), XRAY_OPT_STORAGE=url)
        heard = Listening(process)
        heard.wait_for(rf"trial \d+ · epoch {last}/12")
        process.kill()
        heard.end()
        connection, _, runs = runs_of(faulty, first, "hosts")
        lost = runs[max(runs)]
        if place is second:
            assert f"resuming behind epoch {newest['epoch']} of" in heard.text
        newest, before = json.loads(lost.data.tags[TAG])
        assert newest["epoch"] == before["epoch"] + 1 >= last
    kept = [item.path for item in connection.client.list_artifacts(lost.info.run_id, FOLDER)]
    assert sorted(kept) == ["checkpoint/even.pt", "checkpoint/odd.pt"]  # the newest and the one before, no more
    (tmp_path / newest["file"]).write_bytes(b"other bytes")
    connection.client.log_artifact(lost.info.run_id, str(tmp_path / newest["file"]), FOLDER)

    done = forked.run(third, *tune("hosts", faulty), XRAY_OPT_STORAGE=url)
    assert done.returncode == 0, done.stderr
    assert "is damaged; going back to the one before it" in done.stderr
    assert f"resuming behind epoch {before['epoch']} of" in done.stderr
    *losts, trial = trials_of(third, "hosts", url)
    assert ([lost.reason for lost in losts], trial.state) == (["worker-lost"] * 2, "COMPLETE")
    connection, _, runs = runs_of(faulty, third, "hosts")
    whole = history(connection, runs[trial.number])
    assert [step for step, _ in whole] == list(range(1, 13))
    assert dict(trial.intermediate) == dict(whole)
    for lost in losts:
        known = dict(history(connection, runs[lost.number]))
        assert known == {step: value for step, value in whole if step in known}
    # Nobody needs them any more.
    for run in runs.values():
        assert connection.client.list_artifacts(run.info.run_id, FOLDER) == []
        assert TAG not in run.data.tags
    assert not list((third.workspace.study_folder("hosts") / "checkpoints").glob("*"))


def test_a_server_that_is_away_fails_no_trial_for_its_checkpoints(tmp_path, postgresql, faulty):
    url = postgresql.database("away")
    (place,) = hosts(tmp_path, "away", 4, 1)
    faulty.mood = "down"
    done = forked.run(place, *tune("away", faulty), XRAY_OPT_STORAGE=url)
    assert (done.returncode, "training goes on" in done.stderr) == (0, True), done.stderr
    faulty.mood = "ok"
    sent = forked.run(place, "sync", "--json", XRAY_OPT_STORAGE=url)
    assert sent.returncode == 0, sent.stderr
    connection, _, runs = runs_of(faulty, place, "away")
    assert [step for step, _ in history(connection, runs[0])] == [1, 2, 3, 4]
    assert connection.client.list_artifacts(runs[0].info.run_id, FOLDER) == []


def test_sigterm_ends_a_tune_in_time_though_its_storage_hangs(tmp_path, postgresql, server):
    """Slurm and Kubernetes kill after 30 s: so does the test."""
    url = postgresql.database("ended")
    (place,) = hosts(tmp_path, "ended", 8, 1)
    with Faulty(server) as front:
        tune_it = ("tune", "--study", "ended", "--trials", "1", "--tracking-uri", front.uri)
        process = forked.fork(place, *tune_it, XRAY_OPT_STORAGE=url)
        heard = Listening(process)
        heard.wait_for(r"trial 0 · epoch 1/8")
        with Stopped(postgresql):
            began = time.monotonic()
            process.send_signal(signal.SIGTERM)
            killer = threading.Timer(30, process.kill)
            killer.start()
            code, _ = heard.end()
            killer.cancel()
            took = time.monotonic() - began
        assert code == 130, heard.text
        assert "Traceback" not in heard.text
        assert took < 30
        done = forked.run(place, *tune_it, XRAY_OPT_STORAGE=url)
        assert done.returncode == 0, done.stderr
        wait_until(lambda: "RUNNING" not in {trial.state for trial in trials_of(place, "ended", url)})
