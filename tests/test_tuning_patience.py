"""How long a storage, and a lock of it, is waited for."""

import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack

import optuna
import pytest
from proxy_server import proxy

from xray_opt.tuning.connecting import within
from xray_opt.tuning.locks import LATE, Waiting, longest, study_lock
from xray_opt.tuning.storage import Patience, open_storage
from xray_opt.tuning.urls import LockBusy, StorageAway, sqlite_file


@pytest.fixture
def database(tmp_path):
    return f"sqlite:///{tmp_path}/optuna.db"


def test_patience_counts_from_the_first_failure(database):
    """Who was stopped for longer than that, and lost its lock meanwhile, starts over."""
    said, failures = [], [0.6]

    def action():
        while failures:
            time.sleep(failures.pop())
            raise optuna.exceptions.StorageInternalError("the lock was lost")
        return "done"

    assert Patience(database, said.append, 0.5)(action) == "done"
    assert len(said) == 1
    failures += [0.0] * 100
    with pytest.raises(StorageAway, match="stayed away"):
        Patience(database, said.append, 0.5)(action)


@pytest.mark.parametrize("behind", [False, True])
def test_a_lock_that_was_waited_for_as_long_as_may_be_is_not_waited_for_again(database, tmp_path, behind):
    """Patience itself limits the wait here: a second, at least."""
    with ExitStack() as stack:
        url = database
        if behind:
            pytest.importorskip("grpc", reason="no grpcio here: install the extra grpc")
            url = stack.enter_context(proxy(database, tmp_path)).url
        storage, said, calls = open_storage(url), [], []

        def action():
            calls.append(1)
            with study_lock(storage, "fast"):
                raise AssertionError("two hold it")

        with (
            study_lock(open_storage(url), "fast"),
            pytest.raises(LockBusy, match=r"the lock of fast in storage sqlite.* was not free for 1 s"),
        ):
            Patience(url, said.append, 0.5)(action)
    assert (calls, said) == ([1], [])


HOLDERS = """
import sys, time
from xray_opt.tuning.locks import file_lock
while True:
    with file_lock(sys.argv[1], "fast"):
        print("held", flush=True)
        time.sleep(0.2)
"""


def test_a_line_of_holders_is_not_one_that_hangs(database, monkeypatch):
    """Two processes take turns, a third waits for several times as long as for one holder."""
    monkeypatch.setattr("xray_opt.tuning.locks.SOON", 1.5)
    command = [sys.executable, "-c", HOLDERS, database]
    others = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        for other in others:
            assert other.stdout.readline() == "held\n"
        file = sqlite_file(database)
        waiting = Waiting("fast", database, [].append, longest("fast", server=False))
        with file.with_name(f"{file.name}.lock").open("a") as handle:

            def wait(seconds):
                end = time.monotonic() + seconds
                while time.monotonic() < end:
                    waiting.go_on(os.fstat(handle.fileno()).st_mtime_ns)
                    time.sleep(0.01)

            wait(5)
            for other in others:
                other.send_signal(signal.SIGSTOP)
            with pytest.raises(LockBusy, match="somebody who holds it hangs"):
                wait(60)
    finally:
        for other in others:
            other.kill()
            other.wait()


def test_a_server_frees_the_lock_of_those_that_hang_so_a_long_line_is_waited_for():
    assert longest("fast", server=True) == longest(":settle:fast", server=False) == LATE
    with within(1.0):
        assert longest("fast", server=True) == longest("fast", server=False) == 1.0
