"""Room moved_store: a workspace that was moved or copied has its artifacts where it is now, and no other one's."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow_stores import embedded

from xray_opt.config import TrackingConfig, Workspace
from xray_opt.mlflow_client import Connection, connect
from xray_opt.tracking.cleanup import delete_run, local_path, unreferenced_artifacts

BUCKET, DISK = "s3://bucket/theirs", "file:///big/disk/theirs"


@pytest.fixture
def first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Connection, str]:
    """A workspace's store with a run that has a file, a version made of it, and experiments that lie elsewhere."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    connection = embedded(tmp_path)
    client, root = connection.client, connection.artifact_root
    assert root is not None
    run = client.create_run(client.create_experiment("mine", artifact_location=(root / "mine").as_uri()))
    client.log_text(run.info.run_id, "whole", "file.txt")
    client.create_registered_model("model")
    client.create_model_version("model", run.info.artifact_uri, run.info.run_id)
    for name, place in (("bucket", BUCKET), ("disk", DISK)):
        client.create_experiment(name, artifact_location=place)
    return connection, run.info.run_id


def opened(folder: Path) -> Connection:
    return connect(TrackingConfig(), Workspace(folder))


def require_whole(connection: Connection, run_id: str) -> None:
    client, root = connection.client, connection.artifact_root
    assert root is not None
    run, version = client.get_run(run_id), client.get_model_version("model", "1")
    for uri in (run.info.artifact_uri, version.source, client.get_model_version_download_uri("model", "1")):
        assert local_path(uri).is_relative_to(root)
        assert (local_path(uri) / "file.txt").read_text() == "whole"
    assert client.get_experiment_by_name("mine").artifact_location == (root / "mine").as_uri()
    assert unreferenced_artifacts(connection, connection.workspace) == []


def test_a_moved_workspace_has_its_artifacts_and_takes_none_for_nobodys(first, tmp_path):
    before, run_id = first
    old = before.workspace.root
    for name in ("moved to ä, once", "twice"):
        old = old.rename(tmp_path / name)
        require_whole(opened(old), run_id)
    assert not before.workspace.root.exists()


def test_a_copy_is_a_store_of_its_own(first, tmp_path):
    before, run_id = first
    copy = opened(Path(shutil.copytree(before.workspace.root, tmp_path / "copy")))
    require_whole(copy, run_id)
    delete_run(copy, run_id)
    copy.client.delete_registered_model("model")
    require_whole(opened(before.workspace.root), run_id)


def test_a_copy_of_which_mlruns_was_a_link_is_one_too(first, tmp_path):
    before, run_id = first
    kept = before.workspace.mlruns.rename(tmp_path / "runs")
    before.workspace.mlruns.symlink_to(kept)
    require_whole(opened(before.workspace.root), run_id)
    copy = opened(Path(shutil.copytree(before.workspace.root, tmp_path / "copy")))
    require_whole(copy, run_id)
    delete_run(copy, run_id)
    require_whole(opened(before.workspace.root), run_id)


def test_nothing_is_changed_under_a_process_that_uses_the_store(first, tmp_path):
    """Another mount of the folder, as in a container, is to the second process what a move is."""
    before, run_id = first
    code = (
        "import sys; from pathlib import Path; from xray_opt.config import TrackingConfig, Workspace\n"
        "from xray_opt.mlflow_client import connect\n"
        "connect(TrackingConfig(), Workspace(Path(sys.argv[1]))); print('open', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(before.workspace.root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "open\n"
        moved = before.workspace.root.rename(tmp_path / "moved")
        assert opened(moved).client.get_run(run_id).info.artifact_uri.startswith(before.workspace.root.as_uri())
        other.communicate()
    require_whole(opened(moved), run_id)


def test_what_was_put_elsewhere_on_purpose_stays(first, tmp_path):
    before, _ = first
    client = opened(before.workspace.root.rename(tmp_path / "moved")).client
    assert client.get_experiment_by_name("bucket").artifact_location == BUCKET
    assert client.get_experiment_by_name("disk").artifact_location == DISK


def test_a_moved_workspace_is_finalized_and_a_copy_touches_nothing_of_it(tuned, tmp_path):
    place, _, _ = tuned
    before = place.run("compare", "tiny").stdout
    files = {path for path in place.workspace.mlruns.rglob("*") if path.is_file()}
    copy = dataclasses.replace(place, workspace=Workspace(tmp_path / "copy"))
    shutil.copytree(place.workspace.root, copy.workspace.root)
    assert "nothing to remove" in copy.run("gc", "--dry-run").stdout
    done = copy.run("finalize")
    assert done.returncode == 0, done.stderr
    assert copy.run("study", "delete", "tiny", "--yes").returncode == 0
    assert files <= set(place.workspace.mlruns.rglob("*"))
    assert place.run("compare", "tiny").stdout == before  # nor is its test split opened
