"""Films of another folder with sealed ones among them: how they are told apart, and how often they were looked at."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from small_sets import kaggle_set, write_film

from xray_opt.config import DataConfig, Workspace
from xray_opt.dataset import Film, Manifest, kept_manifests, prepared, unsplit
from xray_opt.errors import DataError
from xray_opt.ledger import Look, film_key, noted
from xray_opt.scoring import Elsewhere, opening, outside, selecting


def manifest_of(count: int) -> Manifest:
    films = [
        Film(f"{n}.png", n % 2, f"p{n}", "unknown", "", f"p{n}", "train", f"{n:064x}", 1, 1, 1, "L")
        for n in range(count)
    ]
    return Manifest("films", tuple(films), (), {}, "source", "fingerprint")


@pytest.fixture
def model() -> SimpleNamespace:
    """A model of a run, of which no more is known than that every third film is a sealed one."""
    keys = frozenset(film_key(f"{n:064x}") for n in range(0, 900, 3))
    bundle = SimpleNamespace(config={})
    return SimpleNamespace(run_id="r" * 32, tags={}, bundle=bundle, trained_on=(), test_films=keys)


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Manifest:
    """900 films of another folder, whose comparison with each other is an error: that would be quadratic."""

    def compared(self: Film, other: object) -> bool:
        raise AssertionError("films are told apart by their content's digest")

    found = manifest_of(900)
    monkeypatch.setattr(selecting, "unsplit", lambda *_, **__: found)
    monkeypatch.setattr(selecting, "own_manifest", lambda *_: None)
    monkeypatch.setattr(selecting, "run_looks", lambda _: [])
    monkeypatch.setattr(outside, "_is_own", lambda *_: False)
    monkeypatch.setattr(outside, "noted_test_films", lambda *_: frozenset())
    monkeypatch.setattr(opening, "tag_look", lambda *_: None)
    monkeypatch.setattr(Film, "__eq__", compared)
    return found


def select(model: SimpleNamespace, workspace: Workspace, why: str | None) -> selecting.Selection:
    return selecting._outside(model, None, 0.5, workspace, DataConfig(root="films"), why)


def test_sealed_films_are_told_apart_without_comparing_films(model, folder, tmp_path: Path) -> None:
    chosen = select(model, Workspace(tmp_path), None)
    assert (len(chosen.films), dict(chosen.left_out), chosen.looks) == (600, {outside.SEALED: 300}, None)
    assert [(one.by, len(one.films)) for one in noted(Workspace(tmp_path))] == [("outside", 600)]
    chosen = select(model, Workspace(tmp_path), "I must know")
    assert (len(chosen.films), dict(chosen.left_out), chosen.looks) == (900, {}, 1)
    by = {one.by: len(one.films) for one in noted(Workspace(tmp_path))}
    assert by == {"outside": 600, "evaluate": 300}


def test_looks_on_other_machines_are_counted(model, folder, tmp_path: Path, monkeypatch) -> None:
    seen = Look("ada", "2026-01-09T00:00:00", "because", "finalize", films=tuple(sorted(model.test_films)[:5]))
    others = replace(seen, when="2026-01-10T00:00:00", films=("f" * 12,))
    monkeypatch.setattr(selecting, "run_looks", lambda _: [seen, others])
    assert select(model, Workspace(tmp_path), "I must know").looks == 2
    model.run_id = ""  # a folder is not of the store
    assert select(model, Workspace(tmp_path / "other"), "I must know").looks == 1


def test_another_folder_is_read_by_the_models_own_names_unless_others_are_given() -> None:
    config = {"data.negative": "virus", "data.positive": "bacteria"}
    kinds = SimpleNamespace(bundle=SimpleNamespace(config=config))
    assert Elsewhere().settings("films", kinds).classes == ("virus", "bacteria")
    told = Elsewhere(("VIRAL", "BACTERIAL"), skip_bad=True).settings("films", kinds)
    assert (told.classes, told.skip_bad, told.root) == (("VIRAL", "BACTERIAL"), True, "films")


def few(root: Path) -> Path:
    """Two films of two patients: no three splits can be made of them."""
    write_film(root / "NORMAL" / "IM-0001-0001.jpeg", 1)
    write_film(root / "PNEUMONIA" / "person2_virus_1.jpeg", 2)
    return root


def test_a_set_that_cannot_be_split_can_be_scored(tmp_path: Path) -> None:
    config, workspace = DataConfig(root=str(few(tmp_path / "few"))), Workspace(tmp_path)
    with pytest.raises(DataError, match="only 1 of 2 patients"):
        prepared(config, workspace)
    found = unsplit(config, workspace)
    assert [(film.path, film.group, film.split) for film in found.films] == [
        ("NORMAL/IM-0001-0001.jpeg", "IM-0001", ""),
        ("PNEUMONIA/person2_virus_1.jpeg", "person2", ""),
    ]
    assert unsplit(config, workspace) == found == next(kept_manifests(workspace.outside))


def test_a_set_of_which_nothing_can_be_used_says_so(tmp_path: Path) -> None:
    for place in ("NORMAL/IM-0001-0001.jpeg", "PNEUMONIA/person2_virus_1.jpeg"):
        (tmp_path / "bad" / place).parent.mkdir(parents=True)
        (tmp_path / "bad" / place).write_bytes(b"\xff\xd8")
    with pytest.raises(DataError, match="none of 2 files"):
        unsplit(DataConfig(root=str(tmp_path / "bad"), skip_bad=True), Workspace(tmp_path))


def test_a_set_is_the_same_one_whether_it_was_prepared_before_or_not(tmp_path: Path) -> None:
    config = DataConfig(root=str(kaggle_set(tmp_path / "films", 6)))
    first, second = Workspace(tmp_path / "first"), Workspace(tmp_path / "second")
    split = prepared(config, second)
    assert {film.split for film in split.films} == {"train", "val", "test"}
    assert unsplit(config, first).sha256 == unsplit(config, second).sha256
    assert not second.outside.exists()


def test_what_cannot_be_used_elsewhere_is_counted(model, tmp_path: Path, monkeypatch) -> None:
    (few(tmp_path / "few") / "NORMAL" / "IM-0003-0001.jpeg").write_bytes(b"\xff\xd8")
    monkeypatch.setattr(selecting, "own_manifest", lambda *_: None)
    monkeypatch.setattr(outside, "_is_own", lambda *_: False)
    model.run_id, model.test_films = "", frozenset()

    def selected(elsewhere: Elsewhere) -> selecting.Selection:
        data = elsewhere.settings(str(tmp_path / "few"), model)
        return selecting._outside(model, None, 0.5, Workspace(tmp_path), data, None)

    with pytest.raises(DataError, match="1 of 3 films"):
        selected(Elsewhere())
    chosen = selected(Elsewhere(skip_bad=True))
    assert (len(chosen.films), dict(chosen.left_out)) == (2, {outside.UNUSABLE: 1})
