"""A study keeps the base weights that it started with."""

import pytest

from xray_opt.backbone import load_base, save_base
from xray_opt.config import Config, StudyConfig, Workspace, override
from xray_opt.errors import ModelError
from xray_opt.kept_base import fresh_base, study_base
from xray_opt.tuning import delete_study, open_study, study_notes


def study(base="random", **settings):
    return StudyConfig("kept", config=override(Config(), {"model.base": base, **settings}))


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path)


def test_random_weights_are_made_once_a_study(workspace):
    fresh = fresh_base(study(), workspace)
    opened = open_study(study(), workspace, "d" * 64)
    first = study_base(opened, fresh)
    assert study_notes("kept", workspace)["base_sha256"] == first.sha256 == fresh.sha256
    assert fresh_base(study(), workspace) is None
    again = study_base(open_study(study(), workspace, "d" * 64))
    assert (again.sha256, again.origin) == (first.sha256, first.origin)
    assert again.warning() == first.warning()


def test_a_file_that_changes_does_not_change_the_study(workspace):
    path = workspace.root / "own.safetensors"
    base = load_base(study().config.model)
    save_base(base, path)
    opened = open_study(study(str(path)), workspace, "d" * 64)
    first = study_base(opened, fresh_base(study(str(path)), workspace))
    path.unlink()
    assert fresh_base(study(str(path)), workspace) is None
    assert study_base(opened).sha256 == first.sha256
    # What was kept is gone, and other weights stand in its place: these are refused.
    for kept in workspace.study_folder("kept").glob("base-*"):
        kept.unlink()
    save_base(load_base(study(**{"model.base_seed": 1}).config.model), path)
    with pytest.raises(ModelError, match="was made on base weights") as caught:
        study_base(opened, fresh_base(study(str(path)), workspace))
    assert "--weights PATH" in str(caught.value)


def test_weights_that_cannot_be_had_leave_no_study(workspace):
    with pytest.raises(ModelError):
        fresh_base(study(str(workspace.root / "nothing.safetensors")), workspace)
    assert study_notes("kept", workspace) == {}


def test_the_notes_of_one_study_are_read_alone(workspace):
    opened = open_study(study(), workspace, "d" * 64)
    opened.annotate("mine", {"a": 1})
    assert study_notes("kept", workspace)["mine"] == {"a": 1}
    assert study_notes("other", workspace) == {}
    delete_study("kept", workspace)
    assert study_notes("kept", workspace) == {}
