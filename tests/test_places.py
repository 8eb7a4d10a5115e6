"""Where a study lies: its storage and its MLflow store, by file, by note, by option."""

import subprocess
import sys

import pytest

from xray_opt.config import StudyConfig, Workspace
from xray_opt.errors import ConfigError, StudyError
from xray_opt.places import STORE, Place, find_place, known_storages, mark_state, state_marks
from xray_opt.tuning import annotate, open_study, storage_digest

FILE = """
name: mine
storage: {storage}
config:
  tracking: {{uri: http://host:5000}}
"""


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    monkeypatch.delenv("XRAY_OPT_STORAGE", raising=False)
    found = Workspace(tmp_path / "home")
    found.studies.mkdir(parents=True)
    return found


@pytest.fixture
def storage(workspace, tmp_path):
    url = f"sqlite:///{tmp_path}/own.db"
    (workspace.studies / "stem.yaml").write_text(FILE.format(storage=url))
    return url


def test_a_study_file_is_found_by_path_by_its_studys_name_and_by_its_own(workspace, storage):
    own = Place("mine", storage, "http://host:5000")
    for name in ("mine", "stem", "studies/stem.yaml", str(workspace.studies / "stem.yaml")):
        assert find_place(workspace, name) == own
    assert find_place(workspace, "other") == Place("other")
    assert find_place(workspace, None, "sqlite:///a.db", "http://b") == Place(None, "sqlite:///a.db", "http://b")


def test_what_the_command_line_names_goes_first(workspace, storage):
    assert find_place(workspace, "mine", "sqlite:///a.db", "http://b") == Place("mine", "sqlite:///a.db", "http://b")


def test_a_missing_or_broken_file_is_one_line_only_where_it_was_named(workspace, storage):
    (workspace.studies / "broken.yaml").write_text("name: [")
    for name in ("studies/broken.yaml", "nowhere.yaml", "no/where"):
        with pytest.raises(ConfigError) as caught:
            find_place(workspace, name)
        assert "\n" not in str(caught.value)
    assert find_place(workspace, "mine").storage == storage
    assert find_place(workspace, "broken") == Place("broken")


def test_a_study_remembers_the_store_of_its_runs(workspace):
    open_study(StudyConfig("mine"), workspace, "d" * 64)
    assert Place("mine").tracking(workspace).uri is None
    annotate("mine", workspace, STORE, {"uri": "http://host", "shown": "http://host"})
    assert Place("mine").tracking(workspace).uri == "http://host"
    assert Place("mine", uri="http://b").tracking(workspace).uri == "http://b"
    annotate("mine", workspace, STORE, {"uri": "", "shown": "…"})
    assert Place("mine").tracking(workspace).uri == workspace.mlflow_uri
    assert Place().tracking(workspace).uri is None
    with pytest.raises(StudyError, match="there are: mine"):
        Place("other").tracking(workspace)


def test_the_storages_of_a_workspace_are_known_by_their_digests(workspace, storage, monkeypatch):
    default = f"sqlite:///{workspace.study_database}"
    (workspace.studies / "bad.yaml").write_text("name: bad\nstorage: no url\n")
    (workspace.studies / "away.yaml").write_text("name: away\nstorage: grpc://127.0.0.1:1\n")
    assert known_storages(workspace) == {storage_digest(url): url for url in (default, storage)}
    open_study(StudyConfig("mine"), workspace, "d" * 64)
    monkeypatch.setenv("XRAY_OPT_STORAGE", "sqlite:////elsewhere.db")
    found = known_storages(workspace, ["sqlite:////more.db"])
    assert set(found.values()) == {default, storage, "sqlite:////elsewhere.db", "sqlite:////more.db"}


def test_state_folders_are_marked_once_a_storage(workspace):
    for digest in ("a", "b", "a"):
        mark_state(workspace, "mine", digest)
    assert (workspace.study_folder("mine") / "storages").read_text() == "a\nb\n"
    assert state_marks(workspace.study_folder("mine")) == {"a", "b"}
    assert state_marks(workspace.study_folder("other")) == set()
    (workspace.studies / "state" / "file").write_text("")
    with pytest.raises(StudyError, match="cannot write to"):
        mark_state(workspace, "file", "a")


def test_marks_that_a_disk_changed_are_no_storages(workspace):
    mark_state(workspace, "mine", "a")
    (workspace.study_folder("mine") / "storages").write_bytes(b"\xff\xfe")
    mark_state(workspace, "mine", "b")
    assert "a" not in state_marks(workspace.study_folder("mine"))
    mark_state(workspace, "mine", "b")
    assert "b" in state_marks(workspace.study_folder("mine"))


def test_finding_needs_no_torch_and_no_mlflow():
    code = "import sys, xray_opt.places; print([name for name in ('torch', 'mlflow') if name in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
