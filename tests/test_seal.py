"""The seal belongs to the films: every look at them counts, whatever study, split or folder they are under."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import make_place
from mlflow_stores import tracking_server

from xray_opt.config import TrackingConfig, Workspace, find_study, load_study
from xray_opt.dataset import kept_manifests, prepared
from xray_opt.ledger import Look, film_key, held_out_keys, looks_at, noted, sealed_keys
from xray_opt.mlflow_client import connect
from xray_opt.tracking import run_looks, tag_look
from xray_opt.tracking.looks import FILMS, MOST_FILMS
from xray_opt.tuning import read_study


def own_manifest(place):
    study = load_study(find_study("tiny", Workspace(place.workspace.root)))
    return prepared(study.config.data, place.workspace)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two studies on the same test films, the second one of fewer training films; the first one is finalized."""
    place = make_place(tmp_path_factory.mktemp("seal") / "own")
    place.json("tune", "--study", "tiny", "--trials", "1", "--name", "first")
    second = ["--name", "second", "--seed", "5", "--set", "data.train_films=32"]
    place.json("tune", "--study", "tiny", "--trials", "1", *second)
    first, second = (str(read_study(name, place.workspace).best.notes["mlflow_run"]) for name in ("first", "second"))
    final = place.json("finalize", "--model", f"runs:/{first}")
    return place, first, second, final


def test_the_second_study_has_another_manifest_and_the_same_test_films(two) -> None:
    place, first, second, final = two
    client = connect(TrackingConfig(), place.workspace).client
    digests = {client.get_run(run).data.tags["xray_opt.manifest_sha256"] for run in (first, second)}
    assert len(digests) == 2
    (seen,) = noted(place.workspace)
    assert set(seen.films) == held_out_keys(own_manifest(place))
    assert (seen.study, seen.run, seen.by) == ("first", first, "finalize")
    assert (final["openings"], final["looks"], final["others"]) == (1, 1, [])


def test_another_study_on_opened_films_is_refused_in_one_line(two) -> None:
    place, first, second, _ = two
    refused = place.run("finalize", "--model", f"runs:/{second}")
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (2, "", 1)
    assert f"trial 0 of study first, runs:/{first}" in refused.stderr
    assert "what the seal prevents" in refused.stderr
    assert len(list(noted(place.workspace))) == 1


def test_compare_of_the_other_study_says_that_its_films_were_opened(two) -> None:
    place, first, _, _ = two
    shown = place.run("compare", "second").stdout
    assert "sealed, never opened" not in shown
    assert f"runs:/{first}" in shown
    assert "Opened once, for study first: another look is not the first one." in " ".join(shown.split())
    assert [one["study"] for one in place.json("compare", "second")["looks_at_test_films"]] == ["first"]


def test_the_report_of_the_other_study_says_so_too(two) -> None:
    place, *_ = two
    shown = Path(place.json("report", "second", "--no-log")["page"]).read_text()
    assert "Sealed, never opened" not in shown
    assert "study first" in shown


def test_deleting_the_study_and_making_it_anew_forgets_nothing(two) -> None:
    place, first, _, _ = two
    assert place.run("study", "delete", "first", "--yes").returncode == 0
    place.json("tune", "--study", "tiny", "--trials", "1", "--name", "first")
    again = str(read_study("first", place.workspace).best.notes["mlflow_run"])
    refused = place.run("finalize", "--model", f"runs:/{again}")
    assert refused.returncode == 2
    assert f"runs:/{first}" in refused.stderr
    assert f"runs:/{first}" in place.run("compare", "first").stdout


def test_again_goes_on_and_is_counted_over_studies(two) -> None:
    place, first, second, _ = two
    done = place.run("finalize", "--model", f"runs:/{second}", "--again", "--json")
    assert "opened before for other models, 1 in all: this is no first look" in done.stderr
    final = json.loads(done.stdout)
    assert (final["openings"], final["looks"]) == (1, 2)
    assert f"runs:/{first}" in final["others"][0]
    shown = place.run("finalize", "--model", f"runs:/{second}")
    assert "look 2 at these test films" in shown.stdout
    assert max(len(line) for line in shown.stdout.splitlines()) <= 80


