"""``predict`` for patients and with heat maps; whose film a file is."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from film_bytes import RAMP, dicom_bytes
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from small_sets import write_film

from xray_opt.dataset import patient_of, read_patients
from xray_opt.errors import DataError


def films_of_two(place) -> list[str]:
    """Some films, at least two of one patient."""
    by_patient: dict[str, list[Path]] = {}
    for path in sorted((place.films / "val").rglob("*.jpeg")):
        by_patient.setdefault(patient_of(path), []).append(path)
    several = next(own for own in by_patient.values() if len(own) > 1)
    other = next(own for own in by_patient.values() if own is not several)
    return [*map(str, several), str(other[0])]


def test_a_patients_answer_is_the_mean_of_the_films(tuned, tmp_path: Path) -> None:
    place, _, _ = tuned
    paths = films_of_two(place)
    nameless = write_film(tmp_path / "a.jpeg", 3)
    films = place.json("predict", *paths, str(nameless))
    first, other, last = place.json("predict", *paths, str(nameless), "--patients")
    mean = np.mean([film["probability"] for film in films[:-2]])
    assert first["probability"] == pytest.approx(mean, abs=1e-6)
    assert (first["films"], other["films"], last["films"]) == (len(paths) - 1, 1, 1)
    assert first["label"] == ("PNEUMONIA" if mean >= first["threshold"] else "NORMAL")
    assert other["probability"] == pytest.approx(films[-2]["probability"], abs=1e-6)
    assert (first["patient"], last["patient"]) == (patient_of(Path(paths[0])), str(nameless))
    rows = list(csv.DictReader(io.StringIO(place.run("predict", *paths, "--patients", "--csv").stdout)))
    assert list(rows[0]) == ["patient", "films", "probability", "label", "threshold", "missing"]
    assert (int(rows[0]["films"]), rows[0]["missing"]) == (first["films"], "0")
    shown = place.run("predict", *paths, "--patients").stdout
    assert first["patient"] in shown
    assert "threshold" in shown


def test_refused_films_are_counted_as_films(tuned, tmp_path: Path) -> None:
    place, _, _ = tuned
    bad = tmp_path / "bad.jpeg"
    bad.write_bytes(b"<html>")
    done = place.run("predict", *films_of_two(place), str(bad), "--patients", "--explain", str(tmp_path / "heat"))
    assert done.returncode == 3
    count = len(films_of_two(place))
    assert f"1 of {count + 1} films could not be read" in done.stderr
    assert len(list((tmp_path / "heat").iterdir())) == count


def test_a_patient_with_an_unreadable_film_is_marked(tuned, tmp_path: Path) -> None:
    place, _, _ = tuned
    good = write_film(tmp_path / "person7_virus_1.jpeg", 1)
    (tmp_path / "person7_virus_2.jpeg").write_bytes(b"<html>")
    done = place.run("predict", str(tmp_path), str(good), "--patients", "--json")
    (row,) = json.loads(done.stdout)
    assert (done.returncode, row["patient"], row["films"], row["missing"]) == (3, "person7", 1, 1)


def own_names(folder: Path, *rows: str, heads: str = "patient,ward,path") -> Path:
    """A site's table of films, in a folder of its own beside them."""
    (folder / "tables").mkdir(exist_ok=True)
    table = folder / "tables" / "own.csv"
    table.write_text("\n".join((heads, *rows)) + "\n", encoding="utf-8-sig")
    return table


def test_a_table_tells_whose_films_they_are(tuned, tmp_path: Path) -> None:
    """Its names are taken as they stand: no grammar of file names joins or parts patients."""
    place, _, _ = tuned
    names = ("person7_virus_1.png", "b, 1.png", "c.png")
    films = [write_film(tmp_path / name, seed) for seed, name in enumerate(names)]
    rows = ("person07,A,../person7_virus_1.png", 'person7,B,"../b, 1.png"', f"person07,C,{films[2]}")
    table = own_names(tmp_path, *rows)
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    done = place.run("predict", str(tmp_path / "link"), *map(str, films), "--patients-from", str(table), "--json")
    assert (done.returncode, done.stderr) == (0, "")
    by_film = {Path(row["path"]).name: row["probability"] for row in place.json("predict", *map(str, films))}
    found = {row["patient"]: row for row in json.loads(done.stdout)}
    counts = {name: (row["films"], row["missing"]) for name, row in found.items()}
    assert counts == {"person07": (2, 0), "person7": (1, 0)}
    mean = (by_film["person7_virus_1.png"] + by_film["c.png"]) / 2
    assert found["person07"]["probability"] == pytest.approx(mean, abs=1e-6)
    assert "person07" in place.run("predict", str(films[0]), "--patients-from", str(table)).stdout


def test_what_table_and_films_do_not_have_in_common_is_said(tuned, tmp_path: Path) -> None:
    place, _, _ = tuned
    films = [write_film(tmp_path / f"{name}.png", seed) for seed, name in enumerate("abc")]
    table = own_names(tmp_path, "P1,,../a.png", "P1,,../b.png", "P2,,../of-nobody-here.png")
    asked = ("predict", str(films[0]), "--patients-from", str(table), "--json")
    part = place.run(*asked)
    assert (part.returncode, json.loads(part.stdout)[0]["missing"]) == (0, 1), "the user chose a part"
    assert f"named by {table} for these patients and not given: 1: {films[1]}" in part.stderr
    assert "of-nobody" not in part.stderr
    whole = place.run("predict", *map(str, films), "--patients-from", str(table), "--json")
    assert whole.returncode == 3
    assert f"left out, as {table} does not name them: 1: {films[2]}" in whole.stderr
    assert "1 of 3 films have no answer: 1 not named" in whole.stderr
    assert [(row["patient"], row["films"]) for row in json.loads(whole.stdout)] == [("P1", 2)]
    films[1].unlink()
    gone = place.run(*asked)
    assert (gone.returncode, json.loads(gone.stdout)[0]["missing"]) == (3, 1), "nobody chose that"
    assert f"named by {table} and not there: 1: {films[1]}" in gone.stderr
    none = place.run("predict", str(films[2]), "--patients-from", str(table))
    assert (none.returncode, none.stdout, none.stderr.count("\n")) == (3, "", 1)
    assert "names none of these 1 films" in none.stderr


