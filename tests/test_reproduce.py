"""A recorded run trained anew: equal to the bit, within a tolerance, or its first difference by name."""

import json
import math
import os
import re
import shutil
import sqlite3
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import Place, make_place
from PIL import Image

from xray_opt.backbone import random_base, save_base
from xray_opt.cache import open_images
from xray_opt.config import Config, TrackingConfig, as_text, find_study, flatten, load_study, override, read_value
from xray_opt.dataset import Pseudonyms, prepared, settled
from xray_opt.errors import ConfigError, Pruned
from xray_opt.experiment import Job, run_experiment
from xray_opt.mlflow_client import connect
from xray_opt.reproduce import Difference, Judge
from xray_opt.reproduce.comparing import reproduction
from xray_opt.reproduce.recording import Recording
from xray_opt.tracking import Tracking, data_tags
from xray_opt.tuning import read_study


def recording(**changes) -> Recording:
    epochs = {1: {"val.f1": 0.5, "val.auc": math.nan}, 2: {"val.f1": 0.75, "val.auc": 0.8}}
    plain = Recording("r" * 32, "one", "FINISHED", {}, Config(), (), epochs, {"best.f1": 0.75}, {"head": "a"})
    return replace(plain, **changes)


#: What differs of the environment, as a rerun elsewhere tells it.
ELSEWHERE = (("xray_opt.cpu", "Abacus 3", "Abacus 4"),)


def judged(tolerance=0.01, best=None, files=None, environment=ELSEWHERE, device="cpu", **epochs):
    judge = Judge(recording(tags={"xray_opt.device": device}), tolerance)
    for number, values in ({1: recording().epochs[1], 2: recording().epochs[2]} | epochs.get("changed", {})).items():
        judge.epoch(number, values)
    judge.end({"best.f1": 0.75} if best is None else best, {"head": "a"} if files is None else files)
    return reproduction(judge, environment)


def test_equal_is_every_value_and_every_file():
    found = judged()
    assert (found.verdict, found.epochs, found.recorded_epochs) == ("equal", 2, 2)
    assert found.first is found.beyond is found.largest is None


def test_the_first_and_the_largest_difference_are_told_apart():
    found = judged(0.1, changed={1: {"val.f1": 0.5001, "val.auc": math.nan}}, best={"best.f1": 0.74})
    assert found.verdict == "within"
    assert found.first == Difference(1, "val.f1", 0.5, 0.5001)
    assert found.largest == Difference(None, "best.f1", 0.75, 0.74)
    assert found.first.text() == "epoch 1, val.f1: recorded 0.5, now 0.5001"
    assert json.loads(json.dumps(found.to_dict()))["first"]["name"] == "val.f1"


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"changed": {2: {"val.f1": 0.7, "val.auc": 0.8}}}, "val.f1"),
        ({"changed": {2: {"val.f1": 0.75}}}, "val.auc"),
        ({"changed": {2: {"val.f1": math.nan, "val.auc": 0.8}}}, "val.f1"),
        ({"changed": {2: {"val.f1": 0.75, "val.auc": 0.8, "val.new": 1.0}}}, "val.new"),
        ({"changed": {3: {"val.f1": 0.75}}}, "number of epochs"),
        ({"best": {"best.f1": 0.5}}, "best.f1"),
    ],
)
def test_what_is_beyond_the_tolerance_is_named(change, name):
    found = judged(**change)
    assert (found.verdict, found.beyond.name) == ("different", name)


#: A training whose learning rate fell once, and whose loss ended small.
SMALL = {
    1: {"learning_rate": 1e-4, "train.loss": 0.05, "val.f1": 0.5},
    2: {"learning_rate": 1e-5, "train.loss": 0.001, "val.f1": 0.9},
}


