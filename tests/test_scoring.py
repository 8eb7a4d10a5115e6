"""Evaluate, compare, predict, promote, on the study that the session tuned once."""

import json
import os
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image
from small_sets import write_film

from xray_opt.config import TrackingConfig
from xray_opt.errors import ConfigError, DataError
from xray_opt.leaderboard import openings
from xray_opt.mlflow_client import connect
from xray_opt.phantom import make_phantoms
from xray_opt.scoring import evaluate, film_files
from xray_opt.tuning import read_study


def test_evaluate_on_validation_gives_the_recorded_score(tuned):
    place, report, _ = tuned
    result = place.json("evaluate")
    assert result["at_half"]["f1"] == pytest.approx(report["best"]["val.f1"], abs=1e-9)
    assert result["at_threshold"]["f1"] >= result["at_half"]["f1"]
    assert result["films"] == len(prepared_films(place, "val"))


def prepared_films(place, split):
    from xray_opt.config import Workspace, find_study, load_study
    from xray_opt.dataset import prepared

    study = load_study(find_study("tiny", Workspace(place.workspace.root)))
    films = prepared(study.config.data, place.workspace).films
    return [film for film in films if film.split == split]


def test_the_test_split_is_sealed(tuned):
    place, _, _ = tuned
    done = place.run("evaluate", "--split", "test")
    assert done.returncode == 2
    assert "sealed" in done.stderr
    with pytest.raises(ConfigError, match="why"):
        evaluate("models:/xray-pneumonia@champion", "test", place.workspace, why="")


def test_an_opening_of_the_test_split_is_written_down(tuned):
    place, report, _ = tuned
    before = len(openings(read_study("tiny", place.workspace)))
    if not before:
        assert "sealed, never opened" in place.run("compare", "tiny").stdout
    result = place.json("evaluate", "--split", "test", "--why", "trying the seal")
    opened = openings(read_study("tiny", place.workspace))
    assert len(opened) == before + 1
    assert (opened[-1].why, opened[-1].trial) == ("trying the seal", report["best"]["trial"])
    assert opened[-1].scores["test.f1"] == result["at_threshold"]["f1"]
    record = read_study("tiny", place.workspace)
    run = connect(TrackingConfig(), place.workspace).client.get_run(record.best.notes["mlflow_run"])
    assert "trying the seal" in run.data.tags["xray_opt.test_opened"]
    assert run.data.metrics["test.f1"] == result["at_threshold"]["f1"]
    shown = place.run("compare", "tiny").stdout
    assert "test F1" in shown
    assert "trying the seal" in " ".join(shown.split())


def test_another_split_of_other_data_is_refused(tuned, tmp_path):
    place, _, _ = tuned
    other = tmp_path / "other"
    shutil.copytree(place.films, other)
    next((other / "train" / "NORMAL").iterdir()).unlink()
    done = place.run("evaluate", "--data", str(other))
    assert done.returncode == 3
    assert "made on other data" in done.stderr


def test_all_films_of_the_own_folder_do_not_open_the_test_split(tuned, tmp_path):
    place, _, _ = tuned
    rest = place.json("evaluate", "--data", str(place.films), "--split", "all")
    own = {split: prepared_films(place, split) for split in ("train", "val", "test")}
    # What the limits of the study left out was never seen; another study may have some of it for its own sealed test.
    assert {split: rest["left_out"][split] for split in own} == {split: len(films) for split, films in own.items()}
    assert set(rest["left_out"]) - set(own) <= {"of_a_sealed_test"}
    assert rest["films"] + sum(rest["left_out"].values()) == len(list(place.films.rglob("*.jpeg")))
    for films in own.values():
        for film in films:
            copy = tmp_path / "own" / film.path
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(place.films / film.path, copy)
    refused = place.run("evaluate", "--data", str(tmp_path / "own"), "--split", "all")
    assert (refused.returncode, "sealed test split" in refused.stderr) == (2, True), refused.stderr


