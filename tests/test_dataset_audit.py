"""The audit finds every leak that is planted and names every broken file, whatever the splitter believed."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xray_opt.config import DataConfig
from xray_opt.dataset import Audit, Film, LeftOut, Manifest, audit, prepare, shortcut_screen
from xray_opt.dataset.limits import MOST_BYTES
from xray_opt.errors import AuditError
from xray_opt.phantom import make_phantoms

REAL = Path(os.environ.get("XRAY_OPT_REAL_DATA", Path(__file__).parent.parent.parent / "shared" / "data"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("audit") / "films"
    make_phantoms(root, 36, 0)
    return root


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "films"))


@pytest.fixture
def manifest(root: Path) -> Manifest:
    return prepare(DataConfig(root=str(root), skip_bad=True))


def moved(manifest: Manifest, where: str, /, **changes: object) -> Manifest:
    films = tuple(replace(film, **changes) if film.path == where else film for film in manifest.films)
    return replace(manifest, films=films)


def a_film(manifest: Manifest, wanted: Callable[[Film], bool]) -> Film:
    return next(film for film in manifest.films if wanted(film))


def test_clean_set(manifest: Manifest) -> None:
    seen: list[tuple[int, int]] = []
    found = audit(manifest, progress=lambda done, total: seen.append((done, total)))
    assert found.ok
    assert found.leaks == found.broken == found.bad_files == found.one_class == ()
    assert seen[-1] == (len(manifest.films), len(manifest.films))
    assert found.manifest_sha256 == manifest.sha256
    assert sum(item.films for item in found.balance) == len(manifest.films)
    assert sum(item.pneumonia for item in found.balance) == sum(film.label for film in manifest.films)
    assert found.shortcut == shortcut_screen(manifest)
    found.raise_on_leak()
    found.raise_on_bad_files()


def test_without_screens(manifest: Manifest) -> None:
    found = audit(manifest, screen=False)
    assert found.ok
    assert found.near_duplicates is found.shortcut is None
    assert "shortcut" not in "\n".join(found.lines())


class TestLeaks:
    def test_patient_in_two_splits(self, manifest: Manifest) -> None:
        def several(film: Film) -> bool:
            return film.split == "train" and sum(other.patient == film.patient for other in manifest.films) > 1

        film = a_film(manifest, several)
        found = audit(moved(manifest, film.path, split="test", group="alone"), screen=False)
        assert not found.ok
        assert [(leak.kind, leak.key, leak.splits) for leak in found.leaks] == [
            ("patient", film.patient, ("train", "test"))
        ]
        with pytest.raises(
            AuditError, match=rf"1 leaks across splits, first: patient {film.patient} in train and test"
        ):
            found.raise_on_leak()

    def test_patient_key_is_taken_anew_from_the_name(self, manifest: Manifest) -> None:
        """A manifest whose patient column lies is found out."""
        film = a_film(manifest, lambda film: film.split == "train" and film.patient.startswith("person"))
        other = a_film(manifest, lambda other: other.split == "val" and other.label == 1)
        name = Path(film.path).with_name(f"{film.patient}_virus_9999.jpeg").as_posix()
        shutil.copy(Path(manifest.root, other.path), Path(manifest.root, name))
        lying = moved(manifest, other.path, path=name)
        assert ("patient", film.patient) in [(leak.kind, leak.key) for leak in audit(lying, screen=False).leaks]

    def test_keys_of_a_csv_are_believed(self, manifest: Manifest) -> None:
        film = a_film(manifest, lambda film: film.split == "train" and film.label == 1)
        other = a_film(manifest, lambda other: other.split == "val" and other.label == 1)
        listed = replace(moved(manifest, other.path, patient=film.patient), source=manifest.root + "/films.csv")
        (leak,) = audit(listed, screen=False).leaks
        assert (leak.kind, leak.key) == ("patient", film.patient)

    def test_identical_file_in_two_splits(self, manifest: Manifest) -> None:
        train = a_film(manifest, lambda film: film.split == "train" and film.label == 0)
        copy = Path(train.path).with_name("IM-9999-0001.jpeg").as_posix()
        shutil.copy(Path(manifest.root, train.path), Path(manifest.root, copy))
        film = replace(train, path=copy, patient="IM-9999", group="IM-9999", split="val")
        found = audit(replace(manifest, films=(*manifest.films, film)), screen=True)
        assert [(leak.kind, leak.key) for leak in found.leaks] == [("file", train.sha256)]
        assert found.near_duplicates is not None
        assert found.near_duplicates.across_splits == 1
        assert found.lines()[0] == "audit: NOT OK"

    def test_group_in_two_splits(self, manifest: Manifest) -> None:
        train = a_film(manifest, lambda film: film.split == "train")
        val = a_film(manifest, lambda film: film.split == "val")
        found = audit(moved(manifest, val.path, group=train.group), screen=False)
        assert [leak.kind for leak in found.leaks] == ["group"]


class TestBalance:
    def test_split_of_one_class_is_an_error(self, manifest: Manifest) -> None:
        films = tuple(film for film in manifest.films if film.split != "val" or film.label)
        found = audit(replace(manifest, films=films), screen=False)
        assert found.one_class == ("val",)
        assert not found.ok
        assert "ONE CLASS" in "\n".join(found.lines())
        with pytest.raises(AuditError, match="val split lacks a class"):
            found.raise_on_leak()

    def test_empty_split_is_an_error(self, manifest: Manifest) -> None:
        films = tuple(film for film in manifest.films if film.split != "test")
        assert audit(replace(manifest, films=films), screen=False).one_class == ("test",)

    def test_shares_that_differ_are_a_warning(self, manifest: Manifest) -> None:
        normal = [film for film in manifest.films if film.split == "train" and film.label == 0]
        dropped = {film.path for film in normal[: len(normal) * 2 // 3]}
        films = tuple(film for film in manifest.films if film.path not in dropped)
        found = audit(replace(manifest, films=films), screen=False)
        assert "val" in found.unbalanced
        assert found.ok
        assert "differs by more than 5 points" in "\n".join(found.lines())


class TestFiles:
    def test_films_that_changed_or_went_since(self, manifest: Manifest) -> None:
        gone, cut, other, *_ = [film.path for film in manifest.films]
        Path(manifest.root, gone).unlink()
        Path(manifest.root, cut).write_bytes(b"")
        Image.new("L", (50, 50)).save(Path(manifest.root, other))
        found = audit(manifest)
        reasons = {item.path: item.reason for item in found.broken}
        assert reasons == {gone: "no such file", cut: "zero bytes", other: "changed since the manifest was made"}
        assert not found.ok
        for complain in (found.raise_on_leak, found.raise_on_bad_files):
            with pytest.raises(AuditError, match="3 unusable films"):
                complain()

    def test_bad_files_count_unless_they_were_to_be_left_out(self, manifest: Manifest) -> None:
        bad = replace(manifest, left_out=(LeftOut("train/NORMAL/x.jpeg", "zero bytes"),))
        assert audit(bad, screen=False).ok
        strict = audit(replace(bad, settings={**bad.settings, "skip_bad": False}), screen=False)
        assert not strict.ok
        strict.raise_on_leak()
        with pytest.raises(AuditError, match=r"1 unusable films: train/NORMAL/x\.jpeg \(zero bytes\).*--skip-bad"):
            strict.raise_on_bad_files()

    def test_films_left_out_for_other_reasons_are_counted(self, root: Path) -> None:
        found = audit(prepare(DataConfig(root=str(root), train_films=10)), screen=False)
        assert found.ok
        assert sum(found.left_out.values()) > 10
        assert found.bad_files == ()

    def test_grey_as_rgb_and_real_colour(self, root: Path) -> None:
        for number, colour in ((1, None), (2, (200, 30, 40))):
            image = Image.fromarray(np.tile(np.arange(200, dtype=np.uint8), (200, 1))).convert("RGB")
            if colour:
                image.paste(colour, (20, 20, 60, 60))
            image.save(root / "train" / "NORMAL" / f"IM-000{number}-0077.png")
        before = audit(prepare(DataConfig(root=str(root))), screen=False)
        assert before.coloured == ("train/NORMAL/IM-0002-0077.png",)
        rgb = sum(film.mode == "RGB" for film in prepare(DataConfig(root=str(root))).films)
        assert before.grey_as_rgb == rgb - 1


def broken_files(root: Path, sound: bytes) -> dict[str, str]:
    """Twenty files that are no films, each of another kind; path → what its reason says."""
    grey = Image.fromarray(np.tile(np.arange(64, dtype=np.uint8), (64, 1)))
    folder = root / "train" / "NORMAL"
    said = {}

    def name(what: str, suffix: str = "jpeg") -> Path:
        path = folder / f"IM-{7000 + len(said)}-0001.{suffix}"
        said[path.relative_to(root).as_posix()] = what
        return path

    name("zero bytes").write_bytes(b"")
    name("truncated").write_bytes(sound[: len(sound) // 2])
    name("truncated").write_bytes(sound[:200])
    name("HTML").write_bytes(b"<!doctype html><title>403</title>")
    name("plain text").write_bytes(b"file not found\n")
    name("a PDF").write_bytes(b"%PDF-1.4\n%")
    name("a ZIP archive", "png").write_bytes(b"PK\x03\x04aaaa")
    name("nothing but zero bytes").write_bytes(bytes(4096))
    name("no known kind").write_bytes(b"\x93\x01\x02\xfe" * 20)
    name("Git LFS").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n")
    name("corrupt").write_bytes(b"\xff\xd8\xff\xe0" + bytes(range(256)))
    name("odd mode CMYK").write_bytes(_saved(grey.convert("CMYK"), "JPEG"))
    name("odd mode RGBA", "png").write_bytes(_saved(grey.convert("RGBA"), "PNG"))
    name("odd mode LA", "png").write_bytes(_saved(grey.convert("LA"), "PNG"))
    name("several frames", "png").write_bytes(_saved(grey, "PNG", save_all=True, append_images=[grey.rotate(90)]))
    name("too small", "png").write_bytes(_saved(grey.resize((9, 9)), "PNG"))
    bomb = bytearray(_saved(grey, "PNG"))
    bomb[16:24] = (60_000).to_bytes(4, "big") * 2
    bomb[29:33] = __import__("zlib").crc32(bytes(bomb[12:29])).to_bytes(4, "big")
    name("decompression bomb", "png").write_bytes(bytes(bomb))
    name("broken symbolic link").symlink_to(folder / "nowhere.jpeg")
    os.mkfifo(name("not a regular file"))
    with name("too many for a film").open("wb") as file:
        file.truncate(MOST_BYTES + 1)
    return said


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    import io

    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.timeout(120)
def test_twenty_broken_files_are_all_named(root: Path) -> None:
    sound = next(path for path in sorted(root.rglob("*.jpeg"))).read_bytes()
    said = broken_files(root, sound)
    assert len(said) == 20
    found = audit(prepare(DataConfig(root=str(root), skip_bad=True)), screen=False)
    reasons = {item.path: item.reason for item in found.bad_files}
    assert reasons.keys() == said.keys()
    for path, what in said.items():
        assert what in reasons[path], path
    text = "\n".join(found.lines())
    assert all(f"  {path}: {reason}" in text for path, reason in reasons.items())
    with pytest.raises(AuditError, match="20 unusable films"):
        found.raise_on_bad_files()


class TestReport:
    def test_json(self, manifest: Manifest) -> None:
        document = json.loads(json.dumps(audit(manifest).to_dict()))
        assert document["ok"] is True
        assert document["balance"][0]["split"] == "train"
        assert document["shortcut"]["folds"] == 5
        assert document["near_duplicates"]["total"] == 0

    def test_json_has_no_nan(self, manifest: Manifest) -> None:
        few = replace(manifest, films=manifest.films[:1])
        assert json.loads(json.dumps(audit(few).to_dict(), allow_nan=False))["one_class"]

    def test_plain_lines_of_80_columns(self, manifest: Manifest) -> None:
        lines = audit(manifest).lines()
        assert lines[0] == "audit: ok"
        assert all(len(line) <= 80 for line in lines)

    def test_long_lists_are_cut_but_bad_files_never(self, manifest: Manifest) -> None:
        found: Audit = audit(manifest, screen=False)
        many = tuple(LeftOut(f"f{i}.jpeg", "zero bytes") for i in range(40))
        text = "\n".join(replace(found, bad_files=many, coloured=tuple(f"c{i}.jpeg" for i in range(40))).lines())
        assert "f39.jpeg" in text
        assert "c39.jpeg" not in text
        assert "… and 30 more" in text

    def test_names_of_any_bytes_stay_one_line(self, manifest: Manifest) -> None:
        odd = LeftOut(os.fsdecode(b"train/NORMAL/\xff\n.jpeg"), "zero bytes")
        lines = replace(audit(manifest, screen=False), bad_files=(odd,)).lines()
        assert any("\\xff" in line or "\\udcff" in line for line in lines)
        assert all("\n" not in line and line.encode() for line in lines)


@pytest.mark.real_data
def test_real_films_are_clean() -> None:
    if not (REAL / "chest_xray_224").is_dir():
        pytest.skip(f"no real films in {REAL / 'chest_xray_224'}; set XRAY_OPT_REAL_DATA")
    for keep_test in (False, True):
        found = audit(prepare(DataConfig(root=str(REAL / "chest_xray_224"), keep_test=keep_test)))
        assert found.ok
        assert found.grey_as_rgb == sum(item.films for item in found.balance)
        assert found.near_duplicates is not None
        assert found.near_duplicates.total == 0


def test_a_table_of_films_tells_the_patients_whatever_it_is_called(root: Path, manifest: Manifest) -> None:
    """Every film of one person by its name, of another patient by the site's own table."""
    rows = ["path,label,patient"]
    for number, film in enumerate(manifest.films):
        name = ("IM-0001-{:04d}", "person1_virus_{}")[film.label].format(number)
        path = (root / film.path).rename((root / film.path).with_name(f"{name}{Path(film.path).suffix}"))
        rows.append(f"{path.relative_to(root)},{film.label},site{number}")
    for name in ("films.csv", "films.txt", "films"):
        (root / name).write_text("\n".join(rows) + "\n")
        assert audit(prepare(DataConfig(root=str(root / name))), screen=False).leaks == ()