@pytest.mark.parametrize(
    ("name", "now", "verdict"),
    [
        ("learning_rate", 1.01e-5, "different"),
        ("learning_rate", 9e-5, "different"),
        ("learning_rate", 1e-5 * (1 + 1e-12), "within"),
        ("train.loss", 0.0014, "within"),
        ("train.loss", 0.002, "different"),
        ("val.f1", 0.895, "within"),
        ("val.f1", 0.88, "different"),
    ],
)
def test_each_kind_of_value_has_a_tolerance_of_its_own(name, now, verdict):
    """A rate of 1e-5 is not 9e-5, though both are within .01 of each other; so it is with losses."""
    judge = Judge(recording(epochs=SMALL, best={}, files={}), 0.01)
    judge.epoch(1, SMALL[1])
    judge.epoch(2, SMALL[2] | {name: now})
    judge.end({}, {})
    found = reproduction(judge, ELSEWHERE)
    assert (found.verdict, found.reproduced) == (verdict, verdict == "within")
    assert found.first == Difference(2, name, SMALL[2][name], now)


def test_the_largest_difference_is_measured_by_what_is_allowed():
    judge = Judge(recording(epochs=SMALL, best={}, files={}), 0.01)
    judge.epoch(1, SMALL[1] | {"val.f1": 0.502})
    judge.epoch(2, SMALL[2] | {"train.loss": 0.0014})
    assert judge.beyond is None
    assert judge.largest.name == "train.loss"


@pytest.mark.parametrize(
    ("environment", "device", "verdict"),
    [((), "cpu", "unequal"), ((), "cuda Abacus", "within"), (ELSEWHERE, "cpu", "within")],
)
def test_a_small_difference_is_none_only_where_bits_may_differ(environment, device, verdict):
    off = {1: {"val.f1": 0.5001, "val.auc": math.nan}}
    assert judged(environment=environment, device=device, changed=off).verdict == verdict
    files = judged(environment=environment, device=device, files={"head": "b"})
    assert (files.verdict, files.reproduced) == (verdict, verdict == "within")


def test_a_run_that_ends_too_early_is_different():
    judge = Judge(recording(), 0.5)
    judge.epoch(1, recording().epochs[1])
    judge.end({"best.f1": 0.75}, {"head": "a"})
    assert judge.beyond == Difference(None, "number of epochs", 2, 1)


def test_other_files_with_equal_scores_are_not_equal_to_the_bit():
    found = judged(files={"head": "b"})
    assert (found.verdict, found.first.name) == ("within", "adapter file head")


@pytest.mark.parametrize("name", flatten(Config()))
def test_every_setting_is_read_back_from_its_spelling(name):
    value = flatten(Config())[name]
    assert read_value(name, as_text(value)) == value
    assert type(read_value(name, as_text(value))) is type(value)


def test_odd_spellings_are_refused():
    assert read_value("training.micro_batch", "8") == 8
    assert read_value("data.root", "null") is None
    for name, text in (("training.epochs", "x"), ("training.compile", "maybe"), ("optimizer.learning_rate", "nan")):
        with pytest.raises(ConfigError, match=name):
            read_value(name, text)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> tuple[Place, str]:
    """A workspace and a finished single run on base weights from a file."""
    place = make_place(tmp_path_factory.mktemp("reproduce") / "own")
    save_base(replace(random_base(7), origin="own weights"), place.workspace.root / "base.safetensors")
    return place, place.json("train", "--study", "tiny", "--weights", "base.safetensors", "--name", "one")["run"]


def client(place):
    return connect(TrackingConfig(), place.workspace).client


@contextmanager
def changed(place, run, key, step, value):
    """Another recorded value in MLflow's database, and the former one again."""
    where = "run_uuid = ? AND key = ? AND step = ?"

    def write(new):
        with sqlite3.connect(place.workspace.mlruns / "mlflow.db") as database:
            (old,) = database.execute(f"SELECT value FROM metrics WHERE {where}", (run, key, step)).fetchone()
            database.execute(f"UPDATE metrics SET value = ? WHERE {where}", (new, run, key, step))
        return old

    before = write(value)
    try:
        yield before
    finally:
        write(before)


