"""The search through a real proxy in front of real databases: exact numbers, locks, deaths of workers and of the proxy.

Needs grpcio; those on PostgreSQL need that too; skipped where either is missing.
"""

import asyncio
import itertools
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import suppress

import optuna
import psutil
import pytest
from optuna.exceptions import StorageInternalError
from proxy_server import proxy

from xray_opt.config import Parameter, PrunerConfig, SamplerConfig, StudyConfig, Workspace
from xray_opt.errors import ConfigError, Pruned, StudyError
from xray_opt.tuning import (
    Lease,
    Outcome,
    amend,
    delete_study,
    list_studies,
    open_study,
    probe_storage,
    read_study,
    storage_digest,
)
from xray_opt.tuning.connecting import within
from xray_opt.tuning.locks import sole_lock, study_lock
from xray_opt.tuning.storage import Patience, open_storage
from xray_opt.tuning.urls import LockLost, StorageAway

NUMBERS = itertools.count()
SPACE = (Parameter("optimizer.learning_rate", "float", low=1e-5, high=1e-2, log=True),)
#: Seconds that anything may take on a loaded machine.
LONG = 120


def study_of(url, seed=0):
    return StudyConfig(
        "fast", space=SPACE, sampler=SamplerConfig("random"), pruner=PrunerConfig("none"), storage=url, seed=seed
    )


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path)


@pytest.fixture
def database(tmp_path):
    return f"sqlite:///{tmp_path}/optuna.db"


@pytest.fixture
def front(tmp_path, database):
    with proxy(database, tmp_path, "(0.1, 60)") as server:
        yield server


WORKER = """
    import sys, time
    from pathlib import Path
    from xray_opt.config import Parameter, PrunerConfig, SamplerConfig, StudyConfig, Workspace
    from xray_opt.tuning import Lease, Outcome, open_study

    root, url, total, hold = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    space = (Parameter("optimizer.learning_rate", "float", low=1e-5, high=1e-2, log=True),)
    study = StudyConfig("fast", space=space, sampler=SamplerConfig("random"), pruner=PrunerConfig("none"), storage=url)

    def objective(trial):
        trial.report(1, 0.25)
        if trial.number == hold:
            (root / "inside").write_text(sys.argv[5])
            time.sleep(600)
        return Outcome(0.5)

    (root / f"ready-{sys.argv[5]}").touch()
    while not (root / "go").exists():
        time.sleep(0.01)
    print("done", open_study(study, Workspace(root), "d" * 64).tune(objective, total, lease=Lease(0.1, 60)).complete)
"""


def worker(workspace, url, total, hold=-1, name="0"):
    script = workspace.root / "worker.py"
    if not script.exists():
        script.write_text(textwrap.dedent(WORKER))
    arguments = [sys.executable, str(script), str(workspace.root), url, str(total), str(hold), name]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)


def wait_for(path):
    wait_until(path.exists)


def wait_until(holds):
    deadline = time.monotonic() + LONG
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_study_is_searched_as_on_the_database_itself(front, workspace, database):
    def objective(trial):
        trial.note("seen", [1, 2])
        trial.report(1, 0.25)
        if trial.number == 1:
            raise Pruned(1)
        return Outcome(0.5 + trial.params["optimizer.learning_rate"], {"auc": 0.9})

    tally = open_study(study_of(front.url), workspace, "d" * 64).tune(objective, 3)
    assert (tally.complete, tally.pruned, tally.failed, tally.stopped) == (2, 1, 0, "done")
    through, direct = (read_study("fast", workspace, url) for url in (front.url, database))
    assert through == direct
    assert tally.best == direct.best
    assert storage_digest(front.url) == storage_digest(database)
    # Seeds and numbers decide what is drawn, not the way to the database.
    other = StudyConfig(**{**vars(study_of(database)), "name": "other"})
    open_study(other, workspace, "d" * 64).tune(objective, 3)
    assert [t.params for t in read_study("other", workspace, database).trials] == [t.params for t in direct.trials]


