"""Names of films and folders, CSVs of films, saved manifests and caches: taken as they are, or refused in one line."""

import csv
import hashlib
import io
import os
import random
import tempfile
import unicodedata
from pathlib import Path

import pytest
from harness import Case, Limits, fuzz
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import ODD_TEXTS, mutated, odd_text
from small_sets import write_film

from xray_opt.config import DataConfig
from xray_opt.dataset import Manifest, prepare
from xray_opt.dataset.index import index
from xray_opt.dataset.names import patient_key, read_name
from xray_opt.errors import DataError, XrayError, brief, one_line, printable, shortened

FILES = (
    "IM-{n:04d}-0001.jpeg",
    "person{n}_bacteria_1.jpeg",
    "person{n}_virus_2_1.jpeg",
    "NORMAL2-IM-{n:04d}-0001.jpeg",
)
PIXELS: list[bytes] = []


def film_bytes(number: int) -> bytes:
    """A small film that no other number gives; made once."""
    while len(PIXELS) <= number:
        with tempfile.TemporaryDirectory() as folder:
            PIXELS.append(write_film(Path(folder) / "film.jpeg", len(PIXELS), (24, 20)).read_bytes())
    return PIXELS[number]


def file_name(chance: random.Random) -> str:
    """A name a file system takes, odd or not."""
    usual = chance.choice(FILES).format(n=chance.randrange(40))
    odd = odd_text(chance).replace("/", "").replace("\0", "")
    name = chance.choice(
        (usual, usual, usual, odd, odd + usual, usual + odd, odd + ".png", usual.upper(), usual.replace(".jpeg", ""))
    )
    raw = os.fsencode(name.encode("utf-8", "ignore").decode() if chance.random() < 0.5 else name.replace("\ud800", ""))
    return os.fsdecode(raw[:255]) if raw not in (b"", b".", b"..") else usual


def names_case(chance: random.Random, number: int) -> Case:
    """A folder of films: where each lies, which bytes it has."""
    root = chance.choice(("films", "films", file_name(chance)))
    layout = chance.choice(("classes", "classes", "kaggle", "odd"))
    files = {}
    for film in range(24):
        folder = ["NORMAL", "PNEUMONIA"][film % 2]
        if layout == "kaggle":
            folder = f"{chance.choice(('train', 'val', 'Test'))}/{folder}"
        usual = FILES[film % 2].format(n=film)
        odd = chance.random() < 0.15
        name = file_name(chance) if odd else usual
        if layout == "odd" and chance.random() < 0.2:
            folder = f"{folder}/{file_name(chance)}"
        files[f"{folder}/{name}"] = film if chance.random() < 0.97 else -1
    return Case(layout, (root, files), (), (place(), root, printable(root)))


def place() -> str:
    return tempfile.gettempdir()


def read_names(given):
    root, files = given
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / root
        for name, film in files.items():
            path = source / name
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(film_bytes(film) if film >= 0 else b"")
            except OSError:  # a file and a folder of one name
                continue
        there = {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()}
        manifest = prepare(DataConfig(root=str(source), skip_bad=len(files) % 2 == 0))
        listed = [film.path for film in manifest.films] + [item.path for item in manifest.left_out]
        assert sorted(listed) == sorted(
            name for name in there if not any(part.startswith(".") for part in name.split("/"))
        )
        for film in manifest.films:
            assert film.sha256 == hashlib.sha256((source / film.path).read_bytes()).hexdigest()
            assert film.label == int("PNEUMONIA" in film.path.split("/")[:2])
        places = {}
        for film in manifest.films:
            assert places.setdefault(film.patient, film.split) == film.split
        assert Manifest.load(manifest.save(Path(scratch) / "saved")) == manifest


HEADS = ("path,label,patient", "path,label,patient,subtype,split", "Path, LABEL ,patient", "label,path,patient,note")


