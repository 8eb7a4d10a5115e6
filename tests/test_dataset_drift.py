"""Drift: films of the same kind raise no alarm more often than said, others do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xray_opt.config import DataConfig
from xray_opt.dataset import FALSE_ALARMS, Manifest, drift, prepare
from xray_opt.dataset.drift import compared, features
from xray_opt.errors import DataError

FRACTIONS = {"train_fraction": 0.6, "val_fraction": 0.3, "test_fraction": 0.1}


def films(root: Path, seed: int, patients: int, change=lambda grey: grey) -> Manifest:
    """Two noisy smooth films a patient, half of them with pneumonia."""
    chance = np.random.default_rng(seed)
    for number in range(patients):
        label, name = (("NORMAL", "IM-{:04d}-000{}.png"), ("PNEUMONIA", "person{}_virus_{}.png"))[number % 2]
        level, wide = chance.uniform(80, 140), int(chance.integers(60, 90))
        for film in range(2):
            coarse = np.clip(chance.normal(level, 25, (6, 6)), 0, 255).astype(np.uint8)
            grey = np.array(Image.fromarray(coarse).resize((wide, 70), Image.Resampling.BICUBIC))
            path = root / "train" / label / name.format(number, film + 1)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(change(grey)).save(path)
    return prepare(DataConfig(root=str(root), **FRACTIONS))


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return films(tmp_path_factory.mktemp("own"), 0, 160)


def every(manifest: Manifest):
    return manifest.of("train") + manifest.of("val")


def test_films_of_the_same_kind_are_alike(own: Manifest, tmp_path: Path) -> None:
    other = films(tmp_path, 1, 60)
    found = drift(own, other, every(other))
    assert found.score.low < 0.5 < found.score.high
    assert not found.unlike
    assert list(found.parts) == ["size", "greys", "layout"]


CHANGES = {
    "greys": lambda grey: (grey // 3).astype(np.uint8),
    "size": lambda grey: np.kron(grey, np.ones((1, 4), dtype=np.uint8)),
    "layout": lambda grey: np.where(np.arange(70)[:, None] < 18, np.uint8(0), grey),
}


@pytest.mark.parametrize("part", CHANGES)
def test_other_films_raise_the_alarm_and_the_part_is_named(own: Manifest, tmp_path: Path, part: str) -> None:
    other = films(tmp_path, 2, 60, CHANGES[part])
    found = drift(own, other, every(other))
    assert found.unlike
    assert found.score.value > 0.8
    assert found.parts[part] > 0.9
    if part == "size":
        assert found.parts["greys"] < 0.7


def test_too_few_patients_raise_no_alarm(own: Manifest, tmp_path: Path) -> None:
    other = films(tmp_path, 3, 8, CHANGES["greys"])
    found = drift(own, other, every(other))
    assert (found.unlike, found.score.low) == (False, None)
    assert "too few patients" in found.score.why


def test_alarms_are_as_rare_as_said() -> None:
    """Sets of the same kind, films of a patient alike: at most 1 in 40, and some room for 200 simulations."""
    chance = np.random.default_rng(7)

    def drawn(patients: int) -> np.ndarray:
        return np.repeat(chance.normal(0, 1, (patients, 25)), 2, axis=0) + chance.normal(0, 0.7, (2 * patients, 25))

    groups = [f"{number // 2}" for number in range(2 * 60 + 2 * 50)]
    alarms = [compared(drawn(150) * 9, drawn(60) * 9, drawn(50) * 9, groups).unlike for _ in range(200)]
    assert np.mean(alarms) <= FALSE_ALARMS + 0.025
    shifted = [compared(drawn(150) * 9, drawn(60) * 9, drawn(50) * 9 + 8, groups).unlike for _ in range(10)]
    assert np.mean(shifted) > 0.8


def test_features_are_what_they_are_called(own: Manifest) -> None:
    (film, *_) = own.of("train")
    found = features(own, [film])[0]
    assert np.exp(found[:2]) == pytest.approx([film.width, film.height])
    pixels = np.asarray(Image.open(Path(own.root) / film.path).resize((32, 32), Image.Resampling.BILINEAR))
    assert found[2] == pytest.approx(pixels.mean(), abs=0.5)
    assert found[6] == pytest.approx(np.median(pixels), abs=1)
    assert found[9] == pytest.approx(pixels[:8, :8].mean() - pixels.mean(), abs=0.5)
    assert found[9:].mean() == pytest.approx(0, abs=1e-9)


def test_a_training_film_that_went_is_said(tmp_path: Path) -> None:
    manifest = films(tmp_path / "here", 4, 24)
    (Path(manifest.root) / manifest.of("train")[0].path).unlink()
    with pytest.raises(DataError, match="no such file"):
        drift(manifest, manifest, every(manifest))
