"""Deleting a study, and collecting what nobody refers to."""

from xray_opt.config import TrackingConfig
from xray_opt.mlflow_client import connect
from xray_opt.tuning import list_studies
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


def test_delete_asks_first(tuned):
    place, _, _ = tuned
    done = place.run("study", "delete", "tiny")
    assert done.returncode != 0
    assert [study.name for study in list_studies(place.workspace)].count("tiny") == 1