def test_names_tell_the_patients_of_a_folder_that_is_called_like_a_table(root: Path) -> None:
    folder = root.rename(root.with_name("films.csv"))
    manifest = prepare(DataConfig(root=str(folder)))
    film = a_film(manifest, lambda film: film.split == "train")
    twin = a_film(manifest, lambda one: one.split == "test")
    (folder / film.path).rename(folder / film.path.replace(Path(film.path).stem, f"{Path(twin.path).stem}9"))
    wrong = moved(manifest, film.path, path=film.path.replace(Path(film.path).stem, f"{Path(twin.path).stem}9"))
    assert [leak.kind for leak in audit(wrong, screen=False).leaks] == ["patient"]


def test_one_film_under_both_classes_is_told(root: Path) -> None:
    film = a_film(prepare(DataConfig(root=str(root))), lambda film: film.label == 0)
    twin = film.path.replace("NORMAL/", "PNEUMONIA/")
    shutil.copy(root / film.path, root / twin)
    found = audit(prepare(DataConfig(root=str(root))), screen=False)
    assert found.contradictions == ((film.path, twin),)
    told = next(line for line in found.lines() if "one of them wrongly: 1" in line)
    assert found.lines()[found.lines().index(told) + 1] == f"  {film.path} = {twin}"
    assert found.ok
