"""Classes other than NORMAL and PNEUMONIA: another label of the same films."""

import numpy as np
import pytest
from small_sets import kaggle_set, write_film

from xray_opt.config import Config, DataConfig, StudyConfig, Workspace, flatten, override
from xray_opt.dataset import audit, prepare, prepared, remember, settled
from xray_opt.errors import ConfigError, DataError
from xray_opt.scoring import film_cases
from xray_opt.tuning.rules import first_difference

OTHER = {"negative": "virus", "positive": "bacteria"}


@pytest.fixture
def table(tmp_path):
    """The films with pneumonia of a small set, by their kind."""
    root = kaggle_set(tmp_path / "set", patients=16)
    rows = ["path,label,patient"]
    for path in sorted(root.rglob("person*.jpeg")):
        person, kind, _ = path.stem.split("_")
        rows.append(f"{path.relative_to(root)},{kind.upper()},{person}")
    (root / "kinds.csv").write_text("\n".join(rows) + "\n")
    return root / "kinds.csv"


def test_a_csv_with_other_classes_is_split_by_patient(table):
    manifest = prepare(DataConfig(root=str(table), **OTHER))
    assert manifest.classes == ("virus", "bacteria")
    assert {(film.label, film.subtype) for film in manifest.films} == {(0, "virus"), (1, "bacteria")}
    assert all(f"_{film.subtype}_" in film.path for film in manifest.films)
    found = audit(manifest)
    assert found.ok
    assert found.lines()[1].split() == ["split", "films", "groups", "virus", "bacteria", "share"]
    assert not found.shortcut.folds or "always saying bacteria" in "\n".join(found.shortcut.lines())


def test_labels_of_the_usual_classes_are_refused_then_and_the_other_way_round(table):
    with pytest.raises(DataError, match=r"line 2: label must be NORMAL, PNEUMONIA, 0 or 1.*data\.negative"):
        prepare(DataConfig(root=str(table)))
    with pytest.raises(DataError, match="in a known layout"):
        prepare(DataConfig(root=str(table.parent), **OTHER))
    table.write_text("path,label,patient\nx.jpeg,PNEUMONIA,1\n")
    with pytest.raises(DataError, match="label must be virus, bacteria, 0 or 1"):
        prepare(DataConfig(root=str(table), **OTHER))


def test_class_folders_have_the_names_of_the_classes(tmp_path):
    for number in range(8):
        write_film(tmp_path / "Virus" / f"person{number}_virus_1.jpeg", number)
        write_film(tmp_path / "BACTERIA" / f"person{90 + number}_bacteria_1.jpeg", 90 + number)
    films = prepare(DataConfig(root=str(tmp_path), **OTHER)).films
    assert sum(film.label for film in films) == 8 == len(films) / 2
    few = tmp_path / "few"
    write_film(few / "virus" / "person1_virus_1.jpeg", 0)
    write_film(few / "bacteria" / "person2_bacteria_1.jpeg", 1)
    with pytest.raises(DataError, match="train, val, test each need virus films"):
        prepare(DataConfig(root=str(few), **OTHER))


def test_what_was_prepared_with_other_classes_is_remembered(table, tmp_path):
    workspace = Workspace(tmp_path)
    manifest = prepared(DataConfig(root=str(table), **OTHER), workspace)
    remember(manifest, workspace)
    assert settled(DataConfig(), workspace).classes == ("virus", "bacteria")
    assert prepared(DataConfig(), workspace).sha256 == manifest.sha256


@pytest.mark.parametrize(
    "pair", [("a", "A"), ("", "x"), ("0", "x"), ("x", "1"), ("a/b", "x"), (" a", "x"), ("a\n", "x"), ("x" * 41, "y")]
)
def test_names_that_cannot_be_told_apart_or_read_are_refused(pair):
    with pytest.raises(ConfigError, match=r"data\.(negative|positive)"):
        DataConfig(negative=pair[0], positive=pair[1])


def test_a_study_of_other_classes_needs_a_model_name_of_its_own():
    values = {"data.negative": "virus", "data.positive": "bacteria"}
    with pytest.raises(ConfigError, match=r"tracking\.registered_model"):
        StudyConfig("s", override(Config(), values))
    assert StudyConfig("s", override(Config(), values | {"tracking.registered_model": "xray-bacteria"}))


def test_sensitivity_of_a_kind_is_of_positive_films(table):
    manifest = prepare(DataConfig(root=str(table), **OTHER))
    cases = film_cases(manifest.films, np.zeros(len(manifest.films)), 1.0, Config().loss)
    assert set(cases.films.kinds) == {"bacteria"}
    assert cases.films.kinds["bacteria"].sum() == sum(film.label for film in manifest.films)


def test_a_study_from_before_a_setting_goes_on_with_its_default():
    study = StudyConfig("s")
    kept = study.rules()
    older = kept | {"fixed": {name: value for name, value in kept["fixed"].items() if name != "data.positive"}}
    assert first_difference(older, kept) is None
    other = StudyConfig("s", override(study.config, {"data.positive": "x", "tracking.registered_model": "m"}))
    assert first_difference(older, other.rules()) == "data.positive was PNEUMONIA, now it is x"
    assert "data.positive" in flatten(study.config)
