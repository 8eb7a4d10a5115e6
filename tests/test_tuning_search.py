"""The loop with fast objectives on real storages: counting, continuing, failing, dying."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import optuna
import pytest

from xray_opt.config import Workspace, load_study
from xray_opt.errors import DataError, NotFinite, OutOfMemory, StudyError, TrackingError, TrainingError
from xray_opt.tuning import Outcome, open_study, read_study, storage_url
from xray_opt.tuning.owners import at_work, this_worker

STUDY = """
name: fast
seed: 3
config:
  training: {epochs: 4}
space:
  optimizer.learning_rate: {type: float, low: 1e-5, high: 1e-1, log: true}
  model.strategy: {type: categorical, choices: [lora, linear]}
  lora.rank: {type: categorical, choices: [4, 8, 16], when: {model.strategy: lora}}
sampler: {name: tpe, startup_trials: 3}
pruner: {name: median, startup_trials: 2, warmup_epochs: 1}
enqueue:
  - {optimizer.learning_rate: 1e-3, model.strategy: lora, lora.rank: 8}
"""


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path)


def config(workspace, text=STUDY):
    path = workspace.root / "fast.yaml"
    path.write_text(text)
    return load_study(path)


def opened(workspace, text=STUDY, data="d" * 64):
    return open_study(config(workspace, text), workspace, data)


def smooth(trial):
    """Best near a learning rate of 1e-3; better each epoch."""
    quality = 1 / (1 + abs(-3 - _log10(trial.params["optimizer.learning_rate"])))
    for epoch in range(1, trial.config.training.epochs + 1):
        trial.report(epoch, quality * epoch / 4)
    return Outcome(quality, {"seen": trial.number})


def _log10(value):
    from math import log10

    return log10(value)


def test_brings_a_study_to_its_number_and_then_does_nothing(workspace):
    tally = opened(workspace).tune(smooth, 6)
    assert (tally.complete + tally.pruned, tally.started_now, tally.stopped) == (6, 6, "done")
    again = opened(workspace).tune(smooth, 6)
    assert (again.started_now, again.stopped) == (0, "nothing to do")
    more = opened(workspace).tune(smooth, 8)
    assert (more.complete + more.pruned, more.started_now) == (8, 2)


def test_the_known_good_setting_is_trial_zero_and_queued_once(workspace):
    opened(workspace).tune(smooth, 2)
    opened(workspace).tune(smooth, 4)
    trials = read_study("fast", workspace).trials
    good = {"optimizer.learning_rate": 1e-3, "model.strategy": "lora", "lora.rank": 8}
    assert trials[0].params == good
    assert [trial.number for trial in trials if trial.params == good] == [0]


def test_a_continued_study_equals_an_uninterrupted_one(tmp_path):
    params = []
    for name, calls in (("once", (10,)), ("twice", (4, 10))):
        workspace = Workspace(tmp_path / name)
        workspace.root.mkdir()
        for total in calls:
            opened(workspace).tune(smooth, total)
        params.append([dict(trial.params) for trial in read_study("fast", workspace).trials])
    assert params[0] == params[1]
    assert len({p["optimizer.learning_rate"] for p in params[0]}) == 10


def test_conditional_parameters_are_asked_for_only_where_they_apply(workspace):
    opened(workspace).tune(smooth, 12)
    for trial in read_study("fast", workspace).trials:
        assert ("lora.rank" in trial.params) == (trial.params["model.strategy"] == "lora")


def test_poor_trials_are_pruned_but_never_in_the_warm_up(workspace):
    qualities = iter([0.9, 0.9, 0.9, 0.1, 0.1])

    def objective(trial):
        quality = next(qualities)
        for epoch in range(1, 5):
            trial.report(epoch, quality)
        return Outcome(quality)

    tally = opened(workspace).tune(objective, 5)
    assert (tally.complete, tally.pruned) == (3, 2)
    pruned = [t for t in read_study("fast", workspace).trials if t.state == "PRUNED"]
    assert all(list(trial.intermediate) == [1, 2] for trial in pruned)


def test_no_trial_is_pruned_at_its_last_epoch(workspace):
    # The others rise at the end, so only there the last one lies below their median.
    curves = iter([[0.1, 0.1, 0.1, 0.9]] * 3 + [[0.5] * 4])

    def objective(trial):
        for epoch, value in enumerate(curve := next(curves), start=1):
            trial.report(epoch, value)
        return Outcome(max(curve))

    tally = opened(workspace).tune(objective, 4)
    assert (tally.complete, tally.pruned) == (4, 0)


def test_failures_come_on_top_and_keep_their_reason(workspace):
    def objective(trial):
        if trial.number == 1:
            raise NotFinite("loss became NaN in epoch 2")
        if trial.number == 3:
            raise RuntimeError("odd\nthing")
        return Outcome(float("nan") if trial.number == 4 else 0.5)

    tally = opened(workspace).tune(objective, 16)
    assert (tally.complete, tally.failed) == (16, 3)
    failed = {t.number: (t.reason, t.message) for t in read_study("fast", workspace).trials if t.state == "FAIL"}
    assert failed[1] == ("nan", "loss became NaN in epoch 2")
    assert failed[3] == ("error", "RuntimeError: odd thing")
    assert failed[4][0] == "nan"


def test_stops_when_the_first_three_fail_alike_and_goes_on_once_mended(workspace):
    def objective(trial):
        raise OutOfMemory("no memory for one film")

    said = []
    for most in (3, 6):
        with pytest.raises(StudyError, match=r"its first trials all failed alike: oom \(no memory for one film\)"):
            opened(workspace).tune(objective, 40, say=said.append)
        assert len(read_study("fast", workspace).trials) == most
    assert opened(workspace).tune(smooth, 4, say=said.append).stopped == "done"
    assert [line.split(" failed")[0] for line in said] == ["the 3", "the 6"]


def every_second_fails(trial):
    if trial.number % 2:
        raise NotFinite(f"trial {trial.number}")
    return Outcome(0.5)


def test_stops_when_too_many_fail(workspace):
    with pytest.raises(StudyError, match=r"3 trials failed, of 12 at most 3 may \(the last: nan \(trial 5\)\)"):
        opened(workspace).tune(every_second_fails, 12)
    assert len(read_study("fast", workspace).trials) == 6


def test_failures_are_counted_over_all_calls_until_the_study_was_stopped_by_them(workspace):
    tally = opened(workspace).tune(every_second_fails, 3)
    assert (tally.complete, tally.failed) == (3, 2)
    with pytest.raises(StudyError, match="3 trials failed, of 12"):
        opened(workspace).tune(every_second_fails, 12)
    said = []
    with pytest.raises(StudyError, match=r"3 trials failed, of 12 .*trial 11"):
        opened(workspace).tune(every_second_fails, 12, say=said.append)
    assert said == ["the 3 failed trials of before do not count any more: their cause is taken for mended"]
    tally = opened(workspace).tune(smooth, 12)
    assert (tally.complete + tally.pruned, tally.failed, tally.stopped) == (12, 6, "done")


def test_a_study_that_worked_and_now_fails_three_times_alike_stops(workspace):
    def objective(trial):
        if trial.number < 4:
            return Outcome(0.5)
        raise OutOfMemory("no memory for one film")

    opened(workspace).tune(objective, 4)
    with pytest.raises(StudyError, match="first trials all failed alike"):
        opened(workspace).tune(objective, 40)
    assert len(read_study("fast", workspace).trials) == 7


def test_what_would_stop_every_trial_is_raised(workspace):
    def objective(trial):
        raise DataError("the cache is gone")

    with pytest.raises(DataError, match="cache is gone"):
        opened(workspace).tune(objective, 4)
    (trial,) = [t for t in read_study("fast", workspace).trials if t.state != "WAITING"]
    assert (trial.state, trial.message) == ("FAIL", "the cache is gone")


def test_ctrl_c_marks_the_trial_and_the_next_call_resumes_it(workspace):
    seen = []

    def objective(trial):
        seen.append((trial.number, dict(trial.params), trial.checkpoint, trial.retry_of, dict(trial.earlier)))
        if len(seen) == 3:
            trial.report(1, 0.5)
            raise KeyboardInterrupt
        return Outcome(0.5)

    with pytest.raises(KeyboardInterrupt):
        opened(workspace).tune(objective, 4)
    states = [t.state for t in read_study("fast", workspace).trials]
    assert states.count("FAIL") == 1
    assert "RUNNING" not in states
    tally = opened(workspace).tune(objective, 4)
    assert (tally.complete, tally.failed) == (4, 1)
    (number, params, checkpoint, *_), resumed = seen[2], seen[3]
    # Its own file beside that of the trial that it resumes, whose worker may live still.
    assert resumed[1:] == (params, checkpoint.with_name(resumed[2].name), number, {number: checkpoint})
    assert resumed[2] != checkpoint


def test_an_interrupted_trial_may_be_interrupted_any_number_of_times(workspace):
    seen = []

    def objective(trial):
        seen.append((trial.checkpoint, list(trial.earlier.values())))
        raise KeyboardInterrupt

    for _ in range(5):
        with pytest.raises(KeyboardInterrupt):
            opened(workspace).tune(objective, 1)
    assert [earlier for _, earlier in seen] == [[own for own, _ in seen[:number]][::-1] for number in range(5)]
    assert opened(workspace).tune(smooth, 1).complete == 1


def test_timeout_starts_no_new_trial(workspace):
    tally = opened(workspace).tune(smooth, 50, timeout=0)
    assert (tally.started_now, tally.stopped) == (0, "timeout")


def test_ended_is_told_of_every_trial(workspace):
    told = []
    opened(workspace).tune(smooth, 3, ended=lambda record, checkpoint: told.append((record.number, record.state)))
    assert told == [(t.number, t.state) for t in read_study("fast", workspace).trials]


def test_notes_are_kept_with_the_trial(workspace):
    opened(workspace).tune(smooth, 1)
    assert read_study("fast", workspace).trials[0].notes["seen"] == 0


def trials(workspace):
    return read_study("fast", workspace).trials


def test_a_trial_that_another_worker_ended_is_discarded_with_one_line(workspace):
    said = []

    def end_it(number):
        study = optuna.load_study(study_name="fast", storage=storage_url(workspace))
        study.tell(number, state=optuna.trial.TrialState.FAIL)

    def objective(trial):
        if trial.number == 0:
            end_it(0)
        if trial.number == 1:
            end_it(1)
            with pytest.raises(TrainingError) as caught:
                trial.report(1, 0.5)
            assert caught.value.reason == "worker-lost"
            raise caught.value
        return Outcome(0.5, {"auc": 0.9})

    tally = opened(workspace).tune(objective, 2, say=said.append)
    assert (tally.complete, tally.failed, len(said)) == (2, 2, 2)
    assert all("discarded" in line for line in said)


def test_a_trial_left_behind_in_this_process_is_found(workspace, monkeypatch):
    def leaves(trial):
        raise GeneratorExit

    with monkeypatch.context() as patch:
        patch.setattr("xray_opt.tuning.search.end_own", lambda study, worker, message, reason="": [])
        with pytest.raises(GeneratorExit):
            opened(workspace).tune(leaves, 1)
    assert [t.state for t in trials(workspace)] == ["RUNNING"]
    tally = opened(workspace).tune(smooth, 1)
    assert (tally.complete, tally.failed, trials(workspace)[0].reason) == (1, 1, "worker-lost")


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_ctrl_c_between_two_steps_leaves_nothing_running(workspace, monkeypatch, stop):
    def interrupted(study, *rest, **options):
        raise stop

    with monkeypatch.context() as patch:
        patch.setattr(optuna.Study, "tell", interrupted)  # the ending is written down, the state is not
        patch.setattr("xray_opt.tuning.search.end_own", lambda study, worker, message, reason="": [])
        with pytest.raises(stop):
            opened(workspace).tune(smooth, 1)
    assert [t.state for t in trials(workspace)] == ["RUNNING"]
    told = []
    tally = opened(workspace).tune(smooth, 1, lost=told.append)
    assert (tally.complete, tally.started_now, told) == (1, 0, [])
    assert trials(workspace)[0].notes["seen"] == 0

    with monkeypatch.context() as patch:
        patch.setattr("xray_opt.tuning.search.suggest", interrupted)
        with pytest.raises(stop):
            opened(workspace).tune(smooth, 2)
    assert [t.state for t in trials(workspace)] == ["COMPLETE", "FAIL"]
    assert trials(workspace)[1].reason == "interrupted"


@pytest.mark.parametrize("away", [TrackingError("no answer from MLflow"), StudyError("storage x stayed away")])
def test_a_store_that_is_away_interrupts_the_trial_and_the_next_start_resumes_it(workspace, away):
    ended, lost, seen = [], [], []

    def objective(trial):
        seen.append(trial)
        if len(seen) == 2:
            trial.report(1, 0.5)
            raise away
        return Outcome(0.5)

    with pytest.raises(type(away), match=str(away)):
        opened(workspace).tune(objective, 3, ended=lambda record, kept: ended.append((record, kept)))
    record, kept = ended[-1]
    assert (record.state, record.reason, record.message) == ("FAIL", "interrupted", str(away))
    assert kept == {1: seen[1].checkpoint}
    tally = opened(workspace).tune(objective, 3, lost=lambda record: lost.append((record.number, record.reason)))
    assert (tally.complete, tally.failed, lost) == (3, 1, [(1, "interrupted")])
    resumed = seen[2]
    assert (resumed.params, resumed.retry_of) == (seen[1].params, 1)
    assert resumed.earlier == {1: seen[1].checkpoint}
    assert resumed.checkpoint != seen[1].checkpoint


def test_what_cannot_be_told_when_a_store_is_away_does_not_hide_the_first_error(workspace):
    def objective(trial):
        raise TrackingError("no answer from MLflow")

    def ended(record, checkpoint):
        raise TrackingError("nor now")

    said = []
    with pytest.raises(TrackingError, match="no answer"):
        opened(workspace).tune(objective, 3, ended=ended, say=said.append)
    assert said == ["nor now"]
    assert trials(workspace)[0].reason == "interrupted"


def test_a_storage_that_is_away_for_a_moment_costs_no_trial(workspace, monkeypatch):
    said, calls = [], []
    real = optuna.storages.RDBStorage.set_trial_intermediate_value

    def sometimes(self, *arguments):
        calls.append(arguments)
        if len(calls) in (2, 3):
            raise optuna.exceptions.StorageInternalError("database is locked")
        return real(self, *arguments)

    monkeypatch.setattr(optuna.storages.RDBStorage, "set_trial_intermediate_value", sometimes)
    tally = opened(workspace).tune(smooth, 1, say=said.append)
    assert (tally.complete, tally.failed, len(said)) == (1, 0, 1)
    assert "is away (database is locked)" in said[0]


def test_a_storage_that_stays_away_is_one_line_and_the_trial_is_resumed(workspace, monkeypatch):
    def away(self, *arguments):
        raise optuna.exceptions.StorageInternalError("no\nroute")

    monkeypatch.setattr("xray_opt.tuning.search.PATIENCE", 0.5)
    with monkeypatch.context() as patch:
        patch.setattr(optuna.storages.RDBStorage, "set_trial_intermediate_value", away)
        with pytest.raises(StudyError, match="stayed away \\(no route\\); nothing is lost"):
            opened(workspace).tune(smooth, 1)
    seen = []
    tally = opened(workspace).tune(lambda trial: seen.append(trial) or Outcome(0.5), 1)
    assert (tally.complete, tally.failed, seen[0].retry_of, list(seen[0].earlier)) == (1, 1, 0, [0])


def test_notes_that_are_no_json_fail_their_trial_alone(workspace):
    tally = opened(workspace).tune(lambda t: Outcome(0.5, {"odd": object()} if t.number == 0 else {}), 1)
    assert (tally.complete, tally.failed) == (1, 1)


def test_lost_trials_do_not_hide_that_the_first_three_failed_alike(workspace):
    def objective(trial):
        if trial.number == 0:
            raise KeyboardInterrupt
        raise OutOfMemory("no memory for one film")

    study = opened(workspace)
    with pytest.raises(KeyboardInterrupt):
        study.tune(objective, 20)
    with at_work() as name:
        trial = optuna.load_study(study_name="fast", storage=storage_url(workspace)).ask()
        trial.set_user_attr("owner", this_worker(name))
    with pytest.raises(StudyError, match="first trials all failed alike"):
        study.tune(objective, 20)


WORKER = """
    import sys, time
    from pathlib import Path
    from xray_opt.config import Workspace, load_study
    from xray_opt.tuning import Outcome, open_study

    root, total, seconds, slow_from = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])

    def objective(trial):
        trial.note("run", f"run-{trial.number}")
        if trial.number >= slow_from:
            (root / "slow").touch()
            time.sleep(60)
        time.sleep(seconds)
        return Outcome(0.5)

    study = open_study(load_study(root / "fast.yaml"), Workspace(root), "d" * 64)
    lost = lambda record: print("lost", record.number, record.notes.get("run"), flush=True)
    tally = study.tune(objective, total, lost=lost)
    print("done", tally.complete)
