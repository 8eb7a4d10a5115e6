"""No group is ever divided, every film stands somewhere once, and the shares are what was asked."""

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from statistics import mean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xray_opt.config import DataConfig
from xray_opt.dataset import Film, prepare
from xray_opt.dataset.records import KEPT_TEST
from xray_opt.dataset.split import grouped, split_films
from xray_opt.errors import DataError

REAL = Path(os.environ.get("XRAY_OPT_REAL_DATA", Path(__file__).parent.parent.parent / "shared" / "data"))
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason=f"no real films in {REAL}; set XRAY_OPT_REAL_DATA")


def film(path, label, patient, sha256=None, folder="train", subtype=None):
    kind = subtype or ("normal", "bacteria")[label]
    return Film(path, label, patient, kind, folder, patient, "", sha256 or path, 1000, 100, 80, "L")


@st.composite
def film_sets(draw):
    """Sets of at least 12 patients a class, some with several films, some sharing files with other patients."""
    films = []
    for label in (0, 1):
        for patient in range(draw(st.integers(12, 25))):
            for number in range(draw(st.integers(1, 4))):
                name = f"{label}-{patient}-{number}"
                films.append(
                    film(
                        name,
                        label,
                        f"{label}p{patient}",
                        subtype=None if label == 0 else draw(st.sampled_from(["bacteria", "virus"])),
                    )
                )
    for _ in range(draw(st.integers(0, 2))):
        first, second = draw(st.sampled_from(films)), draw(st.sampled_from(films))
        films.append(replace(second, path=f"copy-{len(films)}", sha256=first.sha256))
    return films


@settings(max_examples=60, deadline=None)
@given(film_sets(), st.integers(0, 5), st.randoms())
def test_no_group_crosses_splits_and_every_film_stands_once(films, seed, chance):
    placed, left_out = split_films(films, DataConfig(seed=seed))
    assert not left_out
    assert Counter(f.path for f in placed) == Counter(f.path for f in films)
    for key in ("group", "patient", "sha256"):
        where = {}
        for item in placed:
            assert where.setdefault(getattr(item, key), item.split) == item.split
    for split in ("train", "val", "test"):
        assert {item.label for item in placed if item.split == split} == {0, 1}
    shuffled = list(films)
    chance.shuffle(shuffled)
    assert split_films(shuffled, DataConfig(seed=seed))[0] == placed


def test_groups_join_over_patients_and_over_bytes():
    films = [film("a", 0, "p1", "x"), film("b", 0, "p2", "x"), film("c", 0, "p2", "y"), film("d", 0, "p3", "z")]
    assert [f.group for f in grouped(films)] == ["p1", "p1", "p1", "p3"]


def test_the_seed_decides():
    films = [film(f"{label}-{n}", label, f"{label}p{n}") for label in (0, 1) for n in range(40)]
    first, again, other = (split_films(films, DataConfig(seed=seed))[0] for seed in (1, 1, 2))
    assert first == again != other


def test_a_kept_test_split_leaves_out_films_of_its_patients():
    films = [film(f"{label}-{n}", label, f"{label}p{n}") for label in (0, 1) for n in range(30)]
    films += [film(f"t{label}-{n}", label, f"{label}p{n}", folder="test") for label in (0, 1) for n in range(25, 35)]
    placed, left_out = split_films(films, DataConfig(keep_test=True))
    assert {f.path for f in placed if f.split == "test"} == {f.path for f in films if f.folder == "test"}
    assert sorted(item.path for item in left_out) == sorted(f"{label}-{n}" for label in (0, 1) for n in range(25, 30))
    assert {item.reason for item in left_out} == {KEPT_TEST}


def test_a_limit_takes_whole_patients_and_leaves_test_alone():
    films = [film(f"{label}-{n}-{k}", label, f"{label}p{n}") for label in (0, 1) for n in range(60) for k in range(3)]
    whole, _ = split_films(films, DataConfig())
    some, left_out = split_films(films, DataConfig(train_films=100, val_films=12))
    assert abs(sum(f.split == "train" for f in some) - 100) <= 3
    assert {f.path for f in some if f.split == "test"} == {f.path for f in whole if f.split == "test"}
    assert not {f.group for f in some if f.split == "train"} & {item.path.rsplit("-", 1)[0] for item in left_out}
    assert len(some) + len(left_out) == len(films)


def test_too_few_patients_are_refused_with_what_is_missing():
    films = [film(f"0-{n}", 0, f"0p{n}") for n in range(30)] + [film(f"1-{n}", 1, "one") for n in range(30)]
    with pytest.raises(DataError, match="need PNEUMONIA films of another patient"):
        split_films(films, DataConfig())


def test_keep_test_without_a_test_folder_is_refused():
    films = [film(f"{label}-{n}", label, f"{label}p{n}", folder="") for label in (0, 1) for n in range(20)]
    with pytest.raises(DataError, match="no test folder"):
        split_films(films, DataConfig(keep_test=True))


@pytest.mark.real_data
@needs_real
def test_the_real_set_is_split_as_asked():
    manifest = prepare(DataConfig(root=str(REAL / "chest_xray_224")))
    assert len(manifest.films) == 5212
    groups = {f.path.rsplit("/", 1)[-1]: (f.group, f.split) for f in manifest.films}
    assert groups["NORMAL2-IM-0095-0001.jpeg"] == groups["NORMAL2-IM-0096-0001.jpeg"]
    overall = sum(f.label for f in manifest.films) / 5212
    for split, share in (("train", 0.8), ("val", 0.1), ("test", 0.1)):
        films = [film for film in manifest.films if film.split == split]
        assert abs(len(films) / 5212 - share) < 0.01
        assert abs(sum(f.label for f in films) / len(films) - overall) < 0.01
    bacteria = [
        mean([f.subtype == "bacteria" for f in manifest.films if f.split == s]) for s in ("train", "val", "test")
    ]
    assert max(bacteria) - min(bacteria) < 0.01


@pytest.mark.real_data
@needs_real
def test_the_real_sets_own_test_split_costs_films():
    manifest = prepare(DataConfig(root=str(REAL / "chest_xray_224"), keep_test=True))
    test = manifest.open_test(lambda: None)
    assert len(test) == 558
    assert all(f.folder == "test" for f in test)
    assert len(manifest.films) + len(manifest.left_out) == 5212
    assert len(manifest.left_out) > 100
    assert not {f.patient for f in test} & {f.patient for f in manifest.films if f.split != "test"}
