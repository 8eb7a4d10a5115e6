"""Subgroups and shift: parts of the films with known scores, prevalence and drift of another folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from xray_opt.cli.output import print_level_table
from xray_opt.cli.robust import print_shift
from xray_opt.dataset import Drift, Film
from xray_opt.intervals import Interval
from xray_opt.metrics import Cases, auc
from xray_opt.phantom import make_phantoms
from xray_opt.scoring import Level, Shift
from xray_opt.scoring.subgroups import subgroups


def film(number: int, label: int, **changed: object) -> Film:
    subtype = ("normal", "bacteria" if number % 4 < 2 else "virus")[label]
    given = {"folder": "train", "width": 100 + number, "height": 100, "mode": "L", "subtype": subtype} | changed
    facts = {"path": f"{number}.png", "label": label, "patient": str(number), "group": str(number), "split": "val"}
    return Film(**facts, **given, sha256="0" * 64, bytes=1)


@pytest.fixture
def scored_films() -> tuple[list[Film], Cases]:
    """120 films; those of the folder ``test`` are told by chance alone, the others well."""
    chance = np.random.default_rng(0)
    films = [
        film(number, number % 2, folder="test" if number < 60 else "train", mode="RGB" if number >= 116 else "L")
        for number in range(120)
    ]
    labels = np.array([one.label for one in films])
    good = 0.25 + 0.5 * labels + chance.uniform(-0.3, 0.3, 120)
    return films, Cases(labels, np.where(np.arange(120) < 60, chance.uniform(0, 1, 120), good))


def test_each_part_is_scored_by_itself(scored_films) -> None:
    films, cases = scored_films
    parts = {(one.by, one.name): one for one in subgroups(films, cases, 0.5)}
    assert {by for by, _ in parts} == {"subtype", "size", "folder", "mode"}
    poor, good = parts["folder", "test"], parts["folder", "train"]
    assert (poor.films, good.films) == (60, 60)
    assert poor.auc.value == auc(cases.labels[:60], cases.probabilities[:60])
    assert poor.auc.high < good.auc.low
    called = cases.probabilities[60:] >= 0.5
    assert good.sensitivity.value == called[cases.labels[60:] == 1].mean()
    assert good.specificity.value == 1 - called[cases.labels[60:] == 0].mean()


def test_a_kind_of_pneumonia_is_set_against_all_normal_films(scored_films) -> None:
    films, cases = scored_films
    parts = {one.name: one for one in subgroups(films, cases, 0.5) if one.by == "subtype"}
    assert set(parts) == {"bacteria", "virus"}
    assert parts["virus"].films == 60 + sum(one.subtype == "virus" for one in films)
    members = np.array([one.subtype in ("virus", "normal") for one in films])
    assert parts["virus"].auc.value == auc(cases.labels[members], cases.probabilities[members])


def test_sizes_are_thirds_and_parts_too_small_have_no_interval(scored_films) -> None:
    films, cases = scored_films
    parts = subgroups(films, cases, 0.5)
    assert [one.films for one in parts if one.by == "size"] == [40, 40, 40]
    colour = next(one for one in parts if (one.by, one.name) == ("mode", "RGB"))
    assert (colour.films, colour.auc.low) == (4, None)
    assert "too few patients" in colour.auc.why


@pytest.mark.parametrize("sides", [(1000, 1010, 1020), (1000, 1001, 2000), (2048, 2050, 2050)])
def test_sizes_that_are_nearly_alike_are_parts_of_their_own(sides: tuple[int, int, int]) -> None:
    films = [film(number, number % 2, width=sides[number % 3], height=sides[number % 3]) for number in range(120)]
    cases = Cases(np.array([one.label for one in films]), np.linspace(0, 1, 120))
    parts = [one for one in subgroups(films, cases, 0.5) if one.by == "size"]
    assert len({one.name for one in parts}) == len(parts) == len(set(sides))
    assert sum(one.films for one in parts) == 120


def test_what_does_not_differ_is_no_parting(scored_films) -> None:
    films, cases = scored_films
    same = [
        film(number, one.label, subtype=("normal", "unknown")[one.label], width=90) for number, one in enumerate(films)
    ]
    assert subgroups(same, cases, 0.5) == ()


def test_evaluate_prints_parts_in_80_columns(tuned) -> None:
    place, _, _ = tuned
    shown = place.run("evaluate")
    parts = place.json("evaluate")["subgroups"]
    assert {one["by"] for one in parts} >= {"subtype", "size"}
    lines = shown.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    for one in parts:
        assert any(line.strip().startswith(f"{one['by']}: {one['name']}") for line in lines)
    assert place.json("evaluate")["shift"] is None


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phantoms of other people: drawn as the model's own are."""
    root = tmp_path_factory.mktemp("others") / "films"
    make_phantoms(root, 40, 1234)
    for path in sorted(root.rglob("*.jpeg")):
        path.rename(path.with_name(path.name.replace("person", "person9").replace("IM-0", "IM-9")))
    return root


