"""``predict`` for patients and with heat maps; whose film a file is."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest
from film_bytes import RAMP, dicom_bytes
from PIL import Image
from small_sets import write_film

from xray_opt.dataset import patient_of


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
    assert list(rows[0]) == ["patient", "films", "probability", "label", "threshold"]
    assert int(rows[0]["films"]) == first["films"]
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
