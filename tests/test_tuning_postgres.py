"""The search on a real PostgreSQL: tables made at once, the advisory lock, exact numbers, a restart in mid-trial.

Needs PostgreSQL's own programs and psycopg; skipped where either is missing.
"""

import itertools
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest
import sqlalchemy

from xray_opt.config import Parameter, PrunerConfig, SamplerConfig, StudyConfig, Workspace
from xray_opt.errors import ConfigError, StudyError
from xray_opt.tuning import Lease, Outcome, list_studies, open_study, read_study, storage_patience
from xray_opt.tuning import storage as storage_room
from xray_opt.tuning.locks import sole_lock, study_lock
from xray_opt.tuning.storage import one_after_another, open_storage
from xray_opt.tuning.urls import StorageAway

NUMBERS = itertools.count()
pytestmark = pytest.mark.slow


@pytest.fixture
def study(postgresql):
    url = postgresql.database(f"study_{next(NUMBERS)}")
    space = (Parameter("optimizer.learning_rate", "float", low=1e-5, high=1e-2, log=True),)
    return StudyConfig("fast", space=space, sampler=SamplerConfig("random"), pruner=PrunerConfig("none"), storage=url)


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path)


WORKER = """
    import sys, time
    from pathlib import Path
    from xray_opt.config import Parameter, PrunerConfig, SamplerConfig, StudyConfig, Workspace
    from xray_opt.tuning import Outcome, open_study

    root, url, total, hold = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    space = (Parameter("optimizer.learning_rate", "float", low=1e-5, high=1e-2, log=True),)
    study = StudyConfig("fast", space=space, sampler=SamplerConfig("random"), pruner=PrunerConfig("none"), storage=url)

    def objective(trial):
        if trial.number == hold:
            (root / "inside").touch()
            time.sleep(600)
        return Outcome(0.5)

    (root / f"ready-{sys.argv[5]}").touch()
    while not (root / "go").exists():
        time.sleep(0.01)
    print("done", open_study(study, Workspace(root), "d" * 64).tune(objective, total).complete)
"""


def worker(workspace, study, total, hold=-1, name="0"):
    script = workspace.root / "worker.py"
    if not script.exists():  # a worker before this one may be reading it
        script.write_text(textwrap.dedent(WORKER))
    arguments = [str(workspace.root), study.storage, str(total), str(hold), name]
    return subprocess.Popen([sys.executable, str(script), *arguments], stdout=subprocess.PIPE, text=True)


def wait_for(path, seconds=120):
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.02)


def test_workers_that_start_at_once_on_an_empty_database_end_with_exactly_the_asked_number(workspace, study):
    workers = [worker(workspace, study, 23, name=str(index)) for index in range(5)]
    for index in range(5):
        wait_for(workspace.root / f"ready-{index}")
    (workspace.root / "go").touch()
    assert [process.communicate(timeout=300)[0] for process in workers] == ["done 23\n"] * 5
    record = read_study("fast", workspace, study.storage)
    assert [trial.state for trial in record.trials] == ["COMPLETE"] * 23


def test_a_killed_worker_loses_neither_its_trial_nor_the_lock(workspace, study):
    (workspace.root / "go").touch()
    first = worker(workspace, study, 3, hold=1)
    wait_for(workspace.root / "inside")
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    tally = open_study(study, workspace, "d" * 64).tune(lambda trial: Outcome(0.5), 3)
    lost, resumed = read_study("fast", workspace, study.storage).trials[1:3]
    assert (tally.complete, tally.failed, lost.reason) == (3, 1, "worker-lost")
    assert (resumed.notes["retry_of"], resumed.params) == (1, lost.params)


def test_a_worker_that_begins_and_one_between_two_trials_wait_for_a_database_that_restarts(
    workspace, study, postgresql
):
    said = []
    opened = open_study(study, workspace, "d" * 64, said.append)
    patient = storage_patience(workspace, study.storage, said.append)
    for action in (
        lambda: opened.annotate("seen", True),
        lambda: opened.read().trials,
        lambda: opened.is_at_work(),
        lambda: patient(lambda: open_study(study, workspace, "d" * 64)).notes["seen"],
    ):
        postgresql.control("stop", "-m", "immediate")
        back = threading.Timer(1.0, postgresql.control, ["start"])
        back.start()
        try:
            result = action()
        finally:
            back.join()
        assert result in (None, (), False, True)
    assert opened.notes["seen"] is True
    assert len([line for line in said if " is away (" in line and line.endswith("; waiting up to 60 s")]) == 4


