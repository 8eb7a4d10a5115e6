"""The shortcut screen finds what metadata and thumbnails tell, and the hash finds copies and nothing else."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xray_opt.config import DataConfig
from xray_opt.dataset import Film, Manifest, prepare, shortcut_screen
from xray_opt.dataset.near_duplicates import hashes, near_duplicates
from xray_opt.dataset.shortcuts import Shortcut, screen
from xray_opt.errors import DataError

REAL = Path(os.environ.get("XRAY_OPT_REAL_DATA", Path(__file__).parent.parent.parent / "shared" / "data"))


def film(number: int, label: int, split: str = "train", **facts: object) -> Film:
    values: dict[str, object] = {
        "bytes": 10_000,
        "width": 200,
        "height": 200,
        "mode": "L",
        "group": f"p{number}",
    } | facts
    name = f"{number}.png"
    return Film(name, label, f"p{number}", "unknown", "", split=split, sha256=f"{number:064x}", **values)  # type: ignore[arg-type]


def noise(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32)).astype(np.uint8)


def written(root: Path, films: list[Film], thumbnails: np.ndarray) -> Manifest:
    for item, pixels in zip(films, thumbnails, strict=True):
        Image.fromarray(pixels).save(root / item.path)
    return Manifest(str(root), tuple(films))


class TestScreen:
    def test_metadata_that_tells_and_thumbnails_that_do_not(self) -> None:
        films = [film(i, i % 2, bytes=10_000 + 3000 * (i % 2) + 10 * i) for i in range(200)]
        found = screen(films, noise(200))
        assert found.metadata_auc is not None
        assert found.metadata_auc > 0.99
        assert found.thumbnail_auc is not None
        assert 0.3 < found.thumbnail_auc < 0.7
        assert (found.films, found.folds) == (200, 5)

    def test_thumbnails_that_tell_and_metadata_that_do_not(self) -> None:
        thumbnails = noise(200) // 2
        thumbnails[1::2, :16] += 100
        found = screen([film(i, i % 2) for i in range(200)], thumbnails)
        assert found.thumbnail_auc is not None
        assert found.thumbnail_auc > 0.99
        assert found.metadata_auc == pytest.approx(0.5, abs=0.1)
        assert found.thumbnail_f1 is not None
        assert found.thumbnail_f1 > 0.95

    def test_mode_and_aspect_are_metadata(self) -> None:
        for facts in ({"mode": "RGB"}, {"width": 300, "bytes": 15_000}):
            found = screen([film(i, i % 2, **(facts if i % 2 else {})) for i in range(120)], noise(120))
            assert found.metadata_auc == pytest.approx(1.0)

    def test_grouping_hides_what_only_the_patient_tells(self) -> None:
        """Twenty films a patient, each patient with a picture of its own: by film it would look perfect."""
        pictures = noise(40)
        films = [film(i, (i // 20) % 2, group=f"g{i // 20}") for i in range(800)]
        found = screen(films, pictures[np.arange(800) // 20])
        assert found.thumbnail_auc is not None
        assert found.thumbnail_auc < 0.8

    def test_always_saying_pneumonia(self) -> None:
        found = screen([film(i, int(i % 4 > 0)) for i in range(100)], noise(100))
        assert found.always_f1 == pytest.approx(2 * 75 / 175)

    @pytest.mark.parametrize("groups", [1, 2, 3])
    def test_few_groups_mean_fewer_folds_or_none(self, groups: int) -> None:
        films = [film(i, i % 2, group=f"{i % 2}-{i % groups if groups != 2 else i % 4}") for i in range(24)]
        found = screen(films, noise(24))
        per_class = min(len({item.group for item in films if item.label == label}) for label in (0, 1))
        assert found.folds == (per_class if per_class > 1 else 0)
        assert (found.metadata_auc is None) == (found.folds == 0)

    def test_nothing_to_screen(self) -> None:
        for films in ([], [film(1, 1)], [film(1, 1), film(2, 1)]):
            found = screen(films, noise(len(films)))
            assert found.folds == 0
            assert found.metrics() == {"shortcut.always_f1": found.always_f1}
            assert "too few" in found.lines()[0]

    def test_report(self) -> None:
        found = Shortcut(0.88, 0.979, 0.875, 0.959, 0.844, 4691, 5)
        assert found.metrics()["shortcut.thumbnail_auc"] == 0.979
        assert set(found.metrics()) == {
            f"shortcut.{name}" for name in ("metadata_auc", "metadata_f1", "thumbnail_auc", "thumbnail_f1", "always_f1")
        }
        text = "\n".join(found.lines())
        assert "0.880" in text
        assert "0.979" in text
        assert all(len(line) <= 80 for line in found.lines())


class TestFromFiles:
    def test_deterministic_and_says_progress(self, tmp_path: Path) -> None:
        manifest = written(tmp_path, [film(i, i % 2) for i in range(40)], noise(40))
        seen: list[tuple[int, int]] = []
        found = shortcut_screen(manifest, lambda done, total: seen.append((done, total)))
        assert found == shortcut_screen(manifest)
        assert seen[-1] == (40, 40)

    def test_the_test_split_is_not_even_opened(self, tmp_path: Path) -> None:
        manifest = written(tmp_path, [film(i, i % 2, "test" if i < 6 else "val") for i in range(40)], noise(40))
        for i in range(6):
            (tmp_path / f"{i}.png").unlink()
        assert shortcut_screen(manifest).films == 34

    def test_missing_film_is_named(self, tmp_path: Path) -> None:
        manifest = written(tmp_path, [film(i, i % 2) for i in range(20)], noise(20))
        (tmp_path / "7.png").unlink()
        with pytest.raises(DataError, match=r"7\.png .*no such file.*data prepare"):
            shortcut_screen(manifest)


class TestNearDuplicates:
    def copies(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        image = Image.fromarray(pixels)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=30)
        half = image.resize((image.width // 2, image.height // 2), Image.Resampling.BICUBIC)
        bright = image.point(lambda value: min(255, int(value * 1.15 + 8)))
        return {
            name: np.asarray(made) for name, made in (("jpeg", Image.open(buffer)), ("half", half), ("bright", bright))
        }

    def smooth(self, seed: int) -> np.ndarray:
        image = Image.fromarray(noise(1, seed)[0][:7, :7].copy())
        return np.asarray(image.resize((300, 240), Image.Resampling.BICUBIC))

    def small(self, pixels: np.ndarray) -> np.ndarray:
        return np.asarray(Image.fromarray(pixels).resize((32, 32), Image.Resampling.BILINEAR))

    @pytest.mark.parametrize("kind", ["jpeg", "half", "bright"])
    def test_a_changed_copy_under_another_name_is_found(self, kind: str) -> None:
        pictures = [self.small(self.smooth(seed)) for seed in range(30)]
        pictures.append(self.small(self.copies(self.smooth(4))[kind]))
        films = [film(i, i % 2, "val" if i == 30 else "train") for i in range(31)]
        found = near_duplicates(films, np.array(pictures))
        assert (found.total, found.across_splits) == (1, 1)
        (pair,) = found.pairs
        assert (pair.first, pair.second, pair.splits) == ("4.png", "30.png", ("train", "val"))
        assert pair.correlation > 0.985

    def test_one_group_may_hold_copies(self) -> None:
        pictures = np.repeat(self.small(self.smooth(1))[None], 3, axis=0)
        films = [film(0, 0, group="a"), film(1, 0, group="a"), film(2, 0, group="b")]
        assert near_duplicates(films, pictures).total == 2

    def test_films_of_one_value_are_like_none(self) -> None:
        assert near_duplicates([film(i, 0) for i in range(5)], np.full((5, 32, 32), 9, np.uint8)).total == 0

    def test_none_and_very_many(self) -> None:
        assert near_duplicates([], noise(0)).total == 0
        same = np.repeat(self.small(self.smooth(2))[None], 600, axis=0)
        found = near_duplicates([film(i, 0) for i in range(600)], same)
        assert found.total == 600 * 599 // 2
        assert len(found.pairs) == 500

    def test_across_blocks_of_rows(self) -> None:
        pictures = noise(1300)
        pictures[1290] = pictures[3]
        found = near_duplicates([film(i, 0) for i in range(1300)], pictures)
        assert [(pair.first, pair.second) for pair in found.pairs] == [("3.png", "1290.png")]

    def test_hash_is_64_bits_and_keeps_under_brightness(self) -> None:
        picture = self.small(self.smooth(3))
        dim = (picture * 0.7).astype(np.uint8)
        both = hashes(np.array([picture, dim]))
        assert both.shape == (2, 64)
        assert (both[0] != both[1]).sum() <= 4


def real(name: str) -> Manifest:
    if not (REAL / name).is_dir():
        pytest.skip(f"no real films in {REAL / name}; set XRAY_OPT_REAL_DATA")
    return prepare(DataConfig(root=str(REAL / name)))


@pytest.mark.real_data
def test_real_films_at_224_pixels() -> None:
    found = shortcut_screen(real("chest_xray_224"))
    assert found.metadata_auc == pytest.approx(0.89, abs=0.02)
    assert found.thumbnail_auc == pytest.approx(0.98, abs=0.01)


@pytest.mark.real_data
def test_real_native_films() -> None:
    found = shortcut_screen(real("chest_xray_native"))
    assert found.metadata_auc == pytest.approx(0.99, abs=0.01)
