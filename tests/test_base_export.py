"""Base weights from a whole training: exported, named by a study, kept from leaking. Real trainings, so slow."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from conftest import Place, make_place
from small_sets import write_film

from xray_opt import registry
from xray_opt.backbone import random_base, read_base
from xray_opt.config import DataConfig, TrackingConfig, Workspace, find_study, load_study
from xray_opt.dataset import prepared
from xray_opt.mlflow_client import connect
from xray_opt.tuning import list_studies, read_study

pytestmark = pytest.mark.slow
DOCS = Path(__file__).parent.parent / "docs" / "statistics.md"
FULL = ("--study", "tiny", "--set", "model.strategy=full", "--set", "training.epochs=1")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> tuple[Place, str, dict]:
    """A workspace, a run that was trained to tell bacteria from virus on the train patients, and what export said."""
    place = make_place(tmp_path_factory.mktemp("base") / "own")
    (manifest,) = place.workspace.manifests.iterdir()
    snippet = re.search(r"```python\n(.*?kinds\.csv.*?)```", DOCS.read_text(), flags=re.DOTALL)[1]
    snippet = snippet.replace("data/manifests/NAME.csv", str(manifest))
    exec(snippet.replace("data/chest_xray/kinds.csv", str(place.films / "kinds.csv")), {})
    kinds = ("--data", "films/kinds.csv", "--set", "data.negative=virus", "--set", "data.positive=bacteria")
    run = place.json("train", *FULL, *kinds, "--name", "kinds")["run"]
    return place, run, place.json("base", "export", run, "--out", "kinds.safetensors")


def own_manifest(place):
    return prepared(load_study(find_study("tiny", Workspace(place.workspace.root))).config.data, place.workspace)


def client(place):
    return connect(TrackingConfig(), place.workspace)


def test_the_file_holds_the_run_s_weights_and_statistics_and_tells_of_them(world):
    place, run, said = world
    base = read_base(place.workspace.root / "kinds.safetensors")
    network = registry.load(client(place), f"runs:/{run}", torch.device("cpu")).predictor.network
    state = network.features.state_dict(prefix="features.")
    assert all(torch.equal(value, state[name]) for name, value in base.state.items())
    start = random_base(0).state
    for kind in ("running_mean", "running_var", "weight"):
        changed = [name for name in start if name.endswith(kind) and not torch.equal(start[name], base.state[name])]
        assert len(changed) > 100, kind
    assert said["sha256"] == base.sha256
    (own,) = base.trained_on
    assert (own.run, own.classes, own.image_size, own.is_listed) == (run, ("virus", "bacteria"), 32, True)
    assert own.film_count == said["trained_on"][0]["film_count"] > 20
    assert "films" not in said["trained_on"][0]
    shown = place.run("base", "export", run, "--out", "again.safetensors")
    assert base.sha256 in shown.stdout
    # Not the bytes: safetensors writes what is told beside the weights in any order.
    again = read_base(place.workspace.root / "again.safetensors")
    assert (again.sha256, again.trained_on, again.origin) == (base.sha256, base.trained_on, base.origin)


@pytest.fixture(scope="module")
def on_it(world) -> Place:
    """A study of the usual classes on that base."""
    place, _, _ = world
    place.json("tune", "--study", "tiny", "--name", "on-it", "--trials", "1", "--weights", "kinds.safetensors")
    return place


def test_a_study_trains_on_it_and_what_goes_to_mlflow_names_no_film(world, on_it, tmp_path):
    place, run, said = world
    record = read_study("on-it", place.workspace)
    assert record.notes["base_sha256"] == said["sha256"]
    assert "base_overlap" not in record.notes
    parent = client(place).client.get_run(record.notes["mlflow_parent"])
    assert "xray_opt.base_overlap" not in parent.data.tags
    path = client(place).client.download_artifacts(parent.info.run_id, "base/base.safetensors", str(tmp_path))
    (kept,) = read_base(Path(path)).trained_on
    assert (kept.run, kept.films, kept.patients) == (run, frozenset(), frozenset())
    best = record.best.notes["mlflow_run"]
    assert place.run("evaluate", "--model", f"runs:/{best}", "--device", "cpu").returncode == 0


def test_redrawn_splits_would_take_seen_patients_into_val(on_it):
    command = ("confirm", "--study", "tiny", "--name", "on-it", "--weights", "kinds.safetensors", "--top", "1")
    done = on_it.run(*command, "--seeds", "2", "--splits", "2")
    assert (done.returncode, done.stderr.count("error:")) == (3, 1), done.stderr
    assert "val and 0 of 0 test patients" in done.stderr
    assert "retraining" not in done.stderr


def test_films_of_the_base_are_no_strangers_to_the_model(world, on_it, tmp_path):
    place, _, _ = world
    chosen = {film.sha256 for film in own_manifest(place).films}
    whole = prepared(DataConfig(root=str(place.films)), place.workspace)
    (ancestor,) = read_base(place.workspace.root / "kinds.safetensors").trained_on
    seen = next(film for film in whole.films if film.sha256 not in chosen and ancestor.saw_film(film.sha256))
    rows = ["path,label,patient", "seen.jpeg,1,somebody"]
    shutil.copy(place.films / seen.path, tmp_path / "seen.jpeg")
    for number in range(24):
        write_film(tmp_path / f"{number}.jpeg", 500 + number)
        rows.append(f"{number}.jpeg,{number % 2},other-{number}")
    (tmp_path / "films.csv").write_text("\n".join(rows) + "\n")
    best = read_study("on-it", place.workspace).best.notes["mlflow_run"]
    found = place.json("evaluate", "--model", f"runs:/{best}", "--split", "all", "--data", str(tmp_path / "films.csv"))
    assert (found["left_out"], found["films"]) == ({"of_the_base": 1}, 24)


@pytest.fixture(scope="module")
def leaking(world) -> str:
    """A base that was trained on the same films under another split, so on patients of this one's val and test."""
    place, _, _ = world
    run = place.json("train", *FULL, "--set", "data.seed=5", "--name", "leaking")["run"]
    place.json("base", "export", f"runs:/{run}", "--out", "leaking.safetensors")
    return run


