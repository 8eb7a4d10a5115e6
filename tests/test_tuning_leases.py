"""Workers that die, come back, or cannot be looked at; studies that are deleted under them."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import asdict, replace
from types import SimpleNamespace

import optuna
import pytest
from optuna.storages import RDBStorage

from xray_opt.config import Parameter, PrunerConfig, SamplerConfig, StudyConfig, Workspace
from xray_opt.errors import StudyError
from xray_opt.tuning import (
    Lease,
    Outcome,
    delete_study,
    list_studies,
    open_study,
    read_study,
    require_idle,
    storage_url,
)
from xray_opt.tuning.claims import Claims
from xray_opt.tuning.leases import Watch, beating
from xray_opt.tuning.locks import sole_lock
from xray_opt.tuning.owners import at_work, this_worker
from xray_opt.tuning.reaping import failed
from xray_opt.tuning.records import BEAT, ENDING, OWNER

STUDY = StudyConfig(
    "fast",
    space=(Parameter("optimizer.learning_rate", "float", low=1e-5, high=1e-2, log=True),),
    sampler=SamplerConfig("random"),
    pruner=PrunerConfig("none"),
)
#: Out of patience soon; and a worker that gives no sign of life and loses no patience.
SHORT, SILENT = Lease(0.05, 0.5), Lease(3600, 3600)


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path)


def opened(workspace, study=STUDY):
    return open_study(study, workspace, "d" * 64)


def loaded(workspace):
    return optuna.load_study(study_name="fast", storage=storage_url(workspace))


def half(trial):
    return Outcome(0.5)


def elsewhere(workspace):
    """A RUNNING trial of a worker that cannot be looked at from here."""
    trial = loaded(workspace).ask()
    with at_work() as name:
        trial.set_user_attr(OWNER, this_worker(name) | {"sight": "another", "host": "elsewhere"})
    return trial


def states(workspace):
    return [trial.state for trial in read_study("fast", workspace).trials]


def wait_until(condition, seconds=300):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


class Worker(threading.Thread):
    """A worker in a thread, held in its trials until ``go_on`` is set."""

    def __init__(self, study, total, lease, report=False):
        super().__init__(daemon=True)
        self.study, self.total, self.lease, self.report = study, total, lease, report
        self.inside, self.go_on, self.said = threading.Event(), threading.Event(), []
        self.tally = self.error = None
        self.start()

    def run(self):
        try:
            self.tally = self.study.tune(self.objective, self.total, lease=self.lease, say=self.said.append)
        except StudyError as error:
            self.error = error

    def objective(self, trial):
        self.inside.set()
        assert self.go_on.wait(300)
        if self.report:
            trial.report(1, 0.5)
        return Outcome(0.5)

    def end(self):
        self.go_on.set()
        self.join(300)
        assert not self.is_alive()


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(time=1000.0)
    monkeypatch.setattr("xray_opt.tuning.leases.time", SimpleNamespace(monotonic=lambda: now.time))
    return now


def seen(beat=0, number=0, worker="a", sight="another"):
    attrs = {OWNER: {"worker": worker, "sight": sight, "host": "h"}, BEAT: beat}
    return SimpleNamespace(number=number, user_attrs=attrs)


def test_a_worker_whose_count_stands_still_is_dead_after_the_patience(clock):
    watch, trial = Watch(Lease(10, 60)), seen()
    for _ in range(6):
        watch.look([trial])
        assert watch.is_unsure(trial)
        assert not watch.is_dead(trial)
        clock.time += 10
    watch.look([trial])
    assert watch.is_dead(trial)
    assert not watch.is_unsure(trial)


def test_a_count_that_moves_is_a_sign_of_life(clock):
    watch = Watch(Lease(10, 60))
    for beat in range(30):
        watch.look([seen(beat)])
        assert watch.is_unsure(seen(beat)) == (beat == 0)
        assert not watch.is_dead(seen(beat))
        clock.time += 20
    watch.look([seen(30, number=1)])  # so is its next trial
    assert not watch.is_unsure(seen(30, number=1))


def test_one_look_after_a_long_time_kills_nobody(clock):
    watch, trial = Watch(Lease(10, 60)), seen()
    for _ in range(3):
        watch.look([trial])
        clock.time += 3600
        assert not watch.is_dead(trial)
    watch.look([seen(1)])  # some time within the hour: it may have died since
    assert watch.is_unsure(seen(1))


def test_a_trial_out_of_sight_is_taken_when_its_lease_runs_out(workspace):
    study, said, lost = opened(workspace), [], []
    elsewhere(workspace)
    tally = study.tune(half, 1, lease=SHORT, say=said.append, lost=lambda record: lost.append(record.number))
    assert (tally.complete, tally.failed, lost) == (1, 1, [0])
    where = f"process {os.getpid()} on host elsewhere"
    assert said == [f"waiting for trial 0 of {where}, up to 0 s for a sign of life"]
    assert read_study("fast", workspace).trials[0].reason == "worker-lost"


@pytest.mark.parametrize(("total", "timeout", "stopped"), [(1, None, "nothing to do"), (2, 0, "timeout")])
def test_nothing_of_a_dead_worker_is_left_running_when_a_tune_ends(workspace, total, timeout, stopped):
    opened(workspace).tune(half, 1)
    elsewhere(workspace)
    tally = opened(workspace).tune(half, total, timeout=timeout, lease=SHORT)
    assert (tally.started_now, tally.stopped) == (0, stopped)
    assert states(workspace) == ["COMPLETE", "FAIL"]


def test_a_living_trial_out_of_sight_is_waited_for(workspace):
    study = opened(workspace)
    trial = elsewhere(workspace)
    storage = RDBStorage(storage_url(workspace))
    with beating(storage, trial._trial_id, 0.05):
        worker = Worker(study, 1, Lease(0.05, 60))
        wait_until(lambda: worker.said)
        loaded(workspace).tell(trial, 0.7)
        worker.end()
    assert (worker.tally.complete, worker.tally.failed, worker.tally.started_now) == (1, 0, 0)


def test_a_tune_that_has_its_number_does_not_wait_for_the_living(workspace):
    opened(workspace).tune(half, 1)
    trial = elsewhere(workspace)
    with beating(RDBStorage(storage_url(workspace)), trial._trial_id, 0.05):
        tally = opened(workspace).tune(half, 1, lease=Lease(0.05, 60))
    assert tally.stopped == "nothing to do"
    assert states(workspace) == ["COMPLETE", "RUNNING"]


def test_signs_of_life_are_given_while_a_trial_runs_and_survive_a_fault_of_the_storage(workspace, monkeypatch):
    faults, real = iter(range(3)), RDBStorage.set_trial_user_attr

    def sometimes(self, trial_id, key, value):
        if key == BEAT and next(faults, None) is not None:
            raise optuna.exceptions.StorageInternalError("the database restarts")
        real(self, trial_id, key, value)

    monkeypatch.setattr(RDBStorage, "set_trial_user_attr", sometimes)

    def objective(trial):
        wait_until(lambda: loaded(workspace).trials[0].user_attrs.get(BEAT, 0) > 5)
        return Outcome(0.5)

    assert opened(workspace).tune(objective, 1, lease=Lease(0.02, 60)).complete == 1
    assert BEAT not in read_study("fast", workspace).trials[0].notes


def test_signs_of_life_are_given_while_a_trial_is_drawn_under_the_lock(workspace, monkeypatch):
    """A slow sampler, or a machine that is busy; the others must not take the trial for lost."""
    beats, real = [], optuna.Trial.suggest_float

    def slow(trial, *arguments, **options):
        watch = Watch(Lease(0.05, 20))

        def beaten():
            held = loaded(workspace).get_trials(states=(optuna.trial.TrialState.RUNNING,))
            watch.look(held)
            assert not watch.is_dead(held[0])
            beats.append(held[0].user_attrs.get(BEAT, 0))
            return beats[-1] > 3

        wait_until(beaten, 60)
        return real(trial, *arguments, **options)

    monkeypatch.setattr(optuna.Trial, "suggest_float", slow)
    tally = opened(workspace).tune(half, 1, lease=Lease(0.05, 60))
    assert (tally.complete, tally.failed) == (1, 0)
    assert max(beats) > 3


def test_the_thread_ends_with_its_trial(workspace):
    opened(workspace)
    trial, before = elsewhere(workspace), set(threading.enumerate())
    with beating(RDBStorage(storage_url(workspace)), trial._trial_id, 0.01):
        wait_until(lambda: loaded(workspace).trials[0].user_attrs.get(BEAT, 0) > 1)
        (thread,) = (one for one in set(threading.enumerate()) - before if one.name == "xray-opt-lease")
        loaded(workspace).tell(trial, 0.5)
        thread.join(300)  # the block is not left yet: only the storage can have told it
        assert not thread.is_alive()


def test_a_trial_that_was_taken_from_a_living_worker_is_discarded_by_it(workspace):
    for report in (False, True):
        worker = Worker(opened(workspace), 1 + report, SILENT, report)
        assert worker.inside.wait(300)
        tally = opened(workspace).tune(half, 1 + report, lease=SHORT)
        assert tally.complete == 1 + report
        worker.end()
        assert worker.tally.complete == 1 + report
        assert sum("discarded" in line for line in worker.said) == 1
    assert states(workspace) == ["FAIL", "COMPLETE"] * 2


def test_what_was_written_first_of_how_a_trial_ends_holds(workspace):
    worker = Worker(opened(workspace), 1, Lease())
    assert worker.inside.wait(300)
    study = loaded(workspace)
    ending = asdict(failed("worker-lost", "taken"))
    study._storage.set_trial_user_attr(study.trials[0]._trial_id, ENDING, ending)  # and died before the rest
    worker.end()
    first, second = read_study("fast", workspace).trials
    assert (first.state, first.reason, second.state) == ("FAIL", "worker-lost", "COMPLETE")
    assert (second.notes["retry_of"], worker.tally.complete) == (0, 1)
    assert sum("discarded" in line for line in worker.said) == 1


def test_a_waiting_worker_says_for_whom_once(workspace):
    worker = Worker(opened(workspace), 1, Lease())
    assert worker.inside.wait(300)
    said = []

    def say(line):
        said.append(line)
        worker.go_on.set()

    assert opened(workspace).tune(half, 1, say=say, lease=Lease(0.05, 60)).started_now == 0
    worker.end()
    assert said == [f"waiting for trial 0 of process {os.getpid()} on host {socket.gethostname()}"]


def test_a_storage_whose_folder_is_gone_is_one_line(workspace):
    def objective(trial):
        shutil.rmtree(workspace.studies)
        return Outcome(0.5)

    with pytest.raises(StudyError, match="cannot be locked"):
        opened(workspace).tune(objective, 1)


def test_a_claim_that_broke_after_it_was_stored_is_let_go_of(workspace, monkeypatch):
    real, faults = optuna.Trial.set_user_attr, iter([1])

    def breaks(trial, key, value):
        real(trial, key, value)
        if key == OWNER and next(faults, None):
            raise optuna.exceptions.StorageInternalError("the connection was lost")

    monkeypatch.setattr(optuna.Trial, "set_user_attr", breaks)
    tally = opened(workspace).tune(half, 2)
    assert (tally.complete, tally.failed, tally.started_now) == (2, 1, 2)
    assert read_study("fast", workspace).trials[0].reason == "interrupted"


OUT_OF_SIGHT = """
    import sys, threading
    from pathlib import Path
    from xray_opt.tuning import Lease, owners
    sys.path.insert(0, sys.argv[2])
    from test_tuning_leases import STUDY, Workspace, open_study

    root = Path(sys.argv[1])
    owners._sight = lambda: "another container"

    def objective(trial):
        trial.report(1, 0.25)
        (root / "inside").touch()
        threading.Event().wait()

    open_study(STUDY, Workspace(root), "d" * 64).tune(objective, 2, lease=Lease(0.2, 60))