def test_a_run_without_a_study_is_counted(two) -> None:
    place, *_ = two
    before = len(list(noted(place.workspace)))
    small = ["--set", "image.size=32", "--set", "model.base=random", "--set", "training.epochs=1"]
    small += ["--set", "training.device=cpu", "--set", "model.strategy=linear"]
    run = place.json("train", *small)["run"]
    done = place.run("evaluate", "--model", f"runs:/{run}", "--split", "test", "--why", "a look")
    assert done.returncode == 0, done.stderr
    assert f"look {before + 1} at these test films" in done.stdout
    assert len(list(noted(place.workspace))) == before + 1


@pytest.mark.slow
def test_a_shared_server_tells_of_looks_on_other_machines(two, tmp_path: Path) -> None:
    place, *_ = two
    manifest = own_manifest(place)
    films, when = tuple(sorted(held_out_keys(manifest))), "2026-01-09T00:00:00.000+00:00"
    seen = Look("ada", when, "because", "finalize", "theirs", 9, "9" * 32, "elsewhere", films)
    with tracking_server(tmp_path) as uri:
        connection = connect(TrackingConfig(uri=uri), place.workspace)
        experiment = connection.client.create_experiment("theirs")
        run = connection.client.create_run(experiment).info.run_id
        tag_look(connection, run, seen)
        connection.client.delete_run(run)
        assert run_looks(connection) == [seen]
        place.json("tune", "--study", "tiny", "--trials", "1", "--name", "shared", "--tracking-uri", uri)
        own = read_study("shared", place.workspace).best.notes["mlflow_run"]
        names = {item.path for item in connection.client.list_artifacts(str(own_parent(place)), "data")}
        assert "data/test-films.txt" in names
        told = place.run("finalize", "--study", "shared", "--tracking-uri", uri, "--model", f"runs:/{own}")
        assert (told.returncode, "what the seal prevents" in told.stderr) == (2, True)
        shown = " ".join(place.run("compare", "shared").stdout.split())
        assert "elsewhere (finalize) for trial 9 of study theirs" in shown


def test_looks_of_one_run_at_other_films_keep_their_own_films(tmp_path: Path) -> None:
    """A later look at a folder with a few sealed films hid the test films of an earlier one from other machines."""
    connection = connect(TrackingConfig(), Workspace(tmp_path))
    client = connection.client
    run = client.create_run(client.create_experiment("theirs")).info.run_id
    wanted, other = (tuple(sorted(film_key(f"{kind} {number}") for number in range(900))) for kind in ("T", "S"))
    first = Look("ada", "2026-01-09T00:00:00.000+00:00", "because", "finalize", "theirs", 9, run, "here", wanted)
    second = replace(first, when="2026-01-10T00:00:00.000+00:00", by="evaluate", films=other)
    for look in (first, second, first):
        tag_look(connection, run, look)
    assert run_looks(connection) == [replace(look, films=look.films[:MOST_FILMS]) for look in (first, second)]
    assert max(map(len, client.get_run(run).data.tags.values())) <= 8000


def test_a_look_of_an_earlier_version_keeps_its_films(tmp_path: Path) -> None:
    """Its run has the films in the tag by which it is found."""
    connection = connect(TrackingConfig(), Workspace(tmp_path))
    client = connection.client
    run = client.create_run(client.create_experiment("theirs")).info.run_id
    told = {"who": "ada", "when": "2026-01-09T00:00:00.000+00:00", "why": "because", "by": "finalize"}
    old = Look(**told, films=(film_key("T"),))
    client.set_tag(run, FILMS, old.films[0])
    client.set_tag(run, "xray_opt.look.20260109000000000000.finalize", json.dumps(told))
    new = replace(old, when="2026-01-10T00:00:00.000+00:00", by="evaluate", films=(film_key("S"),))
    tag_look(connection, run, new)
    assert run_looks(connection) == [old, new]


def own_parent(place) -> object:
    return read_study("shared", place.workspace).notes["mlflow_parent"]


def test_films_that_were_opened_stay_sealed_where_their_manifest_is_lost(two) -> None:
    place, *_ = two
    assert held_out_keys(own_manifest(place)) <= sealed_keys(place.workspace, [])


