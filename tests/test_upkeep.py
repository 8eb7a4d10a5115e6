"""Deleting a study, and collecting what nobody refers to."""

import pytest

from xray_opt.config import PrunerConfig, StudyConfig, TrackingConfig
from xray_opt.errors import StudyError
from xray_opt.mlflow_client import connect
from xray_opt.places import mark_state
from xray_opt.scoring import evaluate
from xray_opt.tuning import Outcome, delete_study, list_studies, open_study, storage_digest, storage_url
from xray_opt.upkeep import collect_garbage


def test_gc_leaves_a_living_study_alone(tuned):
    place, _, _ = tuned
    assert collect_garbage(place.workspace, dry_run=True) == []


def test_gc_names_and_removes_what_nobody_refers_to(place):
    workspace = place.workspace
    litter = [
        workspace.caches / "0123456789abcdef-48",
        workspace.study_folder("gone"),
        workspace.mlruns / "artifacts" / "99" / "0123456789abcdef0123456789abcdef",
    ]
    for folder in litter:
        folder.mkdir(parents=True)
        (folder / "file").write_bytes(b"x" * 1000)
    mark_state(workspace, "gone", storage_digest(storage_url(workspace)))
    dry = place.run("gc", "--dry-run")
    assert all(str(folder) in dry.stdout for folder in litter), dry.stdout
    assert all(folder.exists() for folder in litter)
    listed = place.json("gc", "--dry-run")
    assert {str(folder) for folder in litter} <= {item["name"] for item in listed}
    assert sum(item["bytes"] for item in listed) >= 3000
    done = place.run("gc")
    assert done.returncode == 0, done.stderr
    assert not any(folder.exists() for folder in litter)
    assert place.run("gc").stdout.strip() == "nothing to remove"


def test_a_study_of_another_storage_is_left_alone_and_said(place, tmp_path, monkeypatch):
    """One without a study file here: made under XRAY_OPT_STORAGE, say."""
    for name in ("MLFLOW_TRACKING_URI", "XRAY_OPT_STORAGE"):
        monkeypatch.delenv(name, raising=False)
    workspace, said = place.workspace, []
    storage = f"sqlite:///{tmp_path}/elsewhere.db"
    file = workspace.studies / "tiny.yaml"
    file.write_text(file.read_text() + f"storage: {storage}\n")
    place.json("tune", "--study", "tiny", "--trials", "1")
    assert [study["name"] for study in place.json("study", "list", "--storage", storage)] == ["tiny"]
    assert list_studies(workspace) == []
    assert len(place.json("study", "show", "tiny")["trials"]) == 1
    model = "models:/xray-pneumonia@champion"
    assert evaluate(model, "test", workspace, why="another storage").films > 0
    assert [item["why"] for item in place.json("compare", "tiny")["test_openings"]] == ["another storage"]
    assert (collect_garbage(workspace, say=said.append), said) == ([], [])

    known = file.rename(tmp_path / "tiny.yaml")
    assert collect_garbage(workspace, say=said.append) == []
    # The run of the trial is registered, and kept anyway.
    assert [word in line for word, line in zip(("state/tiny", "1 MLflow run "), said, strict=True)] == [True, True]
    with pytest.raises(StudyError, match="--storage URL"):
        evaluate(model, "test", workspace, why="cannot be written down")
    assert (collect_garbage(workspace, storages=[storage], say=said.append), len(said)) == ([], 2)

    known.rename(file)
    done = place.run("study", "delete", "tiny", "--yes")
    assert done.returncode == 0, done.stderr
    assert list_studies(workspace, storage) == []
    assert not workspace.study_folder("tiny").exists()
    assert study_runs(place) == []


def test_the_runs_of_a_study_that_is_gone_are_collected(place):
    place.json("tune", "--study", "tiny", "--trials", "1")
    client = connect(TrackingConfig(), place.workspace).client
    client.delete_registered_model("xray-pneumonia")
    delete_study("tiny", place.workspace)
    found = place.json("gc")
    assert [item["what"] for item in found].count("run") == 2
    assert study_runs(place) == []


def study_runs(place):
    client = connect(TrackingConfig(), place.workspace).client
    return client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])


def test_deleting_a_study_takes_its_runs_but_not_its_model(place):
    place.json("tune", "--study", "tiny", "--trials", "1")
    done = place.run("study", "delete", "tiny", "--yes")
    assert done.returncode == 0, done.stderr
    assert list_studies(place.workspace) == []
    client = connect(TrackingConfig(), place.workspace).client
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    assert client.search_runs(experiments) == []
    assert client.get_model_version_by_alias("xray-pneumonia", "champion").version is not None
    film = str(next((place.films / "val" / "NORMAL").iterdir()))
    assert place.run("predict", film).returncode == 0
    assert place.run("study", "delete", "tiny", "--yes").returncode == 6


def test_a_study_at_work_is_not_deleted_unless_forced(place):
    answers = []

    def objective(trial):
        for more in ([], ["--force"]):
            answers.append(place.run("study", "delete", "busy", "--yes", *more))
        return Outcome(0.5)

    opened = open_study(StudyConfig("busy", pruner=PrunerConfig("none")), place.workspace, "d" * 64)
    with pytest.raises(StudyError):  # its study is gone
        opened.tune(objective, 1)
    refused, forced = answers
    assert (refused.returncode, refused.stderr.count("\n")) == (6, 1), refused.stderr
    assert "is at work" in refused.stderr
    assert forced.returncode == 0, forced.stderr
    assert list_studies(place.workspace) == []


def test_delete_asks_first(tuned):
    place, _, _ = tuned
    done = place.run("study", "delete", "tiny")
    assert done.returncode != 0
    assert [study.name for study in list_studies(place.workspace)].count("tiny") == 1