def test_a_leaking_base_is_refused_before_there_is_a_study(world, leaking):
    place, _, _ = world
    done = place.run("tune", "--study", "tiny", "--name", "leak", "--trials", "1", "--weights", "leaking.safetensors")
    assert (done.returncode, done.stderr.count("error:")) == (3, 1), done.stderr
    told = re.search(r"(\d+) of (\d+) val and (\d+) of (\d+) test", done.stderr)
    val, of_val, test, of_test = map(int, told.groups())
    manifest = own_manifest(place)
    groups = {split: {film.group for film in manifest.films if film.split == split} for split in ("val", "test")}
    (ancestor,) = read_base(place.workspace.root / "leaking.safetensors").trained_on
    seen = {film.group for film in manifest.films if ancestor.saw_film(film.sha256)}
    assert (of_val, of_test) == (len(groups["val"]), len(groups["test"]))
    assert (val, test) == (len(groups["val"] & seen), len(groups["test"] & seen))
    assert val + test > 0
    assert "leak" not in [record.name for record in list_studies(place.workspace)]
    single = place.run("train", "--study", "tiny", "--weights", "leaking.safetensors")
    assert (single.returncode, single.stderr.count("error:")) == (3, 1)


def test_an_allowed_leak_is_noted_wherever_scores_are_kept(world, leaking):
    place, _, _ = world
    command = ("tune", "--study", "tiny", "--name", "leak", "--trials", "1", "--weights", "leaking.safetensors")
    done = place.run(*command, "--set", "model.base_overlap=warn")
    assert done.returncode == 0, done.stderr
    assert "!!! LEAK" in done.stderr
    record = read_study("leak", place.workspace)
    assert record.notes["base_overlap"]["runs"] == [leaking]
    runs = [record.notes["mlflow_parent"], record.best.notes["mlflow_run"]]
    tags = [client(place).client.get_run(run).data.tags["xray_opt.base_overlap"] for run in runs]
    assert tags[0] == tags[1]
    assert re.fullmatch(r"\d+ of \d+ val and \d+ of \d+ test patients", tags[0])
    versions = client(place).client.search_model_versions("name = 'xray-pneumonia'")
    assert tags[0] in [version.tags.get("xray_opt.base_overlap") for version in versions]


def test_a_base_from_a_base_tells_of_both(world, tmp_path):
    place, first, _ = world
    second = place.json("train", *FULL, "--weights", "kinds.safetensors", "--name", "second")["run"]
    alone = place.run("base", "export", second, "--out", "second.safetensors")
    assert (alone.returncode, alone.stderr.count("error:")) == (4, 1)
    assert "name their file with --weights" in alone.stderr
    place.json("base", "export", second, "--out", "second.safetensors", "--weights", "kinds.safetensors")
    trained_on = read_base(place.workspace.root / "second.safetensors").trained_on
    assert [one.run for one in trained_on] == [first, second]
    assert all(one.is_listed for one in trained_on)


def test_what_cannot_be_a_base_is_one_line(world, tmp_path):
    place, run, _ = world
    lora = place.json("train", "--study", "tiny", "--set", "training.epochs=1")["run"]
    (place.workspace.root / "there.safetensors").write_text("")
    new = str(tmp_path / "new.safetensors")
    cases = [
        ((lora, "--out", new), 4, "strategy lora"),
        ((run, "--out", "there.safetensors"), 2, "exists already"),
        ((run, "--out", "base.pth"), 2, "kept as .safetensors"),
        (("f" * 32, "--out", new), 7, "f" * 32),
    ]
    for arguments, code, says in cases:
        done = place.run("base", "export", *arguments)
        assert (done.returncode, done.stderr.count("\n")) == (code, 1), done.stderr
        assert says in done.stderr
    manifests = place.workspace.manifests
    manifests.rename(manifests.with_name("elsewhere"))
    unknown = place.run("base", "export", run, "--out", new)
    manifests.with_name("elsewhere").rename(manifests)
    assert (unknown.returncode, unknown.stderr.count("\n")) == (4, 1)
    assert "films that it was trained on are not known here" in unknown.stderr
    folder = Path(client(place).client.download_artifacts(lora, "")) / "adapter"
    (folder / "head.safetensors").write_bytes(b"cut")
    broken = place.run("base", "export", lora, "--out", new)
    assert (broken.returncode, broken.stderr.count("\n")) == (4, 1)
    assert not Path(new).exists()
