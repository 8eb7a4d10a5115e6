"""Studies with two objectives: counting, the front, continuing, lost workers, importances; no training."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import warnings
from dataclasses import replace
from pathlib import Path

import optuna
import pytest

from xray_opt.config import Parameter, PrunerConfig, SamplerConfig, StudyConfig, Workspace
from xray_opt.errors import NotFinite, StudyError
from xray_opt.tuning import (
    Lease,
    Outcome,
    StudyRecord,
    TrialRecord,
    copying,
    importances,
    open_study,
    read_study,
    storage_url,
)

SPACE = (
    Parameter("optimizer.learning_rate", "float", low=1e-4, high=1e-1, log=True),
    Parameter("model.strategy", "categorical", choices=("lora", "linear")),
    Parameter("lora.rank", "int", low=1, high=64, when={"model.strategy": "lora"}),
)
STUDY = StudyConfig(
    "two",
    space=SPACE,
    seed=5,
    sampler=SamplerConfig(startup_trials=4),
    pruner=PrunerConfig("none"),
    objectives=("val.f1", "parameters"),
)


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path)


def opened(workspace, study=STUDY):
    return open_study(study, workspace, "d" * 64)


def trade(trial):
    """A higher rank gives a better score and costs more."""
    rank = trial.params.get("lora.rank", 0)
    for epoch in (1, 2):
        trial.report(epoch, 0.25 * epoch)
    return Outcome(0.5 + rank / 200, {"seen": trial.number}, float(1000 + rank))


def made(*values, objectives=("val.f1", "latency")):
    trials = [
        TrialRecord(number, "COMPLETE", {}, one[0], {}, {}, None, None, second=one[1] if len(one) > 1 else None)
        for number, one in enumerate(values)
    ]
    return StudyRecord("made", tuple(trials), {"rules": {"objectives": list(objectives)}})


def numbers(trials):
    return [trial.number for trial in trials]


def test_the_front_has_what_nothing_is_better_than():
    record = made((0.9, 10.0), (0.8, 5.0), (0.7, 7.0), (0.8, 6.0), (0.9, 12.0), (0.6, 1.0), (0.8, 5.0))
    assert numbers(record.front) == [0, 1, 6, 5]
    assert record.best.number == 0
    assert numbers(record.ranked) == [0, 1, 6, 5, 4, 3, 2]
    more = made((0.9, 0.2), (0.8, 0.5), (0.9, 0.3), (0.7, 0.4), objectives=("val.f1", "robustness"))
    assert numbers(more.front) == [2, 1]
    assert numbers(made((0.5,), (0.9,), (0.9,), (0.7,), objectives=("val.f1",)).front) == [1]
    assert numbers(made((0.5,), (0.9,), (0.9,), objectives=("val.f1",)).ranked) == [1, 2, 0]
    assert made().front == made().ranked == ()


@pytest.mark.parametrize("second", ["parameters", "robustness"])
def test_the_front_is_that_of_optuna(workspace, second):
    study = replace(STUDY, objectives=("val.f1", second))
    chance = iter([(0.1 * (k * 7 % 5), float(k * 3 % 4)) for k in range(12)])

    def objective(trial):
        value, other = next(chance)
        return Outcome(value, second=other)

    opened(workspace, study).tune(objective, 12)
    theirs = optuna.load_study(study_name="two", storage=storage_url(workspace)).best_trials
    assert sorted(numbers(read_study("two", workspace).front)) == sorted(trial.number for trial in theirs)


def test_trials_are_counted_and_keep_their_values_and_epochs(workspace):
    tally = opened(workspace).tune(trade, 6)
    assert (tally.complete, tally.pruned, tally.failed, tally.stopped) == (6, 0, 0, "done")
    assert opened(workspace).tune(trade, 6).stopped == "nothing to do"
    record = read_study("two", workspace)
    assert tally.front == record.front
    assert tally.best == record.best == max(record.trials, key=lambda trial: trial.value)
    assert all(trial.intermediate == {1: 0.25, 2: 0.5} for trial in record.trials)
    assert all(trial.second == 1000 + trial.params.get("lora.rank", 0) for trial in record.trials)
    assert all(("lora.rank" in trial.params) == (trial.params["model.strategy"] == "lora") for trial in record.trials)
    assert TrialRecord.from_dict(json.loads(json.dumps(record.trials[0].to_dict()))) == record.trials[0]
    assert record.to_dict()["front"] == numbers(record.front)


def test_optuna_and_its_dashboard_know_both_objectives(workspace):
    opened(workspace).tune(trade, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study = optuna.load_study(study_name="two", storage=storage_url(workspace))
    assert study.metric_names == ["val.f1", "parameters"]
    assert [direction.name for direction in study.directions] == ["MAXIMIZE", "MINIMIZE"]


@pytest.mark.parametrize("name", ["tpe", "nsgaii", "random", "qmc"])
def test_a_continued_study_equals_an_uninterrupted_one(tmp_path, name):
    params = []
    study = replace(STUDY, sampler=SamplerConfig(name, startup_trials=4))
    for place, calls in (("once", (9,)), ("twice", (3, 9))):
        workspace = Workspace(tmp_path / place)
        workspace.root.mkdir()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for total in calls:
                opened(workspace, study).tune(trade, total)
        params.append([dict(trial.params) for trial in read_study("two", workspace).trials])
    assert params[0] == params[1]
    different = len({one["optimizer.learning_rate"] for one in params[0]})
    assert 4 < different < 9 if name == "nsgaii" else different == 9, "a generation crosses what the one before drew"


def test_a_failed_trial_and_one_without_a_number_have_no_values(workspace):
    def objective(trial):
        if trial.number == 1:
            raise NotFinite("loss is nan")
        return Outcome(0.5, second=float("nan") if trial.number == 2 else 1.0)

    tally = opened(workspace).tune(objective, 3)
    assert (tally.complete, tally.failed) == (3, 2)
    failed = [trial for trial in read_study("two", workspace).trials if trial.state == "FAIL"]
    assert [(trial.number, trial.reason, trial.value, trial.second) for trial in failed] == [
        (1, "nan", None, None),
        (2, "nan", None, None),
    ]
    assert "0.5 and nan" in failed[1].message


def test_other_objectives_are_another_study(workspace):
    opened(workspace).tune(trade, 1)
    with pytest.raises(StudyError, match=r"objectives were val\.f1, parameters, now they are val\.f1, latency"):
        opened(workspace, replace(STUDY, objectives=("val.f1", "latency")))
    with pytest.raises(StudyError, match=r"now they are val\.f1;"):
        opened(workspace, replace(STUDY, objectives=("val.f1",)))


def test_each_objective_has_its_importances(workspace):
    def objective(trial):
        return Outcome(trial.params["optimizer.learning_rate"], second=float(trial.params.get("lora.rank", 0)))

    sampler = SamplerConfig("random")
    opened(workspace, replace(STUDY, sampler=sampler)).tune(objective, 24)
    first = importances("two", workspace)
    second = importances("two", workspace, objective="parameters")
    assert max(first, key=first.get) == "optimizer.learning_rate"
    assert max(second, key=second.get) == "model.strategy", "a probe has no rank, which is the lowest"
    assert first.keys() == second.keys() == {"optimizer.learning_rate", "model.strategy", "lora.rank"}


def test_a_study_moves_with_both_objectives(workspace, tmp_path):
    opened(workspace).tune(trade, 4)
    target = f"sqlite:///{tmp_path / 'there.db'}"
    with copying("two", storage_url(workspace), target) as copy:
        copy.finish({}, {}, {})
        assert copy.counts()["trials"] == (4, 4)
    moved = read_study("two", workspace, target)
    assert moved.objectives == ("val.f1", "parameters")
    assert [(t.value, t.second) for t in moved.trials] == [
        (t.value, t.second) for t in read_study("two", workspace).trials
    ]
    tally = opened(workspace, replace(STUDY, storage=target)).tune(trade, 6)
    assert (tally.complete, tally.started_now) == (6, 2)


WORKER = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from test_tuning_objectives import STUDY, trade
from xray_opt.config import Workspace
from xray_opt.tuning import open_study

def objective(trial):
    if trial.number == 2:
        trial.report(1, 0.25)
        os.kill(os.getpid(), signal.SIGKILL)
    return trade(trial)

open_study(STUDY, Workspace(Path(sys.argv[1])), "d" * 64).tune(objective, 5)
"""


