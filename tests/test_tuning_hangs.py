"""A PostgreSQL that hangs instead of failing, and workers that hang within a lock: nobody waits for ever, nor silently.

Needs PostgreSQL's own programs and psycopg; skipped where either is missing.
"""

import itertools
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import ExitStack, suppress
from functools import partial

import optuna
import psutil
import pytest
import sqlalchemy
from postgres_server import postgres
from proxy_server import proxy

from xray_opt.config import Parameter, PrunerConfig, SamplerConfig, StudyConfig, Workspace
from xray_opt.tuning import Outcome, open_study, read_study, search
from xray_opt.tuning.connecting import one_connection, within
from xray_opt.tuning.locks import study_lock
from xray_opt.tuning.storage import Patience, open_storage
from xray_opt.tuning.urls import LockLost, StorageAway

NUMBERS = itertools.count()
#: Seconds that anything may take on a loaded machine.
LONG = 120
pytestmark = pytest.mark.slow


@pytest.fixture
def url(postgresql):
    return postgresql.database(f"hang_{next(NUMBERS)}")


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path)


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Everything waits for a moment where it would for a while."""
    monkeypatch.setattr("xray_opt.tuning.connecting.SILENCE", 1.0)
    monkeypatch.setattr("xray_opt.tuning.locks.SILENCE", 1.0)
    monkeypatch.setattr("xray_opt.tuning.connecting.CONNECT", 2)
    monkeypatch.setattr("xray_opt.tuning.locks.QUIET", 0.5)


def study_of(url):
    space = (Parameter("optimizer.learning_rate", "float", low=1e-5, high=1e-2, log=True),)
    return StudyConfig("fast", space=space, sampler=SamplerConfig("random"), pruner=PrunerConfig("none"), storage=url)


def half(trial):
    return Outcome(0.5)


def wait_until(holds):
    deadline = time.monotonic() + LONG
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


class Stopped:
    """All processes of the server stopped, as where a machine swaps or its disk hangs; new ones cannot come."""

    def __init__(self, server):
        self.main = psutil.Process(int((server.folder / "data" / "postmaster.pid").read_text().split()[0]))

    def __enter__(self):
        self.main.suspend()
        self.all = [self.main, *self.main.children(recursive=True)]
        for process in self.all[1:]:
            process.suspend()
        return self

    def __exit__(self, *error):
        for process in self.all:
            with suppress(psutil.NoSuchProcess):
                process.resume()


class Wire:
    """A way to the server by TCP that may be cut as a network is: nothing arrives any more, and nobody is told."""

    def __init__(self, server):
        self.place = server.folder / f".s.PGSQL.{server.port}"
        self.open = threading.Event()
        self.open.set()
        self.listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()

    def url(self, database):
        return f"postgresql+psycopg://postgres@127.0.0.1:{self.listener.getsockname()[1]}/{database}?sslmode=disable"

    def _accept(self):
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return
            far = socket.socket(socket.AF_UNIX)
            far.connect(str(self.place))
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=self._pass, args=(one, other), daemon=True).start()

    def _pass(self, one, other):
        # Either end may be gone first, as on any network.
        with other, suppress(OSError):
            while some := one.recv(65536):
                self.open.wait()
                other.sendall(some)


def test_a_server_that_hangs_in_mid_trial_is_said_waited_for_and_costs_nothing(workspace, url, postgresql):
    said, hung = [], threading.Event()

    def hang():
        with Stopped(postgresql):
            hung.set()
            wait_until(lambda: said)

    def objective(trial):
        trial.report(1, 0.25)
        if trial.number == 1:
            threading.Thread(target=hang, daemon=True).start()
            assert hung.wait(LONG)
        trial.report(2, 0.5)
        return Outcome(0.5)

    tally = open_study(study_of(url), workspace, "d" * 64).tune(objective, 3, say=said.append)
    assert (tally.complete, tally.failed) == (3, 0)
    assert " is away (" in said[0]
    assert said[0].endswith("; waiting up to 60 s")
    trials = read_study("fast", workspace, url).trials
    assert [dict(trial.intermediate) for trial in trials] == [{1: 0.25, 2: 0.5}] * 3


def test_a_server_that_stays_hung_is_one_line_soon(url, postgresql):
    lines = []
    storage = open_storage(url)
    with Stopped(postgresql):
        began = time.monotonic()
        with pytest.raises(StorageAway, match="stayed away"):
            Patience(url, lines.append, 8.0)(storage.get_all_studies)
        with pytest.raises(StorageAway, match="connection timeout expired"):  # nor does a new connection wait for ever
            Patience(url, [].append, 1.0)(lambda: open_storage(url))
        assert time.monotonic() - began < 30
    assert len(lines) == 1
    assert storage.get_all_studies() == []


def test_ctrl_c_does_not_wait_for_a_server_that_hangs(url, postgresql):
    """In a process of its own: the signal meets it within a query."""
    code = (
        "import sys; from xray_opt.tuning.storage import open_storage\n"
        "storage = open_storage(sys.argv[1]); print('open', flush=True); sys.stdin.readline()\n"
        "print('asking', flush=True); storage.get_all_studies()"
    )
    command = [sys.executable, "-c", code, url]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "open\n"
    with Stopped(postgresql):
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "asking\n"
        time.sleep(1)
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=LONG)
        assert time.monotonic() - began < 8
    assert "KeyboardInterrupt" in error


def test_a_network_that_drops_everything_is_noticed(workspace, url, postgresql):
    wire = Wire(postgresql)
    through = wire.url(sqlalchemy.make_url(url).database)
    opened = open_study(study_of(through), workspace, "d" * 64)
    assert opened.tune(half, 1).complete == 1
    wire.open.clear()
    with pytest.raises(StorageAway, match=r"did not answer for 1 s|connection timeout"):
        Patience(through, [].append, 1.0)(lambda: opened._study.user_attrs)
    wire.open.set()
    assert opened.tune(half, 2).complete == 2


def test_a_lock_that_is_not_free_is_said_and_not_waited_for_for_ever(url, monkeypatch):
    monkeypatch.setattr("xray_opt.tuning.locks.LATE", 3.0)
    storage, said = open_storage(url), []
    with study_lock(storage, "fast", hold=None):
        began = time.monotonic()
        with (
            pytest.raises(StorageAway, match=r"the lock of fast in storage postgresql.* was not free for \d s"),
            study_lock(storage, "fast", said.append),
        ):
            raise AssertionError("two hold it")
        assert time.monotonic() - began < 30
        # Whose process is told to end does not wait for it either.
        monkeypatch.setattr("xray_opt.tuning.locks.LATE", 3600.0)
        monkeypatch.setattr("xray_opt.tuning.locks.SILENCE", 20.0)
        with within(1.0), pytest.raises(StorageAway), study_lock(storage, "fast"):
            raise AssertionError("two hold it")
    assert said[0].startswith("waiting for the lock of fast in storage postgresql")
    assert len(said) < 4
    with study_lock(storage, "fast"):
        pass


def test_the_lock_of_a_file_is_not_waited_for_for_ever_either(tmp_path, monkeypatch):
    monkeypatch.setattr("xray_opt.tuning.locks.SOON", 1.0)
    monkeypatch.setattr("xray_opt.tuning.locks.STUCK", 0.0)  # it gives no sign of life
    storage, said = open_storage(f"sqlite:///{tmp_path}/o.db"), []
    with (
        study_lock(storage, "fast"),
        pytest.raises(StorageAway, match="the lock of fast in storage sqlite"),
        study_lock(storage, "fast", said.append),
    ):
        raise AssertionError("two hold it")
    assert len(said) == 1


def test_the_server_frees_the_lock_of_a_holder_that_hangs_but_not_one_of_long_work(url, postgresql, monkeypatch):
    monkeypatch.setattr("xray_opt.tuning.locks.STUCK", 0.0)  # it gives no sign of life
    storage = open_storage(url)
    with (
        pytest.raises(LockLost, match=r"the lock of fast in storage postgresql.* was lost \(.*idle-in-transaction"),
        study_lock(storage, "fast", hold=0.5),
        study_lock(storage, "fast"),  # another one has it, though this one is not done
    ):
        pass
    with study_lock(storage, ":settle:fast", hold=0.5):
        time.sleep(2)


def test_the_server_looks_whether_the_host_of_a_lock_is_there(postgresql):
    """On TCP: these settings of the server do not exist on a socket of one machine."""
    with postgres(listen="127.0.0.1") as tcp:
        url = tcp.database("watched")
        storage = open_storage(url)
        with study_lock(storage, "fast"), one_connection(url).connect() as look:
            query = sqlalchemy.text("SELECT pid FROM pg_locks WHERE locktype = 'advisory'")
            assert look.execute(query).scalar()
        with storage.engine.connect() as connection, connection.begin():
            from xray_opt.tuning import locks

            assert locks._taken(connection, "fast", 60.0)
            shown = [
                connection.execute(sqlalchemy.text(f"SHOW {name}")).scalar()
                for name in (*locks.GONE, "idle_in_transaction_session_timeout")
            ]
            assert shown == ["10", "5", "3", "1min"]


HANGS = """
    import os, signal, sys
    from pathlib import Path
    import optuna
    sys.path.insert(0, sys.argv[3])
    from test_tuning_hangs import half, open_study, study_of, Workspace
    from xray_opt.tuning import locks, search
    search.PATIENCE = locks.HOLD = 2.0
    locks.study_lock.__wrapped__.__defaults__ = (locks.log.warning, 2.0)

    root, url = Path(sys.argv[1]), sys.argv[2]
    opened = open_study(study_of(url), Workspace(root), "d" * 64)
    real = optuna.Trial.set_user_attr

    def hangs(trial, key, value):
        if key == "owner" and not (root / "inside").exists():
            (root / "inside").touch()
            os.kill(os.getpid(), signal.SIGSTOP)  # within the lock, between the claim and its owner
        real(trial, key, value)

    optuna.Trial.set_user_attr = hangs
    tally = opened.tune(half, 2, say=lambda line: print("said", line, flush=True))
    print("done", tally.complete, tally.started_now)