def test_a_database_that_is_away_in_mid_trial_costs_nothing(workspace, study, postgresql):
    away, said = threading.Event(), []

    def back():
        assert away.wait(300)
        postgresql.control("start")

    def say(line):
        said.append(line)
        away.set()

    def objective(trial):
        trial.report(1, 0.25)
        if trial.number == 1:
            postgresql.control("stop", "-m", "immediate")
        trial.report(2, 0.5)
        return Outcome(0.5)

    thread = threading.Thread(target=back, daemon=True)
    thread.start()
    tally = open_study(study, workspace, "d" * 64).tune(objective, 3, lease=Lease(0.05, 60), say=say)
    thread.join(300)
    assert (tally.complete, tally.failed) == (3, 0)
    assert "is away" in said[0]
    trials = read_study("fast", workspace, study.storage).trials
    assert [dict(trial.intermediate) for trial in trials] == [{1: 0.25, 2: 0.5}] * 3


def test_a_lock_for_long_work_is_not_waited_for_and_falls_free(study):
    open_storage(study.storage)
    with (
        sole_lock(study.storage, ":confirm:fast") as first,
        sole_lock(study.storage, ":confirm:fast") as second,
        sole_lock(study.storage, ":confirm:other") as other,
    ):
        assert (first, second, other) == (True, False, True)
    with sole_lock(study.storage, ":confirm:fast") as again:
        assert again


def test_the_lock_is_of_one_study_and_of_one_holder(study):
    storage, order = open_storage(study.storage), []
    inside, waiting = threading.Event(), threading.Event()

    def second():
        assert inside.wait(300)
        with study_lock(storage, "other"):
            order.append("other")
            waiting.set()
        with study_lock(storage, "fast"):
            order.append("second")

    thread = threading.Thread(target=second, daemon=True)
    thread.start()
    with study_lock(storage, "fast"):
        inside.set()
        assert waiting.wait(300)
        with storage.engine.connect() as connection:
            # The other thread stands before the lock: only then is its order worth looking at.
            query = sqlalchemy.text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
            deadline = time.monotonic() + 60
            while not connection.execute(query).scalar():
                assert time.monotonic() < deadline
                time.sleep(0.02)
        order.append("first")
    thread.join(300)
    assert order == ["other", "first", "second"]


def test_a_servers_limit_of_idle_transactions_does_not_end_long_work(study, postgresql):
    storage = open_storage(study.storage)
    with storage.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        name = sqlalchemy.make_url(study.storage).database
        connection.execute(sqlalchemy.text(f"ALTER DATABASE {name} SET idle_in_transaction_session_timeout = '1s'"))
    with one_after_another(study.storage, "settle:fast"):
        time.sleep(2)
        with sole_lock(study.storage, ":settle:fast") as another:
            assert not another  # it is held still, and leaving it raises nothing


def test_a_start_that_hangs_holds_up_no_other_one(study, monkeypatch):
    monkeypatch.setattr("xray_opt.tuning.locks.STUCK", 0.0)  # it gives no sign of life
    monkeypatch.setattr("xray_opt.tuning.storage.HOLD", 0.5)
    make, second = storage_room.RDBStorage, []

    def hang(*args, **kwargs):
        monkeypatch.undo()
        second.append(open_storage(study.storage))
        return make(*args, **kwargs)

    monkeypatch.setattr(storage_room, "RDBStorage", hang)
    with pytest.raises(StorageAway, match=r"the lock of tables .* was lost"):
        open_storage(study.storage)
    assert len(second) == 1


def test_what_ends_a_holder_is_not_hidden_by_a_connection_that_is_lost(study, postgresql):
    def interrupted():
        postgresql.control("restart", "-m", "immediate")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), study_lock(open_storage(study.storage), "fast"):
        interrupted()
    with study_lock(open_storage(study.storage), "fast"):
        pass


def test_a_server_that_is_away_or_has_no_driver_is_one_line(workspace, postgresql, tmp_path):
    with pytest.raises(StudyError, match="nothing is lost, run the same command again") as caught:
        list_studies(workspace, f"postgresql+psycopg://me:secret@/db?host={tmp_path}")
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="needs its driver"):
        open_storage("postgresql+asyncpg_is_not_here://me:secret@host/db")