@pytest.mark.parametrize(
    ("heads", "rows", "says"),
    [
        ("path", ["a.png"], "line 1: no column 'patient'; a CSV of films starts with path,patient, not 'path'"),
        ("path;patient", ["a.png;P1"], "line 1: no column 'path'"),
        ("path,patient,path", [], "the column 'path' stands twice"),
        ("path,patient", [], "names no film"),
        ("path,patient", ["a.png,"], "line 2: the patient is empty"),
        ("path,patient", [",P1"], "line 2: the path is empty"),
        ("path,patient", ["a\0.png,P1"], r"line 2: a\x00.png is no path"),
        (
            "path,patient",
            ["a.png,P1", "./a.png,P1", "b/../a.png,P2"],
            "line 4: b/../a.png is of 'P2' here",
        ),
        ("path,patient", ["a.png,P1,x"], "line 2: 3 cells under 2 columns"),
    ],
)
def test_faults_of_a_table_name_their_line(tmp_path: Path, heads: str, rows: list[str], says: str) -> None:
    with pytest.raises(DataError) as caught:
        read_patients(own_names(tmp_path, *rows, heads=heads))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.binary(max_size=100))
def test_any_table_is_read_or_refused_in_one_line(tmp_path_factory, rows: bytes) -> None:
    table = tmp_path_factory.getbasetemp() / "any-patients.csv"
    table.write_bytes(b"path,patient\n" + rows)
    try:
        patients, said = [*read_patients(table).values()], str(table)
    except DataError as error:
        patients, said = ["refused"], str(error)
    assert all(patients)
    assert said.startswith((str(table), f"cannot read {table}"))
    assert "\n" not in said


def test_a_table_is_utf_8_and_refused_before_a_film_is_looked_at(tuned, tmp_path: Path) -> None:
    place, _, _ = tuned
    table = tmp_path / "own.csv"
    text = "path,patient\na.png,Jörg\n"
    for content in (text.encode("utf-16"), text.encode("latin-1"), None):
        table.unlink() if content is None else table.write_bytes(content)
        refused = place.run("predict", str(tmp_path / "gone.png"), "--patients-from", str(table))
        assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (3, "", 1)
        assert f"cannot read {table} as a CSV in UTF-8" in refused.stderr
    table.write_bytes(text.encode("utf-8-sig"))
    assert read_patients(table) == {str(tmp_path / "a.png"): "Jörg"}


def test_each_film_gets_a_picture_with_its_heat(tuned, tmp_path: Path) -> None:
    place, _, _ = tuned
    paths, folder = films_of_two(place), tmp_path / "deep" / "heat"
    rows = place.json("predict", *paths, "--explain", str(folder))
    assert [Path(row["picture"]).name for row in rows] == [
        f"{number:04d}-{Path(path).stem}.png" for number, path in enumerate(paths, start=1)
    ]
    for row in rows:
        with Image.open(row["picture"]) as picture:
            colours = np.asarray(picture.convert("RGB")).astype(int)
        assert colours.shape[1] < 600, "one film beside its heat"
        left, right = colours[60:200, 10:250], colours[60:200, 260:500]
        assert np.ptp(left, axis=2).max() == 0
        assert np.ptp(right, axis=2).max() > 50
    again = place.run("predict", *paths, "--explain", str(folder))
    assert (again.returncode, again.stderr.count("\n"), "exists already" in again.stderr) == (2, 1, True)
    (tmp_path / "file").write_text("")
    refused = place.run("predict", paths[0], "--explain", str(tmp_path / "file" / "heat"))
    assert (refused.returncode, "cannot write to" in refused.stderr) == (3, True)
    assert all(row["picture"] is None for row in place.json("predict", *paths))


@pytest.mark.parametrize(
    ("name", "patient"),
    [
        ("person7_virus_3.jpeg", "person7"),
        ("NORMAL2-IM-0095-0001.png", "IM-0095"),
        ("holiday.png", ""),
    ],
)
def test_names_tell_patients(tmp_path: Path, name: str, patient: str) -> None:
    assert patient_of(write_film(tmp_path / name, 1)) == patient


def test_a_dicom_header_tells_more_than_its_name(tmp_path: Path) -> None:
    film = tmp_path / "person7_virus_3.dcm"
    film.write_bytes(dicom_bytes(RAMP, PatientID="person12"))
    assert patient_of(film) == "person12"
    film.write_bytes(dicom_bytes(RAMP))
    assert patient_of(film) == "person7"
    film.write_bytes(b"no DICOM")
    assert patient_of(film) == "person7"


def test_a_dicom_header_tells_whatever_its_file_is_called(tmp_path: Path) -> None:
    film = tmp_path / "0001"
    film.write_bytes(dicom_bytes(RAMP, PatientID="person12"))
    assert patient_of(film) == "person12"
