"""The leaderboard: order, columns, and test scores only where the test was opened."""

import subprocess
import sys
from dataclasses import asdict, replace

from xray_opt.config import Parameter, PrunerConfig, StudyConfig, Workspace
from xray_opt.leaderboard import OPENINGS, Opening, leaderboard, note_opening, openings
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
