"""The judge of a study under fire sees every kind of breach; what strikes is drawn from the seed alone."""

import sqlite3
from dataclasses import replace

import pytest
from chaos.check import QUIET, VALUES, breaches, left_behind, seconds_lost, waits
from chaos.killer import LASTS, ROUND, counts, plan, stores_back
from chaos.killer import Done as Struck
from chaos.run import left_for_sync
from chaos.seen import Kept, Seen, Trial, TrialRun, kept

from xray_opt.spool import Spool

PARAMS = {"lora.rank": 4, "optimizer.learning_rate": 1e-3}
LOGGED = {name: str(value) for name, value in PARAMS.items()}


def trial(number, state="COMPLETE", epochs=(0.5, 0.75), **more):
    value = {"value": max(epochs)} if state == "COMPLETE" else {}
    return Trial(number, state, params=PARAMS, epochs=dict(enumerate(epochs, start=1)), **value | more)


def run(number, status="FINISHED", epochs=(0.5, 0.75), **more):
    points = tuple((step, value, 100.0 + step) for step, value in enumerate(epochs, start=1))
    best = {"best": max(epochs), "artifacts": ("adapter",)} if status == "FINISHED" else {}
    return TrialRun(f"run-{number}", number, status, LOGGED, points, **best | {"series": series(len(epochs))} | more)


def series(epochs, **others):
    """Every value of every epoch, but for others."""
    steps = tuple(range(1, epochs + 1))
    return {name: others.get(name.replace(".", "_"), steps) for name in VALUES}


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
        (
            changed("runs", 1, series=series(1, train_loss=(1, 1))),
            "trial 1: train.loss is at epochs [1, 1], val.f1 at [1]",
        ),
        (
            changed("runs", 0, series=series(2, val_auc=(2,))),
            "trial 0: val.auc is at epochs [2], val.f1 at [1, 2]",
        ),
        (
            changed("runs", 0, series=series(2, val_auc=())),
            "trial 0: val.auc is at epochs [], val.f1 at [1, 2]",
        ),
        (changed("runs", 0, best=0.5), "trial 0: its value is 0.8, its best epoch 0.8, in MLflow 0.5"),
        (changed("runs", 0, artifacts=()), "trial 0: it has no adapter"),
        (changed("trials", 3, epochs={1: 0.6, 2: 0.75}), "trial 3 has other values than trial 2, which it resumes"),
        (changed("trials", 3, epochs={2: 0.75}), "trial 3 left out epochs of trial 2"),
        (changed("trials", 0, retry_of=2), "trial 2 was tried again 2 times"),
        (changed("trials", 3, retry_of=1), "trial 3 resumes trial 1, which was not lost: PRUNED, None"),
        (
            changed("trials", 3, params=PARAMS | {"lora.rank": 2}),
            f"trial 3 resumes trial 2 with other params: {PARAMS | {'lora.rank': 2}}, {PARAMS}",
        ),
        (replace(good(), champion="run-3"), "champion is of run run-3, the best is trial 0 of run run-0"),
        (replace(good(), champion=None), "champion is of run None, the best is trial 0 of run run-0"),
        (replace(good(), versions=("run-0", "run-0")), "a run was registered more than once: ('run-0', 'run-0')"),
        (replace(good(), parent="RUNNING"), "the study's run is RUNNING"),
    ],
)
def test_each_breach_is_a_line(seen, line):
    assert line in breaches(seen, 3)


def test_one_that_was_lost_before_it_had_params_gives_none_to_the_next():
    lost = replace(changed("trials", 2, params={}, epochs={}), runs=good().runs[:2] + good().runs[3:])
    assert breaches(lost, 3) == []


def test_a_wrong_number_of_trials_is_a_breach():
    assert breaches(good(), 4) == ["3 trials are COMPLETE or PRUNED, 4 were asked for"]