@pytest.mark.slow
def test_a_run_comes_out_equal_to_the_bit_and_nothing_is_written(world):
    place, run = world
    experiment = client(place).get_run(run).info.experiment_id
    before = [(one.info.run_id, one.data.tags) for one in client(place).search_runs([experiment])]
    found = place.json("reproduce", run)
    assert (found["verdict"], found["epochs"], found["recorded_epochs"]) == ("equal", 2, 2)
    assert found["environment"] == []
    assert [(one.info.run_id, one.data.tags) for one in client(place).search_runs([experiment])] == before
    shown = place.run("reproduce", f"runs:/{run}")
    assert "equal bit for bit" in shown.stdout
    assert "the same processor, threads, device and versions" in shown.stdout
    assert max(map(len, shown.stdout.splitlines())) <= 80


@pytest.mark.slow
def test_a_trial_of_a_study_in_another_process_comes_out_equal(tuned):
    place, report, _ = tuned
    record = read_study("tiny", place.workspace)
    run = record.trials[report["best"]["trial"]].notes["mlflow_run"]
    tags = client(place).get_run(run).data.tags
    assert int(tags["xray_opt.threads"]) >= 1
    assert tags["xray_opt.device"] == "cpu"
    assert tags["xray_opt.cpu"]
    assert tags["version.torch"]
    assert place.json("reproduce", run)["verdict"] == "equal"
    assert read_study("tiny", place.workspace) == record


@pytest.mark.slow
def test_a_changed_recorded_value_is_named_with_its_epoch(world):
    place, run = world
    with changed(place, run, "val.loss", 2, 0.123):
        done = place.run("reproduce", run)
        assert (done.returncode, done.stderr.count("error:")) == (1, 1)
        assert re.search(r"epoch 2, val\.loss: recorded 0\.123, now \d+\.\d+$", done.stderr)
        assert "epoch 1/2" in done.stderr
        assert "equal bit for bit" not in done.stdout
        off = place.run("reproduce", run, "--tolerance", "50", "--json")
        found = json.loads(off.stdout)
        assert (found["verdict"], found["first"]["name"], found["beyond"]) == ("unequal", "val.loss", None)
        assert found["first"]["recorded"] == 0.123
        assert (off.returncode, off.stderr.count("error:")) == (1, 1)
        assert "not reproduced bit for bit, though processor, threads, device and versions are those" in off.stderr
    assert place.json("reproduce", run)["verdict"] == "equal"


@pytest.mark.slow
def test_another_machine_is_said_and_is_no_difference(world):
    place, run = world
    own = client(place).get_run(run).data.tags["xray_opt.cpu"]
    client(place).set_tag(run, "xray_opt.cpu", "Abacus 3")
    try:
        found = place.json("reproduce", run)
    finally:
        client(place).set_tag(run, "xray_opt.cpu", own)
    assert found["environment"] == [["xray_opt.cpu", "Abacus 3", own]]
    assert found["verdict"] == "equal"