"""


def test_a_worker_that_hangs_within_the_lock_holds_up_nobody_and_goes_on_when_it_wakes(workspace, url):
    (workspace.root / "worker.py").write_text(textwrap.dedent(HANGS))
    command = [sys.executable, str(workspace.root / "worker.py"), str(workspace.root), url, os.path.dirname(__file__)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_until((workspace.root / "inside").exists)
    # The lock falls free; a trial without an owner was never begun.
    began = time.monotonic()
    assert open_study(study_of(url), workspace, "d" * 64).tune(half, 1).complete == 1
    time.sleep(max(0.0, began + 3.0 - time.monotonic()))  # it hangs for longer than a worker has patience
    process.send_signal(signal.SIGCONT)
    out, error = process.communicate(timeout=LONG)
    assert process.returncode == 0, error
    assert "Traceback" not in error
    assert "was ended by another worker before it began here" in out
    assert "done 2 1" in out
    states = [trial.state for trial in read_study("fast", workspace, url).trials]
    assert (states.count("COMPLETE"), states.count("RUNNING")) == (2, 0)


def test_a_trial_that_is_taken_while_its_params_are_drawn_is_discarded(workspace, url):
    """Its worker hung before: Optuna refuses to write to a trial that is over."""
    said, others, opened = [], [], open_study(study_of(url), workspace, "d" * 64)
    real = optuna.Trial.suggest_float

    def taken(trial, *arguments, **options):
        if trial.number == 0 and not others:
            others.append(0)
            trial.study.tell(0, state=optuna.trial.TrialState.FAIL)
        return real(trial, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optuna.Trial, "suggest_float", taken)
        tally = opened.tune(half, 1, say=said.append)
    assert (tally.complete, tally.started_now) == (1, 2)
    assert said == ["trial 0 was taken for lost and ended by another worker: its result is discarded"]


@pytest.fixture
def storage_of(tmp_path, postgresql):
    """Gives the URL of a storage of a kind; a second one may share the database behind a proxy."""
    with ExitStack() as stack:

        def url_of(kind):
            if kind == "sqlite":
                return f"sqlite:///{tmp_path}/drawn.db"
            database = postgresql.database(f"hang_{next(NUMBERS)}")
            return database if kind == "postgresql" else stack.enter_context(proxy(database, tmp_path)).url

        yield url_of


class Draws:
    """Draws of params that take long: how many went on at the same moment, and what they gave."""

    def __init__(self, monkeypatch, seconds):
        self.seconds, self.inside, self.most = seconds, [], []
        self.real = search.suggest
        monkeypatch.setattr(search, "suggest", self)

    def __call__(self, trial, *arguments):
        self.inside.append(trial.number)
        self.most.append(len(self.inside))
        params = self.real(trial, *arguments)
        time.sleep(self.seconds(trial.number))
        self.inside.remove(trial.number)
        return params


def tune_together(monkeypatch, workspace, url, total):
    """Two workers in this process, whose first draw takes longer than a lock lasts; the draws, and what was said."""
    monkeypatch.setattr("xray_opt.tuning.claims.study_lock", partial(study_lock, hold=2.0))
    draws, said = Draws(monkeypatch, lambda number: 0.0 if number else 5.0), []
    opened = [open_study(study_of(url), workspace, "d" * 64) for _ in range(2)]
    workers = [threading.Thread(target=one.tune, args=(half, total), kwargs={"say": said.append}) for one in opened]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(LONG)
    return draws, said


@pytest.mark.parametrize("kind", ["sqlite", "postgresql", "proxy"])
def test_a_draw_that_takes_longer_than_a_lock_lasts_keeps_it(workspace, storage_of, kind, monkeypatch):
    """The first one takes longer than a holder may be silent; the second worker waits for it."""
    url = storage_of(kind)
    monkeypatch.setattr("xray_opt.tuning.locks.SOON", 0.5)
    draws, said = tune_together(monkeypatch, workspace, url, 2)
    assert [trial.state for trial in read_study("fast", workspace, url).trials] == ["COMPLETE"] * 2, said
    assert draws.most == [1, 1]
    assert all(line.startswith("waiting for ") for line in said)


@pytest.mark.parametrize("kind", ["postgresql", "proxy"])
def test_a_draw_whose_lock_was_lost_is_not_used(workspace, storage_of, kind, monkeypatch):
    """The first drawer hangs, as where its process is stopped: the second one draws without seeing its point."""
    url = storage_of(kind)
    monkeypatch.setattr("xray_opt.tuning.locks.STUCK", 0.0)
    draws, said = tune_together(monkeypatch, workspace, url, 2)
    first, *others = read_study("fast", workspace, url).trials
    assert (first.state, first.reason, draws.most[:2]) == ("FAIL", "interrupted", [1, 2])
    assert [trial.state for trial in others] == ["COMPLETE"] * 2
    assert first.params not in [trial.params for trial in others]
    line, *_ = [line for line in said if "was lost" in line]
    assert line.startswith("the lock of fast in storage ")
    assert line.endswith("): what was done under it is looked at anew")