def test_the_rules_are_checked_on_joining(front, workspace):
    open_study(study_of(front.url), workspace, "d" * 64)
    with pytest.raises(StudyError, match="its data was dddddddddddd"):
        open_study(study_of(front.url), workspace, "e" * 64)
    with pytest.raises(StudyError, match="its seed was 0, now it is 1"):
        open_study(study_of(front.url, seed=1), workspace, "d" * 64)


def test_what_can_be_asked_of_studies_goes_through(front, workspace):
    open_study(study_of(front.url), workspace, "d" * 64).tune(lambda trial: Outcome(0.5), 1)
    assert amend("fast", workspace, "count", lambda before: (before or 0) + 1, front.url)["count"] == 1
    assert [study.name for study in list_studies(workspace, front.url)] == ["fast"]
    delete_study("fast", workspace, front.url)
    assert list_studies(workspace, front.url) == []
    with pytest.raises(StudyError, match="no study 'fast' in grpc://"):
        read_study("fast", workspace, front.url)
    # Numbers of deleted studies are given again: what the proxy remembers must not be of the old one.
    tally = open_study(study_of(front.url), workspace, "e" * 64).tune(lambda trial: Outcome(0.25), 2)
    assert (tally.complete, tally.best.value) == (2, 0.25)
    assert probe_storage(front.url).version == f"a proxy with Optuna {optuna.__version__}"


def test_a_lock_excludes_both_those_behind_the_proxy_and_those_beside_it(front, database):
    ways = [open_storage(front.url), open_storage(front.url), open_storage(database)]
    inside, most, order = [], [], []

    def take(storage):
        for _ in range(15):
            with study_lock(storage, "fast"):
                inside.append(1)
                time.sleep(0.002)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=take, args=(way,)) for way in ways]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
    assert most == [1] * 45
    with sole_lock(front.url, ":confirm:fast") as first:
        for url in (front.url, database):
            with sole_lock(url, ":confirm:fast") as second, sole_lock(url, ":confirm:other") as other:
                order.append((first, second, other))
    assert order == [(True, False, True)] * 2
    with sole_lock(database, ":confirm:fast") as again:
        assert again


