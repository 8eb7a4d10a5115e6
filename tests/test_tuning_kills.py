"""A worker dies before each single write to the storage, its successor too: nothing is lost or counted twice."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage

from xray_opt.config import Parameter, PrunerConfig, SamplerConfig, StudyConfig, Workspace
from xray_opt.errors import NotFinite, Pruned
from xray_opt.tuning import Outcome, open_study, read_study

GOOD = {"optimizer.learning_rate": 1e-3}
STUDY = StudyConfig(
    "fast",
    space=(Parameter("optimizer.learning_rate", "float", low=1e-5, high=1e-2, log=True),),
    sampler=SamplerConfig("random"),
    pruner=PrunerConfig("none"),
    enqueue=(GOOD,),
)
WRITES = (
    "create_new_study",
    "set_study_user_attr",
    "set_study_system_attr",
    "_create_new_trial",
    "set_trial_param",
    "set_trial_state_values",
    "set_trial_intermediate_value",
    "set_trial_user_attr",
)
#: Exit code of a process that died before a write.
DIED = 9


def objective(trial):
    """Every kind of end: complete, pruned, failed."""
    trial.note("seen", True)
    trial.report(1, 0.5)
    if trial.number == 1:
        raise Pruned(1)
    if trial.number == 2:
        raise NotFinite("loss")
    return Outcome(0.5, {"auc": 0.9})


def tune(root, total=3, **told):
    return open_study(STUDY, Workspace(root), "d" * 64).tune(objective, total, **told)


def die_before(write, name=None):
    """From now on the process dies before its write of that number (from 0; of those of ``name`` if given)."""
    left = iter(range(write))

    def counting(real):
        def counted(*arguments, **options):
            if next(left, None) is None:
                os._exit(DIED)
            return real(*arguments, **options)

        return counted

    for each in [name] if name else WRITES:
        setattr(RDBStorage, each, counting(getattr(RDBStorage, each)))


def child(root, write, name=None):
    """Tune in a process of its own that dies before a write; whether it died."""
    pid = os.fork()
    if pid == 0:
        try:
            die_before(write, name)
            tune(root)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == DIED


def check(root):
    """Another worker brings the study to its number, whatever was left."""
    tally = tune(root)
    assert (tally.complete + tally.pruned, tally.stopped) in ((3, "done"), (3, "nothing to do"))
    trials = read_study("fast", Workspace(root)).trials
    assert {trial.state for trial in trials} <= {"COMPLETE", "PRUNED", "FAIL", "WAITING"}
    good = [trial for trial in trials if dict(trial.params) == GOOD and trial.state in ("COMPLETE", "PRUNED")]
    assert len(good) == 1
    assert good[0].notes["seen"] is True
    for trial in trials:
        if trial.state == "COMPLETE":
            assert (trial.value, trial.notes["auc"], trial.reason) == (0.5, 0.9, None)
        if trial.state == "FAIL":
            assert trial.reason in ("worker-lost", "nan")
            retried = [other for other in trials if other.notes.get("retry_of") == trial.number]
            assert len(retried) <= (trial.reason == "worker-lost")
            assert retried or not trial.params or trial.reason == "nan"
            assert all(other.params == trial.params for other in retried if trial.params and other.params)


def every_write(folder, most, first):
    """Die before each write of a tune, after another death (``first``) if given; how many writes there were."""
    for write in range(most):
        root = folder / str(write)
        root.mkdir()
        assert first is None or child(root, 1, first)
        died = child(root, write)
        check(root)
        if not died:
            return write
    return most


@pytest.mark.slow
@pytest.mark.parametrize(
    ("most", "first"),
    [
        (100, None),
        (16, "set_trial_intermediate_value"),  # a running trial is left behind
        (8, "set_trial_state_values"),  # one whose ending is written down
    ],
)
def test_a_death_before_any_write_loses_nothing(tmp_path, most, first):
    # In a fresh interpreter: this one may have threads, which a fork does not take along.
    arguments = [sys.executable, __file__, str(tmp_path), str(most), *([first] if first else [])]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) in range(30, 60) if first is None else int(done.stdout) == most


def no_need_for_the_disk(raw, record):
    """A process that dies takes nothing from the page cache with it."""
    raw.execute("PRAGMA synchronous=OFF")


@pytest.fixture
def fast():
    sqlalchemy.event.listen(sqlalchemy.Engine, "connect", no_need_for_the_disk)
    yield
    sqlalchemy.event.remove(sqlalchemy.Engine, "connect", no_need_for_the_disk)


@pytest.mark.slow
def test_a_write_whose_answer_is_lost_costs_nothing(tmp_path, monkeypatch, fast):
    for write in range(100):
        root = tmp_path / str(write)
        root.mkdir()
        study, seen, left = open_study(STUDY, Workspace(root), "d" * 64), {}, iter(range(write))
        faults = []

        def faulty(real, left=left, faults=faults):
            def called(*arguments, **options):
                fault = not faults and next(left, None) is None
                answer = real(*arguments, **options)
                if fault:
                    faults.append(real.__name__)
                    raise StorageInternalError("the connection was lost")
                return answer

            return called

        def watched(trial, seen=seen):
            seen[trial.number] = dict(trial.params)
            return objective(trial)

        with monkeypatch.context() as patch:
            for name in WRITES:
                patch.setattr(RDBStorage, name, faulty(getattr(RDBStorage, name)))
            tally = study.tune(watched, 3)
        trials = read_study("fast", Workspace(root)).trials
        assert tally.complete + tally.pruned == 3, (write, faults)
        assert {trial.state for trial in trials} <= {"COMPLETE", "PRUNED", "FAIL"}
        assert {trial.number: trial.params for trial in trials if trial.number in seen} == seen
        # Only a claim may be lost, before anything was run.
        assert all(trial.reason == "nan" for trial in trials if trial.state == "FAIL" and trial.number in seen)
        if not faults:
            assert write > 20
            return
    raise AssertionError("it never came to its end")


if __name__ == "__main__":
    sqlalchemy.event.listen(sqlalchemy.Engine, "connect", no_need_for_the_disk)
    print(every_write(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else None))