@pytest.mark.slow
def test_a_changed_film_is_named_even_where_size_and_time_are_the_same(world):
    place, run = world
    study = load_study(find_study("tiny", place.workspace)).config
    film = place.films / prepared(study.data, place.workspace).of("train")[0].path
    content, facts = film.read_bytes(), film.stat()
    Image.fromarray(255 - np.asarray(Image.open(film))).save(film, quality=5)
    changed_bytes = film.read_bytes()[: facts.st_size].ljust(facts.st_size, b"\0")
    try:
        film.write_bytes(changed_bytes)
        os.utime(film, ns=(facts.st_atime_ns, facts.st_mtime_ns))
        done = place.run("reproduce", run)
    finally:
        film.write_bytes(content)
        os.utime(film, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert (done.returncode, done.stderr.count("error:")) == (3, 1), done.stderr
    assert f"{film.relative_to(place.films)} was changed (sha256" in done.stderr
    assert "epoch" not in done.stderr
    elsewhere = place.run("reproduce", run, "--data", "nowhere")
    assert (elsewhere.returncode, elsewhere.stderr.count("\n")) == (3, 1)
    assert "--data PATH" in elsewhere.stderr


@pytest.mark.slow
def test_a_missing_base_is_one_line_and_may_be_given(world, tmp_path):
    place, run = world
    own = place.workspace.root / "base.safetensors"
    stored = Path(client(place).get_run(run).info.artifact_uri.removeprefix("file://")) / "base"
    own.rename(tmp_path / "own.safetensors")
    assert place.json("reproduce", run)["verdict"] == "equal", "MLflow has a copy"
    shutil.move(stored, tmp_path / "stored")
    try:
        done = place.run("reproduce", run)
        assert (done.returncode, done.stderr.count("error:")) == (4, 1), done.stderr
        assert "name their file with --weights PATH" in done.stderr
        other = save_base(random_base(8), tmp_path / "other.safetensors")
        refused = place.run("reproduce", run, "--weights", str(other))
        assert (refused.returncode, refused.stderr.count("error:")) == (4, 1)
        assert place.json("reproduce", run, "--weights", str(tmp_path / "own.safetensors"))["verdict"] == "equal"
    finally:
        shutil.move(tmp_path / "stored", stored)
        (tmp_path / "own.safetensors").rename(own)


@pytest.mark.slow
@pytest.mark.parametrize(("error", "state"), [(Pruned(1), "KILLED"), (KeyboardInterrupt(), "FAILED")])
def test_a_run_that_was_stopped_is_compared_as_far_as_it_came(world, error, state):
    place, _ = world
    study = load_study(find_study("tiny", place.workspace)).config
    config = override(study, {"training.epochs": 3, "lora.rank": 2})
    config = replace(config, data=settled(config.data, place.workspace))
    manifest, base, ids = prepared(config.data, place.workspace), random_base(0), []

    def watch(epoch):
        raise error

    tags = data_tags(manifest) | {"xray_opt.base_sha256": base.sha256}
    images, names = open_images(manifest, config.image.size, place.workspace), Pseudonyms(place.workspace)
    connection = connect(TrackingConfig(), place.workspace)
    job = Job(config, "stopped", {}, tags, watch=watch, started=ids.append)
    with Tracking.open(connection, "train", tags, parent=False) as tracking, pytest.raises(type(error)):
        run_experiment(job, images, base, tracking, names)
    found = place.json("reproduce", ids[0])
    assert (found["verdict"], found["epochs"], found["recorded_epochs"]) == ("equal", 1, 1)
    assert found["state"] == state


@pytest.mark.slow
def test_a_retraining_on_a_re_drawn_split_comes_out_equal(tmp_path):
    place = make_place(tmp_path / "own")
    assert place.run("tune", "--study", "tiny", "--trials", "1").returncode == 0
    done = place.run("confirm", "--study", "tiny", "--top", "1", "--seeds", "2", "--splits", "2")
    assert done.returncode == 0, done.stderr
    parent = read_study("tiny", place.workspace).notes["mlflow_parent"]
    experiment = client(place).get_run(parent).info.experiment_id
    (run,) = client(place).search_runs([experiment], "tags.`xray_opt.confirmation` = 'split-2'")
    assert place.json("reproduce", run.info.run_id)["verdict"] == "equal"


@pytest.mark.slow
def test_what_cannot_be_reproduced_is_one_line(world, tuned):
    place, run = world
    shared = tuned[0]
    parent = read_study("tiny", shared.workspace).notes["mlflow_parent"]
    empty = client(place).create_run(client(place).get_run(run).info.experiment_id)
    for key in ("training.seed",):
        client(place).log_param(empty.info.run_id, key, "0")
    cases = [
        (place, ("one",), 2, "is no run"),
        (place, ("f" * 32,), 7, "f" * 32),
        (shared, (parent,), 2, "of no training"),
        (place, (empty.info.run_id,), 2, "still at work"),
    ]
    for where, arguments, code, says in cases:
        done = where.run("reproduce", *arguments)
        assert (done.returncode, done.stderr.count("\n")) == (code, 1), done.stderr
        assert says in done.stderr
    client(place).set_terminated(empty.info.run_id, "FAILED")
    assert "no epoch to reproduce" in place.run("reproduce", empty.info.run_id).stderr
    client(place).log_metric(empty.info.run_id, "val.f1", 0.5, step=1)
    client(place).log_param(empty.info.run_id, "lora.colour", "red")
    assert "'lora.colour', which this version" in place.run("reproduce", empty.info.run_id).stderr