@pytest.fixture(scope="module")
def exported(two, tmp_path_factory):
    """What ``train --out`` wrote, and how many test films its split has."""
    place, *_ = two
    folder = tmp_path_factory.mktemp("exported") / "model"
    small = ["--set", "image.size=32", "--set", "model.base=random", "--set", "training.epochs=1"]
    small += ["--set", "training.device=cpu", "--set", "model.strategy=linear"]
    place.json("train", *small, "--out", str(folder))
    return folder, len(held_out_keys(own_manifest(place)))


def test_a_folder_of_train_knows_its_films_where_the_workspace_does(two, exported) -> None:
    place, *_ = two
    folder, _ = exported
    refused = place.run("evaluate", "--split", "all", "--model", str(folder), "--data", str(place.films))
    assert (refused.returncode, "sealed test split" in refused.stderr) == (2, True), refused.stderr
    sealed = place.run("evaluate", "--split", "test", "--model", str(folder))
    assert (sealed.returncode, "--why" in sealed.stderr) == (2, True)
    before = len(list(noted(place.workspace)))
    done = place.run("evaluate", "--split", "test", "--model", str(folder), "--why", "the folder")
    assert done.returncode == 0, done.stderr
    assert len(list(noted(place.workspace))) == before + 1


@pytest.fixture
def stranger(two, exported, tmp_path: Path):
    """Another workspace that has the folder of the model and the films, and nothing else."""
    place, *_ = two
    shutil.copytree(place.films, tmp_path / "films")
    next(path for path in sorted((tmp_path / "films").rglob("*.jpeg"))).unlink()  # the split cannot be made again
    return replace(place, workspace=Workspace(tmp_path), films=tmp_path / "films")


def test_a_folder_of_train_keeps_its_test_films_sealed_in_a_workspace_that_knows_nothing(stranger, exported) -> None:
    folder, count = exported
    asked = ["--split", "all", "--model", str(folder), "--data", "films"]
    scored = stranger.json("evaluate", *asked)
    assert scored["own_known"] is False
    assert count - 1 <= scored["left_out"]["of_a_sealed_test"] <= count
    assert not list(stranger.workspace.manifests.glob("*.csv"))
    assert [one.by for one in noted(stranger.workspace)] == ["outside"]
    opened = stranger.run("evaluate", *asked, "--why", "I must know", "--json")
    assert json.loads(opened.stdout)["looks"] == 1
    by = {one.by: one for one in noted(stranger.workspace)}
    assert by["evaluate"].why == "I must know"
    assert len(by["evaluate"].films) == scored["left_out"]["of_a_sealed_test"]
    again = stranger.run("evaluate", *asked, "--why", "again")
    assert "recorded as an opening: this is look 2" in again.stdout
    sheet = stranger.run("explain", *asked, "--worst", "64", "--out", "sheet")
    assert "films of a sealed test split" in sheet.stdout, sheet.stderr


@pytest.mark.slow
def test_where_the_store_has_pseudonyms_and_the_manifest_is_lost_the_test_films_are_known(two, tmp_path: Path) -> None:
    place, *_ = two
    with tracking_server(tmp_path) as uri:
        place.json("tune", "--study", "tiny", "--trials", "1", "--name", "remote", "--tracking-uri", uri)
        run = read_study("remote", place.workspace).best.notes["mlflow_run"]
        count = len(held_out_keys(own_manifest(place)))
        away = replace(place, workspace=Workspace(tmp_path / "away"), films=tmp_path / "away" / "films")
        shutil.copytree(place.films, away.films)
        next(path for path in sorted(away.films.rglob("*.jpeg"))).unlink()
        asked = ["--split", "all", "--model", f"runs:/{run}", "--data", "films", "--tracking-uri", uri]
        scored = away.json("evaluate", *asked)
        assert scored["own_known"] is False
        assert count - 1 <= scored["left_out"]["of_a_sealed_test"] <= count


def test_films_scored_as_other_peoples_count_when_they_become_test_films(stranger, exported) -> None:
    folder, _ = exported
    stranger.json("evaluate", "--split", "all", "--model", str(folder), "--data", "films")
    assert stranger.run("data", "prepare", "films", "--seed", "7").returncode == 0
    manifest = next(iter(kept_manifests(stranger.workspace.manifests)))
    assert [one.by for one in looks_at(held_out_keys(manifest), noted(stranger.workspace))] == ["outside"]
