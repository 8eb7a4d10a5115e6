"""Base weights that have seen the patients of a new split: what their file tells, and who is found by it."""

import hashlib
import json
from dataclasses import replace

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_sets import kaggle_set

from xray_opt.backbone import ancestor, random_base, read_base, save_base
from xray_opt.backbone.lineage import patient_hash
from xray_opt.config import DataConfig, ModelConfig
from xray_opt.dataset import prepare
from xray_opt.errors import AuditError, ModelError
from xray_opt.overlap import overlap_of, overlap_tags, require_apart, seen_groups


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    root = kaggle_set(tmp_path_factory.mktemp("overlap") / "set", patients=20)
    return prepare(DataConfig(root=str(root), train_fraction=0.6, val_fraction=0.2, test_fraction=0.2))


def base_of(films, salt="a" * 64):
    seen = ancestor(films, "r" * 32, "older", (salt, "d" * 64), 64, ("virus", "bacteria"))
    return replace(random_base(0), origin="full, run rrrrrrrr", trained_on=(seen,))


def of(manifest, split):
    return [film for film in manifest.films if film.split == split]


def test_a_base_of_the_train_split_alone_is_let_through(manifest):
    base = base_of((film.sha256, film.patient) for film in of(manifest, "train"))
    assert require_apart(base, manifest, ModelConfig()) is None
    assert overlap_of((), manifest) is None
    assert overlap_tags(None) == {}


def test_a_planted_film_of_val_and_a_planted_patient_of_test_are_found(manifest):
    """The film by its bytes under another patient key, the patient by the key with other films."""
    val, test = of(manifest, "val")[0], of(manifest, "test")[0]
    base = base_of([(val.sha256, "somebody else"), ("0" * 64, test.patient)])
    with pytest.raises(AuditError) as caught:
        require_apart(base, manifest, ModelConfig())
    groups = {split: len({film.group for film in of(manifest, split)}) for split in ("val", "test")}
    assert f"1 of {groups['val']} val and 1 of {groups['test']} test patients" in str(caught.value)
    assert "model.base_overlap=warn" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert seen_groups(base.trained_on, manifest.films) == {val.group, test.group}


@pytest.mark.parametrize("split", ["val", "test"])
def test_one_film_gives_its_whole_patient_away(manifest, split):
    film = of(manifest, split)[0]
    others = [one for one in of(manifest, split) if one.group == film.group and one != film]
    assert others, "two films a patient"
    found = overlap_of(base_of([(film.sha256, "x")]).trained_on, replace(manifest, films=(film, *others)))
    assert (getattr(found, split), getattr(found, f"{split}_patients")) == (1, 1)


def test_an_allowed_overlap_is_said_and_told_to_others(manifest):
    said = []
    base = base_of([(of(manifest, "val")[0].sha256, "x")])
    found = require_apart(base, manifest, ModelConfig(base_overlap="warn"), said.append)
    assert (found.val, found.test, found.runs) == (1, 0, ("r" * 32,))
    assert said[0].startswith("!!! LEAK")
    assert overlap_tags(found) == {"xray_opt.base_overlap": found.text()}
    assert json.loads(json.dumps(found.to_dict()))["val"] == 1


def test_a_base_that_does_not_tell_its_films_is_refused(manifest):
    """Such are the copies in MLflow: what they saw is counted, and not listed."""
    base = base_of((film.sha256, film.patient) for film in of(manifest, "train")).without_lists()
    with pytest.raises(AuditError, match="cannot be ruled out"):
        require_apart(base, manifest, ModelConfig())
    found = require_apart(base, manifest, ModelConfig(base_overlap="warn"))
    assert found.unlisted == len(of(manifest, "train"))
    assert str(found.unlisted) in found.text()


def test_all_trainings_before_are_looked_at(manifest):
    first, second = base_of([(of(manifest, "test")[0].sha256, "x")]), base_of([("1" * 64, "y")], salt="b" * 64)
    both = replace(second, trained_on=(*first.trained_on, *second.trained_on))
    assert overlap_of(both.trained_on, manifest).test == 1
    assert overlap_of(second.trained_on, manifest) is None


def test_the_file_tells_it_and_a_copy_without_lists_does_not(manifest, tmp_path):
    base = base_of((film.sha256, film.patient) for film in of(manifest, "val"))
    read = read_base(save_base(base, tmp_path / "base.safetensors"))
    assert (read.sha256, read.origin, read.trained_on) == (base.sha256, base.origin, base.trained_on)
    assert base.warning() is None, "random weights that were trained are none any more"
    plain = save_base(base.without_lists(), tmp_path / "plain.safetensors")
    text = str(safe_open(plain, "pt").metadata())
    (own,) = base.trained_on
    assert not any(name in text for name in own.films | own.patients)
    assert of(manifest, "val")[0].patient not in str(safe_open(tmp_path / "base.safetensors", "pt").metadata())
    assert read_base(plain).trained_on[0].film_count == own.film_count == len(of(manifest, "val"))


def test_one_key_has_another_hash_in_another_set():
    assert patient_hash("a", "person7") != patient_hash("b", "person7")
    assert len(patient_hash("a", "person7")) == 16


@pytest.mark.parametrize("fault", ["cut", "edited", "no digest", "no list", "not JSON", "another shape"])
def test_a_damaged_record_is_refused_with_one_line(tmp_path, fault):
    path = save_base(base_of([("1" * 64, "person7")]), tmp_path / "base.safetensors")
    header = dict(safe_open(path, "pt").metadata())
    text = header["trained_on"]
    changed = {
        "cut": {"trained_on": text[:-20]},
        "edited": {"trained_on": text.replace('"patients":[', '"patients":["0000000000000000",')},
        "no digest": {"trained_on_sha256": None},
        "no list": {"trained_on": None},
        "not JSON": {"trained_on": "x", "trained_on_sha256": digest("x")},
        "another shape": {"trained_on": "[{}]", "trained_on_sha256": digest("[{}]")},
    }[fault]
    kept = {key: value for key, value in (header | changed).items() if value is not None}
    save_file(load_file(path), path, metadata=kept)
    with pytest.raises(ModelError, match="is damaged") as caught:
        read_base(path)
    assert "\n" not in str(caught.value)


def digest(text):
    return hashlib.sha256(text.encode()).hexdigest()
