"""Made-up films: named, split and sized like the real set, the same for the same seed, never over another's files."""

import hashlib
import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xray_opt import phantom
from xray_opt.config import DataConfig
from xray_opt.dataset import Manifest, audit, prepare
from xray_opt.dataset.names import read_name
from xray_opt.errors import DataError
from xray_opt.phantom import MARKER, make_phantoms

PATIENTS = 120


def films_of(root: Path) -> list[Path]:
    return sorted(root.rglob("*.jpeg"))


def digest(root: Path) -> str:
    everything = hashlib.sha256()
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        everything.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return everything.hexdigest()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms") / "films"
    make_phantoms(folder, PATIENTS, 0)
    return folder


@pytest.fixture(scope="module")
def manifest(root: Path) -> Manifest:
    return prepare(DataConfig(root=str(root)))


def test_count_and_progress(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    films = make_phantoms(tmp_path / "deep" / "films", 12, 3, lambda done, total: seen.append((done, total)))
    assert films == len(films_of(tmp_path))
    assert seen == [(done, films) for done in range(1, films + 1)]
    note = json.loads((tmp_path / "deep" / "films" / MARKER).read_text())
    assert (note["patients"], note["seed"], note["films"]) == (12, 3, films)


def test_same_seed_same_films_other_seed_others(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        make_phantoms(tmp_path / name, 12, seed)
    assert digest(tmp_path / "a") == digest(tmp_path / "b") != digest(tmp_path / "c")


def test_names_follow_both_grammars_and_folders_the_class(root: Path) -> None:
    kinds = Counter()
    for path in films_of(root):
        name = read_name(path.name)
        assert name is not None, path.name
        assert (path.parent.name == "NORMAL") == (name.subtype == "normal")
        kinds[path.name.split("-")[0] if name.subtype == "normal" else name.subtype] += 1
    assert set(kinds) == {"IM", "NORMAL2", "bacteria", "virus"}
    assert len({path.name for path in films_of(root)}) == len(films_of(root))


def test_patients_have_one_to_four_films_in_one_split(root: Path) -> None:
    films: dict[str, list[Path]] = {}
    for path in films_of(root):
        films.setdefault(read_name(path.name).patient, []).append(path)  # type: ignore[union-attr]
    assert len(films) == PATIENTS
    assert set(map(len, films.values())) == {1, 2, 3, 4}
    assert all(len({path.parent for path in found}) == 1 for found in films.values())
    splits = {path.relative_to(root).parts[:2] for path in films_of(root)}
    assert len(splits) == 6


@pytest.mark.parametrize("seed", range(5))
def test_smallest_set_has_both_classes_in_every_split(seed: int, tmp_path: Path) -> None:
    make_phantoms(tmp_path / "films", 12, seed)
    for split in ("train", "val", "test"):
        for label in ("NORMAL", "PNEUMONIA"):
            assert any((tmp_path / "films" / split / label).iterdir())
    prepare(DataConfig(root=str(tmp_path / "films")))
    prepare(DataConfig(root=str(tmp_path / "films"), keep_test=True))


def test_shares_sizes_and_modes(manifest: Manifest) -> None:
    films = manifest.films
    assert 0.65 < np.mean([film.label for film in films]) < 0.8
    heights, aspects = [film.height for film in films], [film.width / film.height for film in films]
    assert min(heights) < 260
    assert max(film.width for film in films) > 700
    assert max(max(film.width, film.height) for film in films) <= 905
    assert min(aspects) < 1.05 < 1.4 < max(aspects)
    modes = Counter(film.mode for film in films)
    assert modes["L"] > 5 * modes["RGB"] > 0


def test_a_film_is_not_black_white_or_flat(root: Path) -> None:
    for path in films_of(root)[::7]:
        pixels = np.asarray(Image.open(path).convert("L")) / 255
        assert 0.2 < pixels.mean() < 0.75, path.name
        assert pixels.std() > 0.12, path.name


def test_films_of_a_patient_share_anatomy() -> None:
    """In the same two poses, a patient's films are more alike than those of two patients."""

    def canvas(patient: int, pose: tuple[int, int]) -> np.ndarray:
        body, generator = np.random.default_rng((0, patient)), np.random.default_rng((1, *pose))
        drawn = phantom._anatomy(body, generator, "normal", 1.2)[20:150, 20:150].ravel()
        return (drawn - drawn.mean()) / drawn.std()

    first = [canvas(patient, (patient, 0)) for patient in range(30)]
    own = np.mean([first[patient] * canvas(patient, (patient, 1)) for patient in range(30)])
    others = np.mean([first[patient] * canvas(patient + 1, (patient, 1)) for patient in range(30)])
    assert own > others + 0.01


def test_learnable_but_not_trivial_and_no_metadata_shortcut(manifest: Manifest) -> None:
    report = audit(manifest)
    assert report.ok
    assert report.near_duplicates is not None
    assert report.near_duplicates.total == 0
    assert report.shortcut is not None
    assert report.shortcut.thumbnail_auc is not None
    assert report.shortcut.metadata_auc is not None
    assert 0.8 < report.shortcut.thumbnail_auc < 0.985
    assert report.shortcut.metadata_auc < 0.65


class TestFolder:
    def test_too_few_patients(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="at least 12 patients"):
            make_phantoms(tmp_path / "films", 11, 0)

    def test_empty_folder_is_used_and_phantoms_are_replaced(self, tmp_path: Path) -> None:
        make_phantoms(tmp_path, 12, 0)
        make_phantoms(tmp_path, 13, 0)
        assert json.loads((tmp_path / MARKER).read_text())["patients"] == 13
        assert len(films_of(tmp_path)) == json.loads((tmp_path / MARKER).read_text())["films"]

    @pytest.mark.parametrize(
        "name", ["notes.txt", "train/NORMAL/scan.png", ".hidden", "train/NORMAL/IM-0001-0001.jpeg"]
    )
    def test_foreign_files_are_never_touched(self, name: str, tmp_path: Path) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("mine")
        with pytest.raises(DataError, match="no phantoms"):
            make_phantoms(tmp_path, 12, 0)
        assert (tmp_path / name).read_text() == "mine"

    def test_foreign_file_among_phantoms(self, tmp_path: Path) -> None:
        make_phantoms(tmp_path / "films", 12, 0)
        (tmp_path / "films" / "train" / "my.csv").write_text("mine")
        with pytest.raises(DataError, match=r"train/my\.csv"):
            make_phantoms(tmp_path / "films", 12, 1)

    def test_a_file_or_link_is_no_folder(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("mine")
        (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
        for name in ("file", "link"):
            with pytest.raises(DataError, match="no folder"):
                make_phantoms(tmp_path / name, 12, 0)
        with pytest.raises(DataError, match="cannot write"):
            make_phantoms(tmp_path / "file" / "films", 12, 0)

    def test_interrupted_leaves_nothing_that_counts(self, tmp_path: Path) -> None:
        def stop(done: int, total: int) -> None:
            if done == 3:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            make_phantoms(tmp_path / "films", 12, 0, stop)
        assert list(tmp_path.iterdir()) == []

    def test_killed_leaves_no_half_set(self, tmp_path: Path) -> None:
        child = os.fork()
        if child == 0:  # dies as by SIGKILL: no clean-up runs
            make_phantoms(tmp_path / "films", 12, 0, lambda done, total: os._exit(1) if done == 3 else None)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
        assert not (tmp_path / "films").exists()
        assert make_phantoms(tmp_path / "films", 12, 0) == len(films_of(tmp_path))
        assert [path.name for path in tmp_path.iterdir()] == ["films"]


def test_drawing_stays_cheap() -> None:
    import time

    patient = phantom._Patient(1, "virus", "train", 4, 1)
    phantom._film(patient, 0, 0)
    start = time.process_time()
    for film in range(20):
        phantom._film(patient, film, 0)
    assert (time.process_time() - start) / 20 < 0.05