#: Breaches that sync would mend: a run that was never closed, one that was never made, an unsettled study.
TORN = [
    (
        changed("runs", 1, status="RUNNING"),
        "trial 1: PRUNED in Optuna, RUNNING in MLflow",
        Kept({"end": 1}, frozenset({1})),
    ),
    (
        replace(good(), runs=good().runs[:3]),
        "trial 3 (COMPLETE) has 0 runs in MLflow",
        Kept({"create": 1, "batch": 2}, frozenset({3})),
    ),
]


@pytest.mark.parametrize(("seen", "line", "own"), TORN)
def test_what_tune_leaves_torn_is_a_breach_unless_a_write_of_that_trial_waits(seen, line, own):
    assert left_behind(good(), Kept(), 3) == []
    assert left_behind(seen, Kept(), 3) == [f"when tune ended: {line}"]
    assert left_behind(seen, own, 3) == []
    assert left_behind(seen, Kept(own.writes, frozenset({0})), 3) == [f"when tune ended: {line}"], "another trial's"
    assert left_behind(replace(seen, postponed=True), Kept(), 3) == []


def test_a_study_that_nobody_settled_is_a_breach_unless_a_note_says_so():
    unsettled = replace(good(), parent="RUNNING", champion=None)
    assert len(left_behind(unsettled, Kept({"end": 1}, frozenset({1})), 3)) == 2
    assert left_behind(replace(unsettled, postponed=True), Kept(), 3) == []
    ends = Kept({"end": 1}, study=True)
    assert left_behind(replace(good(), parent="RUNNING"), ends, 3) == [], "the end of the study's run waits"
    assert len(left_behind(unsettled, ends, 3)) == 1


@pytest.mark.parametrize("seen", [changed("trials", 1, state="RUNNING"), changed("trials", 3, epochs={2: 0.75})])
def test_nothing_that_waits_excuses_what_optuna_has(seen):
    assert left_behind(replace(seen, postponed=True), Kept({"end": 9}, frozenset({1, 3})), 3)


def test_nothing_waits_for_stores_that_have_been_there_for_long():
    writes = Kept({"batch": 2, "end": 1}, frozenset({1}))
    assert waits(good(), writes, QUIET - 1) == []
    assert waits(good(), Kept(), QUIET + 1) == []
    assert waits(good(), writes, QUIET + 1) == [
        "when tune ended 2 batch, 1 end waited, though the stores had been there for 121 s"
    ]
    assert waits(replace(good(), postponed=True), Kept(), QUIET + 1)
    strikes = [Struck(10.0, "kill MLflow", 25.0, "MLflow"), Struck(50.0, "kill a worker", 0.0, "a")]
    assert (stores_back(strikes), stores_back([])) == (35.0, 0.0)


def test_what_waits_is_read_from_the_files_themselves(tmp_path):
    assert kept(tmp_path / "none", good()) == Kept()
    spool = Spool.create(tmp_path, {"uri": "", "experiment": "chaos", "tags": {}})
    spool.append("waiting-a", "create", {"tags": {"xray_opt.trial": "7"}})
    spool.append("waiting-a", "end", {"status": "FINISHED"})
    spool.append("run-1", "end", {"status": "KILLED"})
    spool.append("parent", "batch", {"tags": {"mlflow.note.content": "x"}})
    found = kept(tmp_path, good())
    assert (found.writes, found.trials, found.study) == ({"create": 1, "end": 2, "batch": 1}, {1, 7}, False)
    assert kept(tmp_path, replace(good(), parent_id="parent")).study
    spool.sent(next(spool.entries()), "run-0")
    assert kept(tmp_path, good()).trials == {0, 1}, "made meanwhile, and its end still waits"
    spool.close()
    (tmp_path / "odd.db").write_bytes(b"no database")
    with pytest.raises(sqlite3.DatabaseError):
        kept(tmp_path, good())


def test_what_sync_had_to_do_is_told():
    sync = {"writes": {}, "postponed": False, "mended": [], "said": ""}
    assert left_for_sync(sync) == "nothing was left for xray-opt sync"
    told = left_for_sync(sync | {"writes": {"end": 2}, "postponed": True, "mended": ["a", "b"]})
    assert told == "left for xray-opt sync: 2 end, the settling of the study; lines of the judge that it mended: 2"


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