"""


def worker(workspace, total, seconds=0.0, slow_from=10**6):
    script = workspace.root / "worker.py"
    if not script.exists():  # a worker before this one may be reading it
        script.write_text(textwrap.dedent(WORKER))
    arguments = [str(workspace.root), str(total), str(seconds), str(slow_from)]
    return subprocess.Popen([sys.executable, str(script), *arguments], stdout=subprocess.PIPE, text=True)


def wait_for(path: Path, seconds=60):
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.02)


def test_a_killed_trial_is_found_told_and_resumed(workspace):
    config(workspace)
    first = worker(workspace, 4, slow_from=2)
    wait_for(workspace.root / "slow")
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert [t.state for t in read_study("fast", workspace).trials].count("RUNNING") == 1
    out = worker(workspace, 4).communicate(timeout=400)[0]
    assert out.splitlines() == ["lost 2 run-2", "done 4"]
    trials = read_study("fast", workspace).trials
    states = [trial.state for trial in trials]
    assert (states.count("COMPLETE"), states.count("FAIL"), len(states)) == (4, 1, 5)
    assert (trials[2].reason, trials[3].params, trials[3].notes["retry_of"]) == ("worker-lost", trials[2].params, 2)


def test_a_trial_that_keeps_killing_its_workers_is_given_up(workspace):
    config(workspace)
    for _ in range(3):
        process = worker(workspace, 1, slow_from=0)
        wait_for(workspace.root / "slow")
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        (workspace.root / "slow").unlink()
    assert worker(workspace, 1).communicate(timeout=400)[0].splitlines()[-1] == "done 1"
    trials = read_study("fast", workspace).trials
    assert [trial.state for trial in trials] == ["FAIL", "FAIL", "FAIL", "COMPLETE"]
    assert trials[3].params != trials[0].params


@pytest.mark.slow
def test_four_workers_end_with_exactly_the_asked_number(workspace):
    config(workspace)
    workers = [worker(workspace, 13, seconds=0.05) for _ in range(4)]
    for process in workers:
        assert "done" in process.communicate(timeout=300)[0]
    record = read_study("fast", workspace)
    assert [t.state for t in record.trials] == ["COMPLETE"] * 13