def test_a_dead_holders_lock_is_free(front, workspace):
    code = (
        "import sys, time; from xray_opt.tuning.locks import study_lock; "
        "from xray_opt.tuning.storage import open_storage\n"
        "with study_lock(open_storage(sys.argv[1]), 'fast'): print('held', flush=True); time.sleep(600)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, front.url], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with sole_lock(front.url, "fast") as held:
        assert not held
    holder.kill()
    holder.wait()
    with study_lock(open_storage(front.url), "fast"):
        pass
    # One who waits and gives up takes nothing along.
    with study_lock(open_storage(front.url), "fast"):
        waiting = subprocess.Popen([sys.executable, "-c", code, front.url], stdout=subprocess.PIPE, text=True)
        time.sleep(3)
        waiting.kill()
        waiting.wait()
    with study_lock(open_storage(front.url), "fast"):
        pass
    assert (holder.returncode, waiting.returncode) == (-signal.SIGKILL, -signal.SIGKILL)


def test_nothing_is_written_under_a_lock_that_was_lost(front, workspace, database):
    opened = open_study(study_of(front.url), workspace, "d" * 64)
    storage, study_id = opened._study._storage, opened._study._study_id
    with pytest.raises(LockLost), study_lock(storage, "fast"):  # noqa: PT012
        front.kill()
        front.start()
        with (
            study_lock(open_storage(front.url), "fast"),
            pytest.raises(optuna.exceptions.StorageInternalError, match="lock was lost"),
        ):
            storage.set_study_user_attr(study_id, "written", True)
    assert "written" not in read_study("fast", workspace, database).notes
    storage.set_study_user_attr(study_id, "written", True)
    assert read_study("fast", workspace, database).notes["written"] is True


def test_a_proxy_that_is_away_in_mid_trial_costs_nothing(front, workspace):
    said = []

    def objective(trial):
        trial.report(1, 0.25)
        if trial.number == 1:
            front.kill()
            threading.Timer(1.0, front.start).start()
        trial.report(2, 0.5)
        return Outcome(0.5)

    tally = open_study(study_of(front.url), workspace, "d" * 64).tune(
        objective, 3, lease=Lease(0.1, 60), say=said.append
    )
    assert (tally.complete, tally.failed) == (3, 0)
    assert [line for line in said if line.startswith(f"storage {front.url} is away")]
    trials = read_study("fast", workspace, front.url).trials
    assert [dict(trial.intermediate) for trial in trials] == [{1: 0.25, 2: 0.5}] * 3


def test_the_proxy_reaps_where_no_worker_is_left(front, workspace, database):
    (workspace.root / "go").touch()
    foreign = optuna.create_study(storage=database, study_name="foreign")
    foreign.ask()
    first = worker(workspace, front.url, 3, hold=1)
    wait_for(workspace.root / "inside")
    first.kill()
    first.wait()
    front.wait_for("study fast: the worker of trial 1 is lost; the trial is queued again")
    wait_until(lambda: len(read_study("fast", workspace, database).trials) == 3)
    lost, queued = read_study("fast", workspace, database).trials[1:]
    assert (lost.state, lost.reason, queued.state) == ("FAIL", "worker-lost", "WAITING")
    assert (queued.notes["retry_of"], lost.intermediate) == (1, {1: 0.25})
    assert [trial.state.name for trial in foreign.trials] == ["RUNNING"]  # whose leases are none of ours
    tally = open_study(study_of(front.url), workspace, "d" * 64).tune(lambda trial: Outcome(0.5), 3)
    assert (tally.complete, tally.failed) == (3, 1)


def test_what_cannot_be_is_one_line(front, workspace, database):
    from conftest import Place

    place = Place(workspace, workspace.root)
    for arguments, code, words in [
        (("storage", "serve", "--storage", front.url), 2, "is a proxy itself"),
        (("storage", "serve", "--storage", database, "--port", str(front.port)), 6, "choose another --port"),
        (("storage", "serve", "--storage", "mysql://host/db"), 2, "only sqlite and postgresql"),
        (("ui", "--storage", front.url), 2, "cannot read through a proxy"),
        (("study", "list", "--storage", "grpc://127.0.0.1:1"), 6, "start it there with xray-opt storage serve"),
    ]:
        done = place.fresh(*arguments)
        assert (done.returncode, done.stderr.startswith("error:"), done.stderr.count("\n")) == (code, True, 1), (
            done.stderr
        )
        assert words in done.stderr


def test_the_command_serves_until_it_is_told_to_stop_and_warns_of_open_doors(tmp_path, database):
    with proxy(database, tmp_path) as server:
        assert not [line for line in server.lines if "WARNING" in line]
        assert server.stop() == 130
        assert not [line for line in server.lines if "Traceback" in line]
    command = [sys.executable, "-m", "xray_opt", "storage", "serve", "--storage", database, "--host", "0.0.0.0"]
    process = subprocess.Popen([*command, "--port", "0"], stderr=subprocess.PIPE, text=True)
    line = process.stderr.readline()
    process.terminate()
    process.communicate(timeout=LONG)
    assert line.startswith("WARNING: 0.0.0.0 can be reached from outside, without login or encryption")


def test_the_command_ends_where_nobody_reads_its_lines(database):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "xray_opt", "storage", "serve", "--storage", database, "--port", "0"]
    with os.fdopen(writer, "w") as lines:
        process = subprocess.Popen(command, stderr=lines)
    try:
        assert process.wait(LONG) == 130
    finally:
        process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_command_ends_though_a_client_waits_for_a_lock_in_the_database(tmp_path, database, number):
    def client():
        with suppress(Exception), study_lock(open_storage(server.url), "fast"):
            taken.append(1)

    taken = list[int]()
    with proxy(database, tmp_path) as server, study_lock(open_storage(database), "fast"):
        waiting = threading.Thread(target=client, daemon=True)
        waiting.start()
        opened = psutil.Process(server.process.pid).open_files
        wait_until(lambda: any(file.path.endswith(".lock") for file in opened()))
        server.process.send_signal(number)
        assert server.process.wait(30) == 130, server.lines
        assert not taken
    waiting.join(LONG)


