"""Preparing, keeping and finding manifests again; pseudonyms."""

import json
import os
import shutil
import stat

import pytest
from small_sets import kaggle_set, write_film

from xray_opt.config import DataConfig, Workspace
from xray_opt.dataset import Manifest, Pseudonyms, kept_manifests, prepare, prepared, remember
from xray_opt.dataset.preparing import settled
from xray_opt.errors import DataError


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return kaggle_set(tmp_path_factory.mktemp("films") / "set")


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path)


def test_a_manifest_comes_back_as_it_was(source, tmp_path):
    manifest = prepare(DataConfig(root=str(source)))
    path = manifest.save(tmp_path)
    assert Manifest.load(path) == manifest
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_the_digest_does_not_depend_on_where_the_films_lie(source, tmp_path):
    shutil.copytree(source, tmp_path / "moved")
    here, there = (prepare(DataConfig(root=str(root))) for root in (source, tmp_path / "moved"))
    assert here.sha256 == there.sha256
    assert prepare(DataConfig(root=str(source), seed=1)).sha256 != here.sha256
    assert prepare(DataConfig(root=str(source), seed=1)).data_sha256 == here.data_sha256


def test_a_changed_manifest_is_refused(source, tmp_path):
    path = prepare(DataConfig(root=str(source))).save(tmp_path)
    text = path.read_text()
    path.write_text(text.replace(",train,", ",test,", 1))
    with pytest.raises(DataError, match="digest"):
        Manifest.load(path)
    path.write_text("")
    with pytest.raises(DataError, match="cannot use the manifest"):
        Manifest.load(path)


def test_prepared_reads_films_once_and_sees_changes(source, workspace, tmp_path):
    root = tmp_path / "mine"
    shutil.copytree(source, root)
    config, seen = DataConfig(root=str(root)), []
    first = prepared(config, workspace, lambda done, total: seen.append(done))
    assert len(seen) == len(first.films)
    assert prepared(config, workspace, lambda done, total: seen.append(done)) == first
    assert len(seen) == len(first.films)
    write_film(root / "train" / "NORMAL" / "IM-0900-0001.jpeg", 900)
    assert len(prepared(config, workspace).films) == len(first.films) + 1


def test_a_damaged_manifest_is_made_anew(source, workspace):
    config = DataConfig(root=str(source))
    first = prepared(config, workspace)
    (path,) = workspace.manifests.glob("*.csv")
    path.write_text("garbage")
    assert prepared(config, workspace) == first


def test_a_damaged_manifest_is_told_of_as_its_test_films_are_not_known(source, workspace, caplog):
    prepared(DataConfig(root=str(source)), workspace)
    prepared(DataConfig(root=str(source), seed=4), workspace)
    first, second = sorted(workspace.manifests.glob("*.csv"))
    first.write_text("garbage")
    assert list(kept_manifests(workspace.manifests)) == [Manifest.load(second)]
    (said,) = caplog.messages
    assert str(first) in said
    assert "until then its test films are not known to be sealed" in said
    assert "\n" not in said


def test_without_a_root_it_is_the_set_prepared_last(source, workspace):
    with pytest.raises(DataError, match="data prepare"):
        prepared(DataConfig(), workspace)
    manifest = prepared(DataConfig(root=str(source), seed=4), workspace)
    remember(manifest, workspace)
    assert prepared(DataConfig(), workspace).sha256 == manifest.sha256
    assert prepared(DataConfig(seed=5), workspace).sha256 != manifest.sha256
    own = DataConfig(train_fraction=0.6, val_fraction=0.2, test_fraction=0.2)
    assert prepared(own, workspace).settings["train_fraction"] == 0.6
    limited = prepared(DataConfig(train_films=10), workspace)
    assert limited.settings["seed"] == 4
    assert len(limited.of("train")) < len(manifest.of("train"))
    (workspace.data / "prepared.json").write_text("{")
    with pytest.raises(DataError, match=r"prepared\.json"):
        prepared(DataConfig(), workspace)


def test_bad_films_stop_the_set_or_are_left_out(source, tmp_path):
    root = tmp_path / "mine"
    shutil.copytree(source, root)
    for number in range(7):
        (root / "train" / "NORMAL" / f"IM-08{number:02d}-0001.jpeg").write_bytes(b"")
    with pytest.raises(DataError, match=r"7 of .* cannot be used.*zero bytes.*--skip-bad"):
        prepare(DataConfig(root=str(root)))
    manifest = prepare(DataConfig(root=str(root), skip_bad=True))
    assert len(manifest.left_out) == 7
    assert all(item.bad for item in manifest.left_out)
    assert json.loads(manifest.save(tmp_path).read_text().splitlines()[0][2:])["settings"]["skip_bad"]


def test_pseudonyms_are_stable_here_and_other_elsewhere(tmp_path):
    here, elsewhere = Workspace(tmp_path / "a"), Workspace(tmp_path / "b")
    first, again, other = Pseudonyms(here), Pseudonyms(here), Pseudonyms(elsewhere)
    assert first.film("train/x.jpeg") == again.film("train/x.jpeg") != other.film("train/x.jpeg")
    assert first.film("x") != first.patient("x")
    assert "x.jpeg" not in first.film("train/x.jpeg")
    assert stat.S_IMODE(os.stat(here.data / "salt").st_mode) == 0o600


def test_a_damaged_salt_is_not_replaced_silently(tmp_path):
    workspace = Workspace(tmp_path)
    Pseudonyms(workspace)
    (workspace.data / "salt").write_text("abc")
    with pytest.raises(DataError, match="salt"):
        Pseudonyms(workspace)


@pytest.mark.parametrize("head", [b"# " + b"[" * 100_000, b'# {"format": 1}', b"# []", b"# 3"])
def test_a_first_line_that_is_none_is_one_line(tmp_path, head):
    (tmp_path / "m.csv").write_bytes(head + b"\n")
    with pytest.raises(DataError, match="cannot use the manifest") as caught:
        Manifest.load(tmp_path / "m.csv")
    assert len(str(caught.value)) < 300


def test_a_place_that_is_no_text_is_refused(source, tmp_path):
    path = prepare(DataConfig(root=str(source))).save(tmp_path)
    head, _, body = path.read_text().partition("\n")
    path.write_text(f"# {json.dumps(json.loads(head[2:]) | {'root': 3})}\n{body}")
    with pytest.raises(DataError, match="no text"):
        Manifest.load(path)


@pytest.mark.parametrize("change", [{"root": 3}, {"settings": {}}, {"settings": None}])
def test_a_damaged_note_of_what_was_prepared_is_one_line(source, workspace, change):
    remember(prepared(DataConfig(root=str(source)), workspace), workspace)
    path = workspace.data / "prepared.json"
    note = json.loads(path.read_text())
    for text in (json.dumps(note | change), "[" * 100_000, '{"root": "x", "settings": {"seed": "one"}}'):
        path.write_text(text)
        with pytest.raises(DataError, match=r"cannot read .*prepared\.json.*run xray-opt data prepare"):
            settled(DataConfig(), workspace)