def csv_case(chance: random.Random, number: int) -> Case:
    head = chance.choice(HEADS)
    columns = [name.strip().lower() for name in head.split(",")]
    rows = []
    for film in range(12):
        row = {"path": f"film{film}.jpeg", "label": ["NORMAL", "1"][film % 2], "patient": f"p{film}", "note": "x"}
        rows.append([row.get(name, "") for name in columns])
    kind = chance.choice(("plain", "cell", "cell", "row", "quotes", "bytes", "encoding", "paths", "head"))
    paths = (
        "../secret.jpeg",
        "/etc/passwd",
        "./film1.jpeg",
        "a/../film2.jpeg",
        "film3.jpeg\0",
        "FILM1.jpeg",
        "folder",
        "link.jpeg",
    )
    if kind in ("cell", "paths"):
        for _ in range(chance.choice((1, 1, 3))):
            at = columns.index("path") if kind == "paths" else chance.randrange(len(columns))
            chance.choice(rows)[at] = odd_text(chance) if kind == "cell" else chance.choice(paths)
    if kind == "row":
        rows[chance.randrange(len(rows))] = chance.choice((rows[0], [], rows[1][:1], rows[1] * 2, [""] * len(columns)))
    if kind == "head":
        head = chance.choice(
            ("", "path,label", "path,path,label,patient", odd_text(chance), head + ",", head.replace(",", ";"))
        )
    text = io.StringIO()
    writer = csv.writer(
        text,
        quoting=csv.QUOTE_ALL if kind == "quotes" else csv.QUOTE_MINIMAL,
        lineterminator=chance.choice(("\n", "\r\n")),
    )
    writer.writerows(rows)
    whole = f"{head}\n{text.getvalue()}"
    if kind == "encoding":
        encoding = chance.choice(("utf-8-sig", "utf-16", "latin-1", "cp1252"))
        content = whole.replace("p1", "pé").encode(encoding)
    else:
        content = whole.encode("utf-8", "surrogatepass")
    content = mutated(content, chance)[1] if kind == "bytes" else content
    return Case(kind, content, ("films.csv",), (place(),))


def read_csv(content):
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "set"
        (folder / "folder").mkdir(parents=True)
        (Path(scratch) / "secret.jpeg").write_bytes(b"x")
        for film in range(12):
            (folder / f"film{film}.jpeg").write_bytes(b"x")
        (folder / "link.jpeg").symlink_to(folder / "film1.jpeg")
        (folder / "films.csv").write_bytes(content)
        entries = index(folder / "films.csv").entries
        rows = [
            row for row in csv.reader(io.StringIO(content.decode("utf-8-sig"), newline="")) if any(map(str.strip, row))
        ]
        assert len(entries) == len(rows) - 1
        for entry in entries:
            assert (folder / entry.path).is_file()
            assert ".." not in Path(entry.path).parts
            assert entry.patient
        by_path = {
            os.path.normpath(row[[name.strip().lower() for name in rows[0]].index("path")].strip()): row
            for row in rows[1:]
        }
        labels = {"normal": 0, "0": 0, "pneumonia": 1, "1": 1}
        column = [name.strip().lower() for name in rows[0]].index("label")
        assert {entry.path: entry.label for entry in entries} == {
            p: labels[row[column].strip().lower()] for p, row in by_path.items()
        }


@pytest.mark.parametrize(
    ("name", "reader", "make", "brief", "least"),
    [
        ("names", "read_names", names_case, 60, 200),
        ("CSVs", "read_csv", csv_case, 300, 1000),
    ],
)
def test_data_is_taken_as_it_is_or_refused_with_one_line(reported, name, reader, make, brief, least):
    tally = fuzz(name, f"test_fuzz_data:{reader}", make, brief, 0.1, least, Limits(30, 1024))
    reported(tally)
    assert not tally.faults, tally.told()
    assert tally.accepted > tally.cases / 20
    assert tally.refused > tally.cases / 20


@settings(deadline=None, max_examples=300)
@given(st.text() | st.sampled_from(ODD_TEXTS))
def test_a_patient_has_one_key_whatever_the_key_was_made_of(text):
    key = patient_key(text)
    assert patient_key(key) == key
    name = read_name(text)
    assert name is None or patient_key(name.patient) == name.patient


@settings(deadline=None, max_examples=300)
@given(st.text() | st.sampled_from(ODD_TEXTS) | st.integers() | st.recursive(st.none() | st.text(), st.lists))
def test_whatever_stands_in_an_error_it_is_one_line(value):
    text = value if isinstance(value, str) else repr(value)
    for line in (str(XrayError(text)), printable(text), brief(value), shortened(text), one_line(DataError(text))):
        assert line.isprintable()
    assert len(brief(value)) < 600
    assert len(shortened(text)) <= 80
    assert printable(printable(text)) == printable(text)
    assert not text.isprintable() or printable(text) == text
    assert unicodedata.category("…") == "Po"