def test_another_folder_is_compared_with_training(tuned, others: Path, tmp_path: Path) -> None:
    from PIL import Image, ImageOps

    place, _, _ = tuned
    alike = place.json("evaluate", "--data", str(others), "--split", "all")["shift"]
    assert 0.4 < alike["drift"]["score"]["value"] < 0.65
    assert not alike["drift"]["unlike"]
    assert alike["prevalence"]["low"] < alike["trained"] < alike["prevalence"]["high"]
    inverted = tmp_path / "inverted"
    shutil.copytree(others, inverted)
    for path in inverted.rglob("*.jpeg"):
        if "PNEUMONIA" in str(path) and int(path.stem.split("_")[0].removeprefix("person")) % 3:
            path.unlink()
        else:
            ImageOps.invert(Image.open(path).convert("L")).save(path, quality=95)
    other = place.json("evaluate", "--data", str(inverted), "--split", "all")["shift"]
    assert other["drift"]["score"]["value"] > 0.95
    assert other["prevalence"]["value"] < alike["prevalence"]["value"] - 0.2
    shown = place.run("evaluate", "--data", str(inverted), "--split", "all").stdout
    assert f"drift {other['drift']['score']['value']:.3f}" in shown
    own = shown.splitlines()
    own = own[own.index("parts of the films, with 95 % intervals over their patients:") :]
    assert max(map(len, own)) <= 80
    assert own.count("no interval: too few patients for an interval") == 1


def test_a_shift_is_printed_with_its_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    certain = Drift(Interval(0.934, 0.912, 0.951), {"size": 0.5, "greys": 0.93, "layout": 0.88}, True)
    print_shift(Shift(Interval(0.5, 0.45, 0.55), 0.731, certain), "Bacteria")
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "bacteria: 50.0 % (45.0 to 55.0) of the films; 73.1 % in training",
        "prevalence shift: F1, precision and calibration do not compare; AUC does",
        "drift 0.934 (0.912 to 0.951), where .5 is like validation films",
        "of each part alone: size 0.50, greys 0.93, layout 0.88",
        "warning: these films look unlike those of training; scores may not hold here",
        "(such a warning is false for at most 2.5 % of sets that are alike)",
    ]
    assert max(map(len, lines)) <= 80
    print_shift(Shift(Interval(0.7, 0.6, 0.8), 0.731, Drift(Interval(0.55, why="too few"), {"size": 0.5})), "PNEUMONIA")
    lines = capsys.readouterr().out.splitlines()
    assert not any("warning" in line or "shift" in line for line in lines)
    assert "no interval: too few" in lines


def test_where_training_films_went_there_is_no_drift_score_and_it_is_said(tuned, others: Path, tmp_path: Path) -> None:
    place, _, _ = tuned
    place.films.rename(tmp_path / "away")
    try:
        done = place.run("evaluate", "--data", str(others), "--split", "all")
    finally:
        (tmp_path / "away").rename(place.films)
    assert done.returncode == 0, done.stderr
    assert "no drift score: the model's own films cannot be read here" in " ".join(done.stdout.split())


def test_the_loss_of_a_very_wrong_model_fits_in_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    scores = {"loss": Interval(236_943.2, 186_585.303, 302_140.706), "sensitivity.bacteria": Interval(0.0, 0.0, 0.138)}
    level = Level(
        5_856,
        3_000,
        0.5,
        scores,
        dict.fromkeys((f"{what}_{call}" for what in ("true", "false") for call in ("positive", "negative")), 1_234),
    )
    print_level_table(level, level)
    lines = capsys.readouterr().out.splitlines()
    assert "1.87e+05 to 3.02e+05" in "\n".join(lines)
    assert max(map(len, lines)) <= 80
