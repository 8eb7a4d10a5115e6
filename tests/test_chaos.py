"""The judge of a study under fire sees every kind of breach; what strikes is drawn from the seed alone."""

from dataclasses import replace

import pytest
from chaos.check import breaches, seconds_lost
from chaos.killer import LASTS, ROUND, counts, plan
from chaos.killer import Done as Struck
from chaos.seen import Seen, Trial, TrialRun

PARAMS = {"lora.rank": 4, "optimizer.learning_rate": 1e-3}
LOGGED = {name: str(value) for name, value in PARAMS.items()}


def trial(number, state="COMPLETE", epochs=(0.5, 0.75), **more):
    value = {"value": max(epochs)} if state == "COMPLETE" else {}
    return Trial(number, state, params=PARAMS, epochs=dict(enumerate(epochs, start=1)), **value | more)


def run(number, status="FINISHED", epochs=(0.5, 0.75), **more):
    points = tuple((step, value, 100.0 + step) for step, value in enumerate(epochs, start=1))
    best = {"best": max(epochs), "artifacts": ("adapter",)} if status == "FINISHED" else {}
    return TrialRun(f"run-{number}", number, status, LOGGED, points, **best | more)


def good():
    """Complete, pruned, lost behind its first epoch with a second one logged alone, and the one that resumed it."""
    trials = (
        trial(0, epochs=(0.5, 0.8)),
        trial(1, "PRUNED", (0.25,)),
        trial(2, "FAIL", (0.5,), reason="worker-lost", begun=90.0, ended=130.0),
        trial(3, retry_of=2),
        trial(4, "WAITING", (), retry_of=None),
    )
    runs = (
        run(0, epochs=(0.5, 0.8)),
        run(1, "KILLED", (0.25,)),
        run(2, "FAILED", (0.5, 0.75), reason="worker-lost"),
        run(3),
    )
    return Seen(trials, runs, "FINISHED", "run-0", ("run-0",))


def changed(kind, number, **fields):
    seen = good()
    return replace(
        seen,
        **{kind: tuple(replace(one, **fields) if i == number else one for i, one in enumerate(getattr(seen, kind)))},
    )


def test_a_study_that_survived_has_no_breach():
    assert breaches(good(), 3) == []
    assert seconds_lost(good()) == 130.0 - 102.0


@pytest.mark.parametrize(
    ("seen", "line"),
    [
        (replace(good(), trials=good().trials[:3]), "trial 3 is in MLflow alone"),
        (replace(good(), runs=good().runs[1:]), "trial 0 (COMPLETE) has 0 runs in MLflow"),
        (replace(good(), runs=(*good().runs, run(3))), "trial 3 (COMPLETE) has 2 runs in MLflow"),
        (changed("trials", 1, state="RUNNING"), "1 trials are RUNNING"),
        (changed("runs", 1, status="RUNNING"), "1 runs of trials are RUNNING in MLflow"),
        (changed("runs", 1, status="FINISHED"), "trial 1: PRUNED in Optuna, FINISHED in MLflow"),
        (changed("trials", 2, reason="nan"), "trial 2 failed by itself: nan"),
        (changed("runs", 2, reason="nan"), "trial 2: worker-lost in Optuna, nan in MLflow"),
        (changed("runs", 0, params=LOGGED | {"lora.rank": "8"}), "trial 0: lora.rank is 4 in Optuna, 8 in MLflow"),
        (changed("runs", 0, epochs=((1, 0.5, 1.0),) * 2 + ((2, 0.8, 2.0),)), "trial 0: its epochs are [1, 1, 2]"),
        (
            changed("runs", 2, epochs=((1, 0.5, 1.0), (2, 0.75, 2.0), (3, 0.75, 2.0))),
            "trial 2: epochs are [(1, 0.5)] in Optuna, [(1, 0.5), (2, 0.75), (3, 0.75)] in MLflow",
        ),
        (changed("runs", 0, best=0.5), "trial 0: its value is 0.8, its best epoch 0.8, in MLflow 0.5"),
        (changed("runs", 0, artifacts=()), "trial 0: it has no adapter"),
        (changed("trials", 3, epochs={1: 0.6, 2: 0.75}), "trial 3 has other values than trial 2, which it resumes"),
        (changed("trials", 3, epochs={2: 0.75}), "trial 3 left out epochs of trial 2"),
        (changed("trials", 0, retry_of=2), "trial 2 was tried again 2 times"),
        (changed("trials", 3, retry_of=1), "trial 3 resumes trial 1, which was not lost or has other params"),
        (replace(good(), champion="run-3"), "champion is of run run-3, the best is trial 0 of run run-0"),
        (replace(good(), champion=None), "champion is of run None, the best is trial 0 of run run-0"),
        (replace(good(), versions=("run-0", "run-0")), "a run was registered more than once: ('run-0', 'run-0')"),
        (replace(good(), parent="RUNNING"), "the study's run is RUNNING"),
    ],
)
def test_each_breach_is_a_line(seen, line):
    assert line in breaches(seen, 3)


def test_a_wrong_number_of_trials_is_a_breach():
    assert breaches(good(), 4) == ["3 trials are COMPLETE or PRUNED, 4 were asked for"]


def test_a_plan_is_its_seed_and_holds_every_fault():
    long = plan(3, 3600, 10)
    assert long == plan(3, 3600, 10)
    assert long != plan(4, 3600, 10)
    assert {fault.what for fault in long} == set(ROUND)
    assert 300 < len(long) < 420
    assert all(3600 - fault.at > 30 for fault in long)
    for fault in long:
        least, most = LASTS.get(fault.what, (0, 0))
        assert least <= fault.lasts <= most
    first = [fault.what for fault in long[: len(ROUND)]]
    assert sorted(first) == sorted(ROUND)


def test_only_what_met_somebody_counts():
    done = [Struck(1.0, "kill a worker", 0.0, "a"), Struck(2.0, "kill a worker", 0.0, None)]
    assert {what: times for what, times, _ in counts(done)}["kill a worker"] == 1