@pytest.fixture
def mixed(tuned, tmp_path):
    """Films of other people, of the model's own (under other names), and of its patients; and how many there are."""
    place, _, _ = tuned
    folder = tmp_path / "mixed"
    make_phantoms(folder, 40, 77)
    counts = Counter()
    others = sorted(path for path in folder.rglob("*.jpeg"))
    for path in others:
        path.rename(path.with_name(re.sub(r"\d+", lambda n: str(int(n[0]) + 5000), path.name, count=1)))
    for split in ("train", "val", "test"):
        film = prepared_films(place, split)[0]
        kind = "NORMAL" if film.label == 0 else "PNEUMONIA"
        name = f"IM-{7000 + len(counts)}-0001.jpeg" if film.label == 0 else f"person{7000 + len(counts)}_virus_1.jpeg"
        shutil.copy(place.films / film.path, folder / "train" / kind / name)
        counts[split] += 1
    patient = next(film for film in prepared_films(place, "train") if film.label == 0)
    name = re.sub(r"-\d+\.jpeg$", "-0099.jpeg", Path(patient.path).name)
    source = next((folder / "train" / "NORMAL").iterdir())
    Image.open(source).rotate(90).save(folder / "train" / "NORMAL" / name)
    return folder, len(others), dict(counts) | {"same_patient": 1}


def test_the_models_own_films_are_left_out_of_other_films(tuned, mixed):
    place, _, _ = tuned
    folder, others, own = mixed
    scored = place.json("evaluate", "--data", str(folder), "--split", "all")
    assert (scored["films"], scored["left_out"]) == (others, own)
    shown = place.run("evaluate", "--data", str(folder), "--split", "all")
    assert "left out, as the model's own films or of its patients" in shown.stdout
    assert "1 same patient" in shown.stdout


def test_a_few_films_of_other_people_are_scored_by_their_own_names(tuned, tmp_path):
    """Two patients, classes called otherwise, one file that is no film: what a stranger's folder looks like."""
    place, _, _ = tuned
    folder = tmp_path / "theirs"
    write_film(folder / "healthy" / "IM-9001-0001.jpeg", 9001)
    write_film(folder / "Sick" / "person9002_virus_1.jpeg", 9002)
    (folder / "Sick" / "notes.txt").write_text("no film")
    asked = ("evaluate", "--data", str(folder), "--split", "all", "--no-baselines")
    assert "--classes" in place.run(*asked).stderr
    named = (*asked, "--classes", "HEALTHY", "SICK")
    assert "leave them out with --skip-bad" in place.run(*named).stderr
    scored = place.json(*named, "--skip-bad")
    assert (scored["films"], scored["patients"], scored["left_out"]) == (2, 2, {"unusable": 1})
    assert "left out, as they cannot be used: 1" in place.run(*named, "--skip-bad").stdout
    refused = place.run("evaluate", "--skip-bad")
    assert (refused.returncode, "--split all" in refused.stderr) == (2, True)


def test_what_other_peoples_films_say_is_kept_with_the_run_and_reported(tuned, mixed, tmp_path):
    place, _, _ = tuned
    folder, others, own = mixed
    scored = place.json("evaluate", "--data", str(folder), "--split", "all")
    client = connect(TrackingConfig(), place.workspace).client
    run = client.get_model_version_by_alias("xray-pneumonia", "champion").run_id
    names = [item.path for item in client.list_artifacts(run) if item.path.startswith("outside-")]
    records = [json.loads(Path(client.download_artifacts(run, name)).read_text()) for name in names]
    kept = max(records, key=lambda record: record["made"])
    assert (kept["films"], kept["left_out"], kept["own_known"]) == (others, own, True)
    assert kept["shift"]["prevalence"] == scored["shift"]["prevalence"]
    assert kept["subgroups"] == scored["subgroups"]
    page = Path(place.json("report", "tiny", "--no-log", "--output", str(tmp_path / "page.html"))["page"]).read_text()
    assert f"Set {kept['set']}: {others} films" in page


def test_the_models_films_are_known_from_its_study_where_the_workspace_forgot_them(tuned, mixed, tmp_path):
    place, _, _ = tuned
    folder, others, own = mixed
    model, kept = "models:/xray-pneumonia@champion", tmp_path / "manifests"
    place.workspace.manifests.rename(kept)
    try:
        result = evaluate(model, "all", place.workspace, data=str(folder), device="cpu")
        assert (result.films, result.left_out) == (others, own)
    finally:
        shutil.rmtree(place.workspace.manifests, ignore_errors=True)
        kept.rename(place.workspace.manifests)