def test_a_proxy_that_does_not_answer_is_away_and_waited_for():
    with pytest.raises(StorageAway, match="does not answer"):
        open_storage("grpc://127.0.0.1:1")
    lines = list[str]()
    with pytest.raises(StorageAway, match="stayed away"):
        Patience("grpc://127.0.0.1:1", lines.append, 1.0)(lambda: open_storage("grpc://127.0.0.1:1"))
    assert len(lines) == 1


def test_whoever_is_told_to_end_does_not_wait_for_a_proxy_that_hangs(front, monkeypatch):
    monkeypatch.setattr("xray_opt.tuning.proxy.CALL", 10_000.0)
    storage, hung = open_storage(front.url), psutil.Process(front.process.pid)
    try:
        with within(1.0), pytest.raises(LockLost, match="did not answer in time"), study_lock(storage, "fast"):
            hung.suspend()
        with within(1.0), pytest.raises(StorageInternalError, match="Deadline Exceeded"):
            storage.get_all_studies()
        late = pytest.raises(StorageInternalError, match="did not answer in time")
        with within(1.0), late, study_lock(storage, "fast"):
            pass
    finally:
        hung.resume()


def test_without_grpcio_there_is_one_line(workspace):
    code = "import sys; sys.modules['grpc'] = None; sys.argv[0] = 'xray-opt'; from xray_opt.cli import main; main()"
    for arguments in (["storage", "serve"], ["study", "list", "--storage", "grpc://localhost"]):
        env = os.environ | {"XRAY_OPT_HOME": str(workspace.root)}
        done = subprocess.run([sys.executable, "-c", code, *arguments], env=env, capture_output=True, text=True)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert "install xray-opt[grpc]" in done.stderr


def test_a_proxy_address_without_port_is_the_usual_one():
    with pytest.raises(ConfigError, match="must be a URL"):
        open_storage("grpc://host:port")
    from xray_opt.tuning.proxy import PORT, ProxiedStorage

    assert ProxiedStorage("grpc://host")._port == PORT


@pytest.mark.slow
def test_four_workers_on_postgresql_one_killed_end_with_exactly_the_asked_number(postgresql, workspace):
    database, total = postgresql.database(f"proxied_{next(NUMBERS)}"), 23
    with proxy(database, workspace.root) as front:
        workers = {name: worker(workspace, front.url, total, hold=5, name=name) for name in "0123"}
        for name in workers:
            wait_for(workspace.root / f"ready-{name}")
        (workspace.root / "go").touch()
        wait_for(workspace.root / "inside")
        wait_until(lambda: (workspace.root / "inside").read_text())
        killed = workers.pop((workspace.root / "inside").read_text())
        killed.kill()
        killed.wait()
        assert [process.communicate(timeout=300)[0] for process in workers.values()] == [f"done {total}\n"] * 3
    trials = read_study("fast", workspace, database).trials
    assert [trial.state for trial in trials].count("COMPLETE") == total
    assert {trial.state for trial in trials} == {"COMPLETE", "FAIL"}
    (lost,) = [trial for trial in trials if trial.state == "FAIL"]
    (resumed,) = [trial for trial in trials if trial.notes.get("retry_of") == lost.number]
    assert (lost.number, lost.reason, resumed.params) == (5, "worker-lost", lost.params)


