"""The leaderboard: order, columns, and test scores only where the test was opened."""

import subprocess
import sys
from dataclasses import asdict, replace

import pytest

from xray_opt.cli.compare import _tell_intervals
from xray_opt.cli.output import print_wide
from xray_opt.config import Parameter, PrunerConfig, StudyConfig, Workspace
from xray_opt.intervals import Interval
from xray_opt.leaderboard import (
    OPENINGS,
    Opening,
    interval_notes,
    interval_of,
    leaderboard,
    look_of,
    looks_told,
    note_opening,
    openings,
)
from xray_opt.tuning import Outcome, annotate, open_study, read_study

SPACE = (Parameter("optimizer.learning_rate", "float", low=1e-5, high=1e-2, log=True),)


def study(tmp_path):
    workspace = Workspace(tmp_path)
    config = StudyConfig("fast", space=SPACE, pruner=PrunerConfig("none"))
    values = iter([0.3, 0.9, 0.5])
    open_study(config, workspace, "d" * 64).tune(lambda trial: Outcome(next(values), {"val.auc": 0.7}), 3)
    return workspace


def test_compare_shows_every_trial_best_first(tuned):
    place, _, _ = tuned
    board = leaderboard("tiny", place.workspace)
    columns, rows = board.table()
    assert columns[:2] == ["trial", "state"]
    assert {"optimizer.learning_rate", "lora.rank", "val F1"} <= set(columns)
    values = [row[columns.index("val F1")] for row in rows]
    assert values == sorted(values, reverse=True)
    assert all(len(row) == len(columns) for row in rows)


def test_the_test_columns_appear_with_the_first_opening(tmp_path):
    workspace = study(tmp_path)
    board = leaderboard("fast", workspace)
    assert [row[0] for row in board.table()[1]] == [1, 2, 0]
    assert not any("test" in column for column in board.table()[0])
    opening = Opening("me", "2026-01-01T00:00:00+00:00", "the end", 1, {"test.f1": 0.8, "test.auc": 0.9})
    annotate("fast", workspace, OPENINGS, [asdict(opening)])
    assert openings(read_study("fast", workspace)) == [opening]
    columns, rows = leaderboard("fast", workspace).table()
    assert columns[-3:] == ["test F1", "test AUC", "test accuracy"]
    assert [row[-3:] for row in rows] == [[0.8, 0.9, None], [None] * 3, [None] * 3]


def noted(low: float, high: float) -> dict[str, list[float]]:
    return interval_notes({"f1": Interval(0.9, low, high), "auc": Interval(0.9, why="too few patients")})


def test_intervals_of_trials_stand_beside_their_scores_but_for_confirmed_ones(tmp_path, capsys):
    workspace = Workspace(tmp_path)
    config = StudyConfig("fast", space=SPACE, pruner=PrunerConfig("none"))
    outcomes = iter([Outcome(0.9, {"val.auc": 0.7}), Outcome(0.8, noted(0.71234, 1.0)), Outcome(0.7, noted(0.6, 0.8))])
    open_study(config, workspace, "d" * 64).tune(lambda trial: next(outcomes), 3)
    columns, rows = leaderboard("fast", workspace).table()
    assert columns[2:6] == ["val F1", "F1 95 %", "val AUC", "AUC 95 %"]
    assert [row[3] for row in rows] == [None, ".712-1.000", ".600-.800"], "an older trial kept none"
    assert [row[5] for row in rows] == [None] * 3
    confirmed = {"value": 0.75, "low": 0.7, "high": 0.79}
    annotate("fast", workspace, "confirmation", {"settings": [{"trial": 1, "confirmed": confirmed}]})
    board = leaderboard("fast", workspace)
    assert [row[3] for row in board.table()[1]] == [None, "confirmed", ".600-.800"]
    assert board.to_dict()["confirmed"] == {"1": confirmed}
    _tell_intervals(board)
    told = capsys.readouterr().out
    assert "its interval is none of the winner's" in " ".join(told.split())
    assert "confirmed: trial 1 has F1 0.7500 (0.7000 to 0.7900)" in told
    assert max(map(len, told.splitlines())) <= 80


@pytest.mark.parametrize(
    ("by", "says"),
    [
        ("", "Sealed, never opened."),
        ("finalize", "Opened once."),
        ("finalize baseline", "Opened 2 times: once for the chosen model, and then by baseline"),
        (
            "finalize baseline evaluate",
            "Opened 3 times: only the first look, and that of baseline behind it, were free",
        ),
        (
            "finalize baseline baseline",
            "Opened 3 times: only the first look, and that of baseline behind it, were free",
        ),
        ("finalize evaluate baseline", "Opened 3 times: only the first look was free of any choice."),
        ("evaluate finalize", "Opened 2 times: only the first look was free of any choice."),
        ("evaluate", "Opened once."),
    ],
)
def test_which_looks_were_free_of_any_choice(by, says):
    """A second comparison may be one that was preferred."""
    own = [Opening("ada", f"2026-01-0{day}T00:00:00", "why", 1, by=one) for day, one in enumerate(by.split(), 1)]
    looks = [look_of(one, "fast") for one in own]
    assert looks_told(looks, own, "fast").startswith(says)
    if "baseline" in by:  # of a trial that came to lead behind the look
        later = [replace(one, trial=9 if one.by == "baseline" else 1) for one in own]
        told = looks_told([look_of(one, "fast") for one in later], later, "fast")
        assert "only the first look was free of any choice" in told
    stranger = replace(looks[-1], who="bob", study="other") if looks else None
    if stranger is not None:
        told = looks_told([stranger, *looks], own, "fast")
        assert f"Opened {len(looks) + 1} times: only the first look was free of any choice, and that was not" in told
        assert told.endswith("1 of them for study other.")


def test_a_wide_leaderboard_goes_on_below_within_80_columns(tuned):
    place, _, _ = tuned
    shown = place.run("compare", "tiny").stdout
    assert max(map(len, shown.splitlines())) <= 80
    for trial in read_study("tiny", place.workspace).trials:
        assert interval_of(trial, "f1") is None, "no interval is invented of six patients"


def test_columns_that_find_no_room_stand_below(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    print_wide(["trial", "a" * 12, "b" * 12, "c" * 60, "d"], [[7, "A", "B", "C", "D"]], "five")
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip().startswith("7")]
    assert rows == [["7", "A", "B"], ["7", "C"], ["7", "D"]]


def test_a_retraining_does_not_lend_its_test_scores_to_the_trial(tmp_path):
    workspace = study(tmp_path)
    opening = Opening("me", "2026-01-01T00:00:00+00:00", "the end", 1, {"test.f1": 0.8}, run="a retraining's")
    assert note_opening("fast", workspace, None, opening) == [opening]
    assert [row[-3:] for row in leaderboard("fast", workspace).table()[1]] == [[None] * 3] * 3
    assert note_opening("fast", workspace, None, replace(opening, scores={})) == [replace(opening, scores={})]


def test_comparing_needs_no_torch_and_no_mlflow():
    code = "import sys, xray_opt.leaderboard; print([name for name in ('torch', 'mlflow') if name in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
