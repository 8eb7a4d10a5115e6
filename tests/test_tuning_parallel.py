"""Workers that draw at the same time: apart from each other, one after the other, and as one alone would."""

import math
import threading
import time

import pytest

from xray_opt.config import Parameter, PrunerConfig, SamplerConfig, StudyConfig, Workspace
from xray_opt.errors import NotFinite, StudyError
from xray_opt.tuning import Outcome, open_study, read_study, samplers, search

STUDY = StudyConfig(
    "fast",
    space=(
        Parameter("optimizer.learning_rate", "float", low=1e-5, high=1e-1, log=True),
        Parameter("optimizer.weight_decay", "float", low=1e-5, high=1e-1, log=True),
    ),
    sampler=SamplerConfig(startup_trials=8),
    pruner=PrunerConfig("none"),
)
TOGETHER = 4


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path)


def tuned(workspace, objective, total, **options):
    return open_study(STUDY, workspace, "d" * 64).tune(objective, total, **options)


def place_of(params):
    """Where a trial lies on its two axes, in decades."""
    return tuple(math.log10(value) for value in params.values())


def quality(trial):
    """Best at 1e-3 on both axes."""
    return Outcome(1 - sum((axis + 3) ** 2 for axis in place_of(trial.params)) / 100)


def drawn_together(workspace, first):
    """The points of TOGETHER trials that run at the same time, after ``first`` trials of one worker."""
    tuned(workspace, quality, first)
    all_inside = threading.Barrier(TOGETHER, timeout=300)

    def objective(trial):
        all_inside.wait()
        return quality(trial)

    threads = [threading.Thread(target=tuned, args=(workspace, objective, first + TOGETHER)) for _ in range(TOGETHER)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    trials = read_study("fast", workspace).trials
    assert [trial.state for trial in trials] == ["COMPLETE"] * (first + TOGETHER)
    return [place_of(trial.params) for trial in trials[first:]]


def nearest(points):
    """Decades between the two points that lie nearest to each other."""
    return min(math.dist(a, b) for i, a in enumerate(points) for b in points[:i])


def without_liar(monkeypatch):
    real = samplers.optuna.samplers.TPESampler
    monkeypatch.setattr(
        samplers.optuna.samplers, "TPESampler", lambda **options: real(**options | {"constant_liar": False})
    )


@pytest.mark.slow
def test_workers_that_draw_at_once_do_not_try_the_same(tmp_path, monkeypatch):
    def distances(name):
        found = []
        for first in (12, 18, 24):
            root = tmp_path / f"{name}-{first}"
            root.mkdir()
            found.append(nearest(drawn_together(Workspace(root), first)))
        return found

    apart = distances("liar")
    assert min(apart) > 0.02
    without_liar(monkeypatch)
    assert sum(distances("honest")) < sum(apart)


def test_one_worker_draws_the_same_with_and_without_the_liar(tmp_path, monkeypatch):
    params = []
    for name in ("liar", "honest"):
        root = tmp_path / name
        root.mkdir()
        tuned(Workspace(root), quality, 16)
        params.append([trial.params for trial in read_study("fast", Workspace(root)).trials])
        without_liar(monkeypatch)
    assert params[0] == params[1]


def test_a_study_in_parts_equals_one_in_one_go(tmp_path):
    params = []
    for name, parts in (("one", [16]), ("parts", [5, 9, 10, 16])):
        root = tmp_path / name
        root.mkdir()
        for total in parts:
            tuned(Workspace(root), quality, total)
        params.append([trial.params for trial in read_study("fast", Workspace(root)).trials])
    assert params[0] == params[1]


def test_no_two_workers_draw_at_the_same_moment(workspace, monkeypatch):
    inside, most, real = [], [], search.suggest

    def slow(*arguments):
        inside.append(1)
        time.sleep(0.05)
        most.append(len(inside))
        try:
            return real(*arguments)
        finally:
            inside.pop()

    monkeypatch.setattr(search, "suggest", slow)
    drawn_together(workspace, 2)
    assert len(most) == 2 + TOGETHER
    assert set(most) == {1}


def test_what_a_dead_worker_tried_is_no_liar_any_more(workspace):
    """Its trial is ended before the next one is drawn."""
    tuned(workspace, quality, 12)

    def dies(trial):
        raise SystemExit

    with pytest.raises(SystemExit):
        tuned(workspace, dies, 13)
    seen = []

    def objective(trial):
        seen.append([t.number for t in read_study("fast", workspace).trials if t.state == "RUNNING"])
        return quality(trial)

    tuned(workspace, objective, 14)
    assert all(len(running) == 1 for running in seen)


def test_failures_are_forgiven_once_a_call_not_once_a_worker(workspace):
    def fails(trial):
        raise NotFinite("loss")

    with pytest.raises(StudyError, match="failed alike"):
        tuned(workspace, fails, 12)
    said = []
    opened = open_study(STUDY, workspace, "d" * 64)
    crew = opened.begin(12, said.append)
    assert [line for line in said if "do not count any more" in line]
    assert crew.before == {0, 1, 2}
    with pytest.raises(StudyError, match="failed alike"):
        tuned(workspace, fails, 12, crew=crew)
    # A worker of the same call that comes later finds the study stopped.
    with pytest.raises(StudyError, match="failed alike"):
        tuned(workspace, quality, 12, crew=crew)
    assert len(read_study("fast", workspace).trials) == 6


def test_workers_of_one_call_do_not_report_that_they_wait_for_each_other(workspace):
    held, go = threading.Event(), threading.Event()

    def objective(trial):
        held.set()
        assert go.wait(300)
        return quality(trial)

    for crew in (open_study(STUDY, workspace, "d" * 64).begin(1), None):
        total = len(read_study("fast", workspace).trials) + 1
        held.clear()
        go.clear()
        said = []
        first = threading.Thread(target=tuned, args=(workspace, objective, total), kwargs={"crew": crew})
        first.start()
        assert held.wait(300)
        # The second worker finds the last trial taken and waits; who is told of that lets it go on.
        timer = threading.Timer(2, go.set)
        timer.start()
        tuned(workspace, quality, total, say=said.append, crew=crew)
        first.join(300)
        assert bool(said) == (crew is None)


def test_a_study_is_at_work_while_a_trial_of_it_runs(workspace):
    opened = open_study(STUDY, workspace, "d" * 64)
    seen = []

    def objective(trial):
        seen.append(open_study(STUDY, workspace, "d" * 64).is_at_work())
        return quality(trial)

    assert not opened.is_at_work()
    opened.tune(objective, 2)
    assert (seen, opened.is_at_work()) == ([True, True], False)
