"""What a study leaves when a call of tune ends: five ranked models, one version of its best run, one champion."""

from __future__ import annotations

import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow_stores import CONFIG, ROOT, base, embedded, make_adapter
from PIL import Image

from xray_opt import settling, syncing
from xray_opt.config import Parameter, PrunerConfig, StudyConfig, Workspace
from xray_opt.mlflow_client import Connection
from xray_opt.places import PARENT
from xray_opt.registry import aliases
from xray_opt.settling import (
    POSTPONED,
    example_film,
    leaderboard,
    parent_of,
    postponed,
    settle,
    settle_as_far_as_it_goes,
)
from xray_opt.syncing import sync
from xray_opt.tracking import Tracking
from xray_opt.tuning import OpenStudy, Outcome, open_study, read_study

STUDY = StudyConfig(
    "settled",
    config=CONFIG,
    space=(Parameter("optimizer.learning_rate", "float", low=1e-5, high=1e-2, log=True),),
    pruner=PrunerConfig("none"),
)
VALUES = [0.3, 0.9, 0.5, 0.8, 0.7, 0.6, 0.4]
WORKER = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[3:]
from mlflow_stores import base
from test_settling import settle_once
from xray_opt.config import TrackingConfig, Workspace
from xray_opt.mlflow_client import connect
workspace = Workspace(Path(sys.argv[1]))
connection = connect(TrackingConfig(), workspace)
print("ready", flush=True)
sys.stdin.readline()
print(settle_once(connection, sys.argv[2]).version)
"""


def settle_once(connection: Connection, name: str = STUDY.name):
    opened = open_study(replace(STUDY, name=name), connection.workspace, "d" * 64)
    with Tracking.open(connection, name, {}) as tracking:
        return settle(opened, tracking, connection, base(), {"xray_opt.study": name})


def searched(
    connection: Connection, folder: Path, total: int, name: str = STUDY.name, storage: str | None = None
) -> OpenStudy:
    """A study whose trials have real runs with real, untrained adapters."""
    opened = open_study(replace(STUDY, name=name, storage=storage), connection.workspace, "d" * 64)
    with Tracking.open(connection, name, {}) as tracking:

        def objective(trial):
            value = VALUES[trial.number]
            adapter = make_adapter(folder / name, trial.number, value)
            with tracking.run("r", CONFIG, {}, {"xray_opt.trial": str(trial.number)}) as run:
                trial.note("mlflow_run", run.id)
                run.log_folder(adapter, "adapter")
            return Outcome(value, {"val.auc": 0.7})

        opened.tune(objective, total)
    return opened


def ranked(connection: Connection) -> list[tuple[str, str]]:
    experiment = connection.client.get_experiment_by_name(STUDY.name).experiment_id
    models = connection.client.search_logged_models([experiment])
    own = [model for model in models if model.tags.get("xray_opt.role") == "ranked"]
    return sorted((model.tags["xray_opt.rank"], model.name) for model in own)


def test_what_is_postponed_while_sync_settles_is_not_forgotten(tmp_path, monkeypatch):
    """A call of tune ends while ``sync`` brings states of runs into order, and meets MLflow away."""
    connection = embedded(tmp_path)
    opened = open_study(STUDY, connection.workspace, "d" * 64)
    opened.annotate(POSTPONED, {"tags": {}})
    with monkeypatch.context() as patch:
        patch.setattr(syncing, "agree_all", lambda *_: opened.annotate(POSTPONED, postponed(CONFIG, {})))
        assert sync(connection.workspace).problems == []
    assert "settings" in (opened.notes[POSTPONED] or {})
    opened.annotate(POSTPONED, {"tags": {}})
    assert sync(connection.workspace).settled == [STUDY.name]
    assert opened.notes[POSTPONED] is None


def test_the_studys_run_is_the_one_that_was_noted_first(tmp_path):
    """Whatever order runs seem to have been made in, and whoever asks."""
    opened = [open_study(STUDY, Workspace(tmp_path), "d" * 64) for _ in range(2)]
    a, b = map(parent_of, opened)
    assert a(["made by a"]) == "made by a"
    assert b(["older", "made by a"]) == "made by a"
    assert b(["made by b before a's"]) == "made by a"
    later = parent_of(opened[1])
    assert later(["older", "made by a"]) == "made by a"
    assert later(["anew"]) == "anew" == opened[0].notes[PARENT]  # the other one was deleted in MLflow


def test_two_that_choose_the_studys_run_at_once_get_one(tmp_path, monkeypatch):
    first, second = (open_study(STUDY, Workspace(tmp_path), "d" * 64) for _ in range(2))
    amended = settling.amend

    def late(*arguments):
        monkeypatch.undo()
        assert parent_of(first)(["a"]) == "a"
        return amended(*arguments)

    monkeypatch.setattr(settling, "amend", late)
    assert parent_of(second)(["b", "a"]) == "a"


def test_nothing_is_registered_before_a_trial_is_complete(tmp_path):
    connection = embedded(tmp_path)
    assert settle_once(connection) is None
    assert aliases(connection, CONFIG.tracking.registered_model) == {}


def settled_at_once(connection: Connection, studies: list[str]) -> list[str]:
    """A process for each of these studies settles it, all at the same moment; the versions that they answer."""
    here, paths = str(connection.workspace.root), [str(ROOT / "tests"), str(ROOT)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    workers = [subprocess.Popen([sys.executable, "-c", WORKER, here, name, *paths], **pipes) for name in studies]
    try:
        for worker in workers:
            assert worker.stdout.readline() == "ready\n", worker.stderr.read()
        for worker in workers:
            worker.stdin.write("go\n")
            worker.stdin.flush()
        answers = [worker.communicate(timeout=300) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert all(worker.returncode == 0 for worker in workers), answers
    return [out.strip() for out, _ in answers]


def test_workers_that_settle_at_once_leave_five_models_and_one_champion(tmp_path):
    connection = embedded(tmp_path)
    searched(connection, tmp_path, 7)
    assert settled_at_once(connection, [STUDY.name] * 2) == ["1", "1"]
    name = CONFIG.tracking.registered_model
    versions = connection.client.search_model_versions(f"name = '{name}'")
    best = read_study(STUDY.name, connection.workspace).best
    assert [version.run_id for version in versions] == [best.notes["mlflow_run"]]
    assert aliases(connection, name) == {"champion": "1"}
    assert ranked(connection) == [
        ("1", "trial-001"),
        ("2", "trial-003"),
        ("3", "trial-004"),
        ("4", "trial-005"),
        ("5", "trial-002"),
    ]


@pytest.mark.slow
def test_two_studies_that_end_at_once_leave_two_versions_and_one_champion(tmp_path):
    """Of one model's name, in two processes: each registers its own best, and one of them is champion, never none."""
    connection, studies = embedded(tmp_path), ["first", "second"]
    best = [str(searched(connection, tmp_path, 2, study).read().best.notes["mlflow_run"]) for study in studies]
    answers = settled_at_once(connection, studies)
    assert sorted(answers) == ["1", "2"]
    name = CONFIG.tracking.registered_model
    versions = connection.client.search_model_versions(f"name = '{name}'")
    assert {version.version: version.run_id for version in versions} == {
        int(answer): run for answer, run in zip(answers, best, strict=True)
    }
    # Who was first is champion and the other its candidate; or both found none, and the later one stayed.
    assert aliases(connection, name) in ({"champion": "1", "candidate": "2"}, {"champion": "2"})
    assert [settle_once(connection, study).version for study in studies] == answers, "and once more changes nothing"
    assert aliases(connection, name)["champion"] in answers