def test_where_the_models_films_are_not_known_that_is_said_and_test_films_stay_sealed(tuned, mixed, tmp_path):
    place, _, _ = tuned
    folder, others, own = mixed
    connection = connect(TrackingConfig(), place.workspace)
    run = read_study("tiny", place.workspace).best.notes["mlflow_run"]
    bundle = connection.client.download_artifacts(run, "adapter", str(tmp_path))
    base = connection.client.download_artifacts(read_study("tiny", place.workspace).notes["mlflow_parent"], "base")
    shutil.copy(Path(base) / "base.safetensors", tmp_path / "base.safetensors")
    scored = place.json("evaluate", "--data", str(folder), "--split", "all", "--model", bundle)
    # Another study of this workspace may have drawn more of these films for its own sealed test.
    assert (scored["own_known"], list(scored["left_out"])) == (False, ["of_a_sealed_test"])
    sealed = scored["left_out"]["of_a_sealed_test"]
    assert own["test"] <= sealed <= sum(own.values())
    assert scored["films"] == others + sum(own.values()) - sealed
    shown = place.run("evaluate", "--data", str(folder), "--split", "all", "--model", bundle).stdout
    assert "own films are not known here" in shown
    assert f"left out, as films of a sealed test split: {sealed}" in shown


def test_predict_reads_folders_and_names_what_it_cannot_read(tuned, tmp_path):
    place, _, _ = tuned
    folder = tmp_path / "inbox"
    folder.mkdir()
    shutil.copy(next((place.films / "val" / "NORMAL").iterdir()), folder / "good.jpeg")
    (folder / "bad.jpeg").write_bytes(b"<html>")
    done = place.run("predict", str(folder), "--csv")
    assert done.returncode == 3
    assert len(done.stdout.splitlines()) == 2
    assert "bad.jpeg" in done.stderr
    assert "1 of 2 films" in done.stderr
    assert "Traceback" not in done.stderr


def test_predict_without_films_or_model_says_what_to_do(tuned, tmp_path):
    place, _, _ = tuned
    assert "does not exist" in place.run("predict", str(tmp_path / "none")).stderr
    film = next((place.films / "val" / "NORMAL").iterdir())
    done = place.run("predict", str(film), "--model", "models:/nothing@champion")
    assert done.returncode == 7
    assert "tune" in done.stderr
    with pytest.raises(DataError, match="no films"):
        list(film_files([tmp_path]))


def test_films_of_a_folder_are_found_by_what_they_are(tmp_path):
    """Archives call DICOM files by numbers, browsers save JPEG as .jfif: left out in silence they would be missed."""
    film = write_film(tmp_path / "b.jpeg", 1)
    shutil.copy(film, tmp_path / "a.jfif")
    (tmp_path / "0001").write_bytes(bytes(128) + b"DICM")
    shutil.copy(tmp_path / "0001", tmp_path / "DICOMDIR")
    (tmp_path / "broken.png").write_bytes(b"no film, and refused as one")
    (tmp_path / "folder.png").mkdir()
    shutil.copy(film, tmp_path / "folder.png" / "c.JPG")
    (tmp_path / ".cache").mkdir()
    for hidden in (".cache/d.jpeg", ".e.jpeg"):
        shutil.copy(film, tmp_path / hidden)
    (tmp_path / "notes.txt").write_text("no film")
    os.mkfifo(tmp_path / "pipe")
    linked = write_film(tmp_path.with_name(f"{tmp_path.name}-elsewhere") / "e.jpeg", 2).parent
    (tmp_path / "linked").symlink_to(linked)
    found = [path.relative_to(tmp_path).as_posix() for path in film_files([tmp_path])]
    assert found == ["0001", "a.jfif", "b.jpeg", "broken.png", "folder.png/c.JPG", "linked/e.jpeg"]


def test_promote_without_a_candidate_is_one_line(tuned):
    place, _, _ = tuned
    done = place.run("promote")
    assert done.returncode == 7
    assert done.stderr.count("\n") == 1


def test_a_second_study_makes_a_candidate_that_promote_moves(place):
    first = place.json("tune", "--study", "tiny", "--trials", "1")
    second = place.json("tune", "--study", "tiny", "--trials", "1", "--name", "other", "--seed", "5")
    assert first["registered"]["aliases"] == ["champion"]
    assert second["registered"] == {"name": "xray-pneumonia", "version": "2", "aliases": ["candidate"]}
    moved = place.json("promote")
    assert (moved["old"]["version"], moved["new"]["version"], moved["same_data"]) == ("1", "2", True)
    assert place.json("evaluate")["at_half"]["f1"] == pytest.approx(second["best"]["val.f1"], abs=1e-9)


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b"])
def test_a_film_that_cannot_even_be_looked_for_is_one_line(name):
    with pytest.raises(DataError, match="does not exist"):
        list(film_files([Path(name)]))