@pytest.mark.slow
def test_a_trial_that_lost_its_worker_is_done_again_with_both_values(workspace):
    root = Path(__file__).parent.parent
    command = [sys.executable, "-c", textwrap.dedent(WORKER), str(workspace.root), str(root / "tests"), str(root)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    lost = []
    tally = opened(workspace).tune(trade, 5, lost=lost.append, lease=Lease(0.2, 1.0))
    assert (tally.complete, tally.failed, numbers(lost)) == (5, 1, [2])
    record = read_study("two", workspace)
    assert (record.trials[2].reason, record.trials[2].intermediate) == ("worker-lost", {1: 0.25})
    again = next(trial for trial in record.trials if trial.notes.get("retry_of") == 2)
    assert again.params == record.trials[2].params
    assert again.second == 1000 + again.params.get("lora.rank", 0)


@pytest.mark.slow
def test_two_workers_share_a_study_with_two_objectives(workspace):
    opened(workspace)
    root = Path(__file__).parent.parent
    code = WORKER.replace("tune(objective, 5)", "tune(trade, 12)")
    command = [sys.executable, "-c", code, str(workspace.root), str(root / "tests"), str(root)]
    workers = [subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}) for _ in range(2)]
    assert [worker.wait(120) for worker in workers] == [0, 0]
    record = read_study("two", workspace)
    assert (record.counted, len(record.trials)) == (12, 12)
    assert all(trial.second is not None for trial in record.trials)