def test_a_better_trial_becomes_the_candidate_and_the_ranking_follows(tmp_path):
    connection = embedded(tmp_path)
    searched(connection, tmp_path, 1)
    first = settle_once(connection)
    assert settle_once(connection) == first
    searched(connection, tmp_path, 2)
    second = settle_once(connection)
    assert aliases(connection, first.name) == {"champion": first.version, "candidate": second.version}
    assert ranked(connection) == [("1", "trial-001"), ("2", "trial-000")]


@pytest.mark.slow
def test_a_database_that_restarts_while_the_study_is_settled_costs_nothing(tmp_path, postgresql, monkeypatch):
    connection, said = embedded(tmp_path), list[str]()
    opened = searched(connection, tmp_path, 3, storage=postgresql.database("settled"))

    def restart(record):  # the lock is held
        monkeypatch.undo()
        postgresql.control("restart", "-m", "immediate")
        return leaderboard(record)

    monkeypatch.setattr("xray_opt.settling.leaderboard", restart)
    with Tracking.open(connection, STUDY.name, {}) as tracking:
        done = settle_as_far_as_it_goes(opened, tracking, connection, base(), {}, said.append)
    assert done.version is not None
    assert done.aliases == ("champion",)
    assert done.waiting == 0
    assert "the lock of settle settled in storage" in said[0]
    assert len(said) == 1


def test_the_leaderboard_is_markdown_best_first(tuned):
    place, _, _ = tuned
    text = leaderboard(read_study("tiny", place.workspace)).splitlines()
    values = [float(line.split("|")[2]) for line in text[2:]]
    assert values == sorted(values, reverse=True)
    assert "optimizer.learning_rate" in text[0]


def test_the_example_film_is_made_up_and_small():
    assert len(example_film()) < 5000
    assert Image.open(io.BytesIO(example_film())).size == (64, 64)