"""


def test_the_trial_of_a_killed_worker_out_of_sight_is_resumed(workspace):
    (workspace.root / "worker.py").write_text(textwrap.dedent(OUT_OF_SIGHT))
    command = [sys.executable, str(workspace.root / "worker.py"), str(workspace.root), os.path.dirname(__file__)]
    process = subprocess.Popen(command)
    wait_until((workspace.root / "inside").exists, 120)
    with pytest.raises(StudyError, match="trial 0 runs in process"):
        require_idle("fast", workspace)
    with pytest.raises(StudyError, match="up to 2 trials, not 1"):  # it gives signs of life
        opened(workspace).tune(half, 1, lease=Lease(0.05, 30))
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    seen = []
    tally = opened(workspace).tune(lambda trial: seen.append(trial) or Outcome(0.5), 1, lease=SHORT)
    (lost, resumed) = read_study("fast", workspace).trials
    assert (tally.complete, lost.reason, lost.intermediate) == (1, "worker-lost", {1: 0.25})
    assert (seen[0].retry_of, list(seen[0].earlier), resumed.params) == (0, [0], lost.params)


def test_a_study_at_work_is_not_deleted_unless_by_force_and_its_worker_says_so(workspace):
    worker = Worker(opened(workspace), 1, Lease())
    assert worker.inside.wait(300)
    with pytest.raises(StudyError, match=r"trial 0 runs in process .*stop that worker first"):
        delete_study("fast", workspace)
    assert states(workspace) == ["RUNNING"]
    delete_study("fast", workspace, force=True)
    assert list_studies(workspace) == []
    worker.end()
    gone = "study fast was deleted while a worker was on it: this worker stops"
    assert str(worker.error) == gone
    for look in (worker.study.read, lambda: worker.study.notes, lambda: worker.study.annotate("key", 1)):
        with pytest.raises(StudyError, match=gone):
            look()


def test_a_study_whose_workers_are_dead_is_deleted(workspace):
    study = opened(workspace)
    trial = loaded(workspace).ask()
    with at_work() as name:
        trial.set_user_attr(OWNER, this_worker(name))
    require_idle("fast", workspace)
    delete_study("fast", workspace)
    with pytest.raises(StudyError, match="was deleted while a worker was on it"):
        study.tune(half, 1)


def test_the_result_of_a_trial_is_not_told_to_a_new_study_of_the_same_name(workspace):
    worker = Worker(opened(workspace), 1, Lease())
    assert worker.inside.wait(300)
    delete_study("fast", workspace, force=True)
    opened(workspace)
    other = elsewhere(workspace)  # SQLite gives the trial's number again, too
    worker.end()
    assert "was deleted" in str(worker.error)
    (trial,) = loaded(workspace).trials
    assert (trial._trial_id, trial.state.name, trial.values) == (other._trial_id, "RUNNING", None)


def test_a_worker_does_not_go_on_in_a_new_study_of_the_same_name(workspace):
    old = opened(workspace)
    old.tune(half, 1)
    delete_study("fast", workspace)
    new = opened(workspace, replace(STUDY, seed=1))
    assert loaded(workspace)._study_id == old._study._study_id  # SQLite gives the number again
    with pytest.raises(StudyError, match="was deleted"):
        old.tune(half, 2)
    assert new.tune(half, 2).complete == 2
    assert len(states(workspace)) == 2


def test_who_is_slow_to_hear_of_a_lost_trial_holds_up_no_other_worker(workspace):
    """MLflow may take minutes to close the run of a dead worker: the others go on claiming trials meanwhile."""
    opened(workspace)
    dead = loaded(workspace).ask()
    other_ran, told = threading.Event(), []

    def slow(record):
        told.append(record.number)
        assert other_ran.wait(300), "the other worker could not claim a trial"

    def ran(trial):
        other_ran.set()
        return Outcome(0.5)

    first = threading.Thread(target=lambda: opened(workspace).tune(half, 3, lost=slow), daemon=True)
    first.start()
    wait_until(lambda: told)
    assert opened(workspace).tune(ran, 3).complete == 3
    first.join(300)
    assert told == [dead.number]
    assert states(workspace) == ["FAIL", "COMPLETE", "COMPLETE", "COMPLETE"]


def test_no_line_is_said_under_the_lock(workspace, monkeypatch):
    """Where a terminal is stopped (Ctrl-S) whoever says a line stands still, with the lock if it has that."""
    free = dict[str, bool]()

    def say(line):
        with sole_lock(storage_url(workspace), "fast") as taken:
            free[line] = taken
        worker.go_on.set()

    def fails(trial):
        raise ValueError("nobody thought of this")

    with pytest.raises(StudyError):
        opened(workspace).tune(fails, 3)
    worker = Worker(opened(workspace), 1, Lease())  # forgives, and says so to nobody
    assert worker.inside.wait(300)
    opened(workspace).tune(half, 1, say=say, lease=Lease(0.05, 60))
    worker.end()
    with pytest.raises(StudyError):
        opened(workspace).tune(fails, 4)
    taken, first = optuna.Trial.set_user_attr, iter([1])

    def ended_meanwhile(trial, key, value):
        if key == OWNER and next(first, None):
            trial.study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        taken(trial, key, value)

    monkeypatch.setattr(optuna.Trial, "set_user_attr", ended_meanwhile)
    opened(workspace).tune(half, 4, say=say)
    waiting, mended, ended = free
    assert ("waiting" in waiting, "mended" in mended, "before it began" in ended) == (True, True, True), free
    assert all(free.values()), free


def test_a_storage_that_fails_in_mid_claim_has_no_lost_trial_untold(workspace, monkeypatch):
    opened(workspace)
    dead, told, failures = loaded(workspace).ask(), [], iter([True])
    real = RDBStorage.create_new_trial

    def shaky(self, study_id, template_trial=None):
        if next(failures, False):
            raise optuna.exceptions.StorageInternalError("the connection was lost")
        return real(self, study_id, template_trial)

    study = opened(workspace)
    monkeypatch.setattr(RDBStorage, "create_new_trial", shaky)
    assert study.tune(half, 1, lost=lambda record: told.append(record.number)).complete == 1
    assert told == [dead.number]


def test_a_dead_workers_trial_is_found_while_all_others_are_in_long_ones(workspace):
    """No claim comes for hours: the call itself looks."""
    worker = Worker(opened(workspace), 3, Lease())
    assert worker.inside.wait(300)
    dead, told, said = loaded(workspace).ask(), [], []
    dead.suggest_float("optimizer.learning_rate", 1e-5, 1e-2, log=True)
    empty = loaded(workspace).ask()
    with opened(workspace).reaping(lambda record: told.append(record.number), said.append, SHORT):
        wait_until(lambda: states(workspace) == ["RUNNING", "FAIL", "FAIL", "WAITING"] and len(told) == 2)
    assert told == [1, empty.number]
    assert said == [
        "the worker of trial 1 is lost; the trial is queued again",
        "the worker of trial 2 is lost; the trial is tried no more",
    ]
    wait_until(lambda: "xray-opt-reaper" not in {thread.name for thread in threading.enumerate()}, 30)
    worker.end()
    assert states(workspace) == ["COMPLETE", "FAIL", "FAIL", "COMPLETE", "COMPLETE"]
    assert read_study("fast", workspace).trials[3].notes["retry_of"] == 1


def test_who_waits_looks_without_the_lock(workspace, monkeypatch):
    """The lock is everybody's: those who have something to do would wait for those who have not."""
    worker = Worker(opened(workspace), 1, Lease())
    assert worker.inside.wait(300)
    locks, looks = [], []
    lock, look = Claims.lock, Claims.is_worth_a_try
    monkeypatch.setattr(Claims, "lock", lambda self: (locks.append(1), lock(self))[1])
    monkeypatch.setattr(Claims, "is_worth_a_try", lambda self, *rest: (looks.append(1), look(self, *rest))[1])
    waiting = threading.Thread(target=lambda: opened(workspace).tune(half, 1, lease=Lease(0.02, 60)), daemon=True)
    waiting.start()
    wait_until(lambda: len(looks) > 20)
    assert len(locks) < 4  # to begin, and one claim
    worker.end()
    waiting.join(300)
    assert not waiting.is_alive()


def test_a_call_for_another_total_beside_one_at_work_is_refused(workspace):
    """Less would register the best of a few as champion, more would go on when the others have ended."""
    early = [opened(workspace).begin(total) for total in (2, 5)]  # nobody is at work yet
    worker = Worker(opened(workspace), 5, Lease())
    assert worker.inside.wait(300)
    wanted = rf"up to 5 trials, not \d \(trial 0, process {os.getpid()} on host .*: join them with --trials 5"
    for total in (2, 7):
        with pytest.raises(StudyError, match=wanted):
            opened(workspace).begin(total)
    with pytest.raises(StudyError, match=wanted):  # it began before the other one had a trial
        opened(workspace).tune(half, 2, crew=early[0])
    assert states(workspace) == ["RUNNING"], "no trial was taken"
    opened(workspace).begin(5)
    late = threading.Thread(target=lambda: opened(workspace).tune(half, 5, crew=early[1]), daemon=True)
    late.start()
    wait_until(lambda: states(workspace).count("COMPLETE") == 4)
    worker.end()
    late.join(300)
    assert states(workspace) == ["COMPLETE"] * 5
    opened(workspace).tune(half, 7)  # nobody is at work any more
    assert len(states(workspace)) == 7