@pytest.mark.slow
def test_a_database_that_restarts_behind_the_proxy_costs_nothing(postgresql, workspace):
    with proxy(postgresql.database(f"proxied_{next(NUMBERS)}"), workspace.root) as front:

        def objective(trial):
            trial.report(1, 0.25)
            if trial.number == 1:
                postgresql.control("stop", "-m", "immediate")
                threading.Timer(1.0, postgresql.control, ("start",)).start()
            trial.report(2, 0.5)
            return Outcome(0.5)

        tally = open_study(study_of(front.url), workspace, "d" * 64).tune(objective, 3, lease=Lease(0.1, 60))
        assert (tally.complete, tally.failed) == (3, 0)
        trials = read_study("fast", workspace, front.url).trials
        assert [dict(trial.intermediate) for trial in trials] == [{1: 0.25, 2: 0.5}] * 3
        assert not [line for line in front.lines if "Traceback" in line]


class Trembling:
    """A reaper that fails in ways that nobody thought of, and finds two suspects all the time."""

    def __init__(self):
        self.looks, self.reaped = 0, []

    def suspects(self):
        self.looks += 1
        if self.looks in (2, 3):
            raise ValueError("nobody thought of this")
        return ["stuck", "free"]

    def reap(self, name):
        self.reaped.append(name)
        if self.looks == 1:
            raise ZeroDivisionError("nor of this")

    def tell(self, name):
        pass


def test_no_fault_ends_the_proxys_look_for_lost_workers_and_no_study_holds_up_another(database):
    pytest.importorskip("grpc", reason="no grpcio here: install the extra grpc")
    from xray_opt.tuning import serving

    said, reaper = [], Trembling()

    async def look():
        locks = serving.Locks(serving.open_database(database))
        await locks._lines["stuck"].acquire()  # somebody holds its lock, and hangs
        looking = asyncio.create_task(serving._Reaping(reaper, locks, said.append).go_on(0.05))
        while reaper.looks < 6 or len(reaper.reaped) < 3:
            await asyncio.sleep(0.02)
        assert not looking.done()
        looking.cancel()

    asyncio.run(asyncio.wait_for(look(), LONG))
    assert set(reaper.reaped) == {"free"}
    assert "cannot look for lost workers (nobody thought of this); trying again" in said
    assert len(said) <= 2


def test_the_proxy_says_what_it_reaped_outside_of_the_lock(workspace, database):
    """Where its terminal is stopped (Ctrl-S) whoever says a line stands still, with the lock if it has that."""
    pytest.importorskip("grpc", reason="no grpcio here: install the extra grpc")
    from xray_opt.tuning import serving
    from xray_opt.tuning.reaper import Reaper

    open_study(study_of(database), workspace, "d" * 64)
    optuna.load_study(study_name="fast", storage=database).ask()  # by a worker that died before it said who it is
    free = dict[str, bool]()

    def say(line):
        with sole_lock(database, "fast") as taken:
            free[line] = taken

    async def look():
        storage = serving.open_database(database)
        reaper = Reaper(storage, Lease(0.05, 0.2), say)
        looking = asyncio.create_task(serving._Reaping(reaper, serving.Locks(storage), say).go_on(0.05))
        while not free:
            await asyncio.sleep(0.02)
        looking.cancel()

    asyncio.run(asyncio.wait_for(look(), LONG))
    assert free == {"study fast: the worker of trial 0 is lost; the trial is tried no more": True}


def test_a_holder_that_hangs_loses_its_lock_to_the_next_in_line(front, monkeypatch):
    monkeypatch.setattr("xray_opt.tuning.locks.STUCK", 0.0)  # it gives no sign of life
    with (
        pytest.raises(LockLost, match=r"the lock of fast in storage grpc://.* was lost"),
        study_lock(open_storage(front.url), "fast", hold=0.5),
        study_lock(open_storage(front.url), "fast"),
    ):
        pass
