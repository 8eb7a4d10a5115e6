"""LoRA beside its rivals: means and gains over seeds by numbers; and the whole of it on a study."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import Place, make_place, put_phantoms
from scipy.stats import t as student
from test_confirm import LUCKY

from xray_opt.baseline import Comparison, Contender, Model, compare
from xray_opt.baseline import training as training_room
from xray_opt.baseline.judging import _Drawn, _gain
from xray_opt.config import TrackingConfig, find_study, load_study
from xray_opt.dataset import prepared
from xray_opt.errors import NotFinite
from xray_opt.intervals import Patients, gains, scored, share_gain, tally
from xray_opt.leaderboard import interval_of, openings
from xray_opt.metrics import Cases
from xray_opt.mlflow_client import connect
from xray_opt.tuning import read_study, storage_url
from xray_opt.tuning.locks import sole_lock

STUDY = LUCKY.replace("name: lucky", "name: duel")
COMMAND = ("baseline", "--study", "duel", "--data", "more", "--seeds", "2", "--rates", "2")


def model(rng, labels, skill, threshold=0.5):
    noise = rng.normal(0, 1, len(labels))
    return Model(Cases(labels, 1 / (1 + np.exp(-(skill * (2 * labels - 1) + noise)))), threshold)


@pytest.fixture
def films():
    rng = np.random.default_rng(0)
    return rng, (rng.random(240) < 0.7).astype(int), Patients([f"p{n // 2}" for n in range(240)])


def test_equal_seeds_give_the_intervals_and_gains_of_one_model(films):
    rng, labels, patients = films
    ours, theirs = model(rng, labels, 1.2), model(rng, labels, 0.8, threshold=0.4)
    scores, paired = compare([Contender("a", (ours, ours)), Contender("b", (theirs, theirs))], patients, "a")
    assert scores["a"] == scored(ours.cases, patients, 0.5)
    assert scores["b"] == scored(theirs.cases, patients, 0.4)
    wanted = gains(ours.cases, theirs.cases, patients, (0.5, 0.4))
    assert {name: one.value for name, one in paired["b"].items()} == pytest.approx(
        {name: one.value for name, one in wanted.items()}
    )
    assert paired["b"]["auc"].low == pytest.approx(wanted["auc"].low)
    assert paired["b"]["auc"].p == pytest.approx(wanted["auc"].p, abs=1e-6)


def test_the_spread_of_seeds_widens_what_patients_alone_say(films):
    rng, labels, patients = films
    seeds = tuple(model(rng, labels, skill) for skill in (0.7, 1.0, 1.3))
    one = compare([Contender("a", seeds)], patients, "a")[0]["a"]["auc"]
    values = np.array([scored(seed.cases, patients, 0.5)["auc"].value for seed in seeds])
    assert one.value == pytest.approx(values.mean())
    logits = [np.log(end / (1 - end)) for end in (one.low, one.high)]
    own = values.var(ddof=1) / 3 / (one.value * (1 - one.value)) ** 2
    # At least as wide as the seeds alone make it, with as many degrees of freedom as there are at most.
    assert (logits[1] - logits[0]) / 2 > student.ppf(0.975, 1e9) * np.sqrt(own)
    alike = compare([Contender("a", (seeds[1],) * 3)], patients, "a")[0]["a"]["auc"]
    assert one.high - one.low > 1.3 * (alike.high - alike.low)


def test_a_gain_is_at_most_one_however_far_seeds_are_apart(films):
    rng, labels, patients = films
    pair = [
        Contender(key, tuple(model(rng, labels, skill) for skill in skills))
        for key, skills in (("a", (3.0, -3.0)), ("b", (-3.0, 3.0)))
    ]
    gained = compare(pair, patients, "a")[1]["b"]
    known = [one for one in gained.values() if one.low is not None]
    assert all(-1 <= one.low <= one.value <= one.high <= 1 for one in known)
    assert (gained["auc"].low, gained["auc"].high) == (-1.0, 1.0)


def test_seeds_that_all_but_agree_make_a_gain_of_a_share_no_surer():
    """A spread of 1e-6 moved the gain's centre back to the raw value: of p .071 it made .053."""
    patients, every = Patients([f"p{n:03d}" for n in range(200)]), np.ones(200, bool)
    shares = tally(every, every, patients), tally(np.arange(200) >= 4, every, patients)
    alone = share_gain(*shares, 0.02, [200, 200])

    def drawn(share, *values):
        return _Drawn({"accuracy": np.array(values)}, {}, {"accuracy": [200]}, {"accuracy": share})

    found = _gain("accuracy", drawn(shares[0], 1 - 1e-6, 1 + 1e-6), drawn(shares[1], 0.98))
    assert (found.low, found.high, found.p) == pytest.approx((alone.low, alone.high, alone.p), abs=1e-5)
    assert found.p >= alone.p > 0.05


def test_every_score_keeps_its_value_inside_its_interval(films):
    rng, labels, patients = films
    losses = np.abs(rng.normal(0.1, 0.02, len(labels)))
    seeds = tuple(
        Model(Cases(labels, one.cases.probabilities, losses * factor, {"virus": labels == 1}), 0.5)
        for one, factor in ((model(rng, labels, 1.0), 1.0), (model(rng, labels, 1.4), 1.5))
    )
    found = compare([Contender("a", seeds)], patients, "a")[0]["a"]
    assert {"ece", "brier", "sensitivity.virus"} <= found.keys()
    assert "loss" not in found
    assert all(one.low <= one.value <= one.high for one in found.values()), found


def test_equal_contenders_are_rarely_told_apart():
    rng = np.random.default_rng(2)
    labels, patients = (rng.random(160) < 0.6).astype(int), Patients([str(n) for n in range(160)])
    alarms = 0
    for _ in range(30):
        pair = [Contender(key, tuple(model(rng, labels, 1.0) for _ in range(3))) for key in "ab"]
        alarms += compare(pair, patients, "a")[1]["b"]["auc"].p < 0.05
    assert alarms <= 5


def test_a_better_contender_is_told_apart_and_a_model_of_one_seed_is_paired_with_each(films):
    rng, labels, patients = films
    ours = Contender("a", tuple(model(rng, labels, 1.8) for _ in range(3)))
    trivial = Contender("thumbnail", (model(rng, labels, 0.5),))
    one = compare([ours, trivial], patients, "a")[1]["thumbnail"]["auc"]
    assert one.low > 0
    assert one.p < 0.001


def test_without_ours_there_are_scores_and_no_gains(films):
    rng, labels, patients = films
    scores, paired = compare([Contender("b", (model(rng, labels, 1.0),))], patients, "a")
    assert set(scores) == {"b"}
    assert paired == {}


@pytest.fixture(scope="module")
def duel(tmp_path_factory) -> Place:
    """A study of one trial whose setting was confirmed with two new seeds."""
    place = make_place(tmp_path_factory.mktemp("duel") / "own")
    put_phantoms(place.workspace.root / "more", 90, 3)
    (place.workspace.studies / "duel.yaml").write_text(STUDY)
    for command in (("tune", "--trials", "1"), ("confirm", "--top", "1", "--seeds", "2")):
        done = place.run(command[0], "--study", "duel", "--data", "more", *command[1:])
        assert done.returncode == 0, done.stderr
    return place


@pytest.fixture(scope="module")
def compared(duel) -> dict:
    return duel.json(*COMMAND)


def client(place):
    return connect(TrackingConfig(), place.workspace).client


def runs_below(place):
    parent = read_study("duel", place.workspace).notes["mlflow_parent"]
    experiment = client(place).get_run(parent).info.experiment_id
    found = client(place).search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'")
    return [run for run in found if "xray_opt.baseline" in run.data.tags], parent


@pytest.mark.slow
def test_all_are_trained_alike_but_for_the_strategy_and_its_rate(duel, compared):
    assert [row["key"] for row in compared["rows"][:3]] == ["lora", "linear", "full"]
    assert {row["key"] for row in compared["rows"][3:]} == {"file metadata", "16×16 thumbnail"}
    params = {}
    for row in compared["rows"][:3]:
        runs = [client(duel).get_run(run) for run in row["runs"]]
        assert [run.data.params["training.seed"] for run in runs] == ["1", "2"]
        assert {run.data.params["model.strategy"] for run in runs} == {row["key"]}
        assert {float(run.data.params["optimizer.learning_rate"]) for run in runs} == {row["learning_rate"]}
        params[row["key"]] = runs[0].data.params
    for rival in ("linear", "full"):
        differ = {name for name, value in params["lora"].items() if params[rival][name] != value}
        assert "model.strategy" in differ
        assert differ <= {"model.strategy", "optimizer.learning_rate"}
    sizes = [row["trainable"] for row in compared["rows"][:3]]
    assert sizes[1] == 1281 < sizes[0] < sizes[2] > 20_000_000
    assert all(row["seconds"] > 0 for row in compared["rows"][:3])


@pytest.mark.slow
def test_a_rival_has_the_rate_that_was_best_with_the_search_s_own_seed(duel, compared):
    runs, _ = runs_below(duel)
    for rival in ("linear", "full"):
        tried = [
            run
            for run in runs
            if run.data.tags["xray_opt.baseline"] == rival
            and run.data.tags["xray_opt.baseline_run"].startswith("rate-")
        ]
        assert {run.data.params["training.seed"] for run in tried} == {"0"}
        rates = {float(run.data.params["optimizer.learning_rate"]): run.data.metrics["best.f1"] for run in tried}
        assert sorted(rates) == pytest.approx([3e-3 / 10**0.5, 3e-3 * 10**0.5])
        chosen = next(row["learning_rate"] for row in compared["rows"] if row["key"] == rival)
        assert rates[chosen] == max(rates.values())


@pytest.mark.slow
def test_lora_is_what_confirm_has_trained_already(duel, compared):
    runs, _ = runs_below(duel)
    assert not [run for run in runs if run.data.tags["xray_opt.baseline"] == "lora"]
    assert compared["chosen_by"] == "confirmed with new seeds"
    tags = [client(duel).get_run(run).data.tags for run in compared["rows"][0]["runs"]]
    assert [tag["xray_opt.confirmation"] for tag in tags] == ["seed-1", "seed-2"]


@pytest.mark.slow
def test_scores_are_the_means_of_what_evaluate_says_of_each_run(duel, compared):
    row = compared["rows"][1]
    each = [
        duel.json("evaluate", "--model", f"runs:/{run}", "--data", "more", "--device", "cpu")["image"]["scores"]
        for run in row["runs"]
    ]
    for score in ("f1", "brier", "accuracy"):
        mean = np.mean([one[score]["value"] for one in each])
        assert row["scores"][score]["value"] == pytest.approx(mean, abs=1e-4), score
    # So weak a probe's order of films hangs on the last bits, which are those of the recording.
    recorded = [client(duel).get_run(run).data.metrics["best.auc"] for run in row["runs"]]
    assert row["scores"]["auc"]["value"] == pytest.approx(np.mean(recorded), abs=1e-12)
    ours, gain = compared["rows"][0]["scores"]["auc"]["value"], compared["gains"]["linear"]["auc"]
    assert gain["value"] == pytest.approx(ours - row["scores"]["auc"]["value"])
    assert gain["low"] < gain["value"] < gain["high"]
    assert set(compared["gains"]) == {"linear", "full", "file metadata", "16×16 thumbnail"}


@pytest.mark.slow
def test_the_record_stands_in_study_and_mlflow_with_a_picture(duel, compared, tmp_path):
    _, parent = runs_below(duel)
    noted = read_study("duel", duel.workspace).notes["baseline_val"]
    assert noted == compared
    assert Comparison.from_dict(noted).to_dict() == noted
    names = {item.path for item in client(duel).list_artifacts(parent)}
    assert {"baseline-val.json", "baseline-val.png", "baseline-val.svg"} <= names
    logged = client(duel).get_run(parent).data.metrics
    assert logged["baseline.val.full.auc"] == compared["rows"][2]["scores"]["auc"]["value"]
    svg = Path(client(duel).download_artifacts(parent, "baseline-val.svg", str(tmp_path))).read_text()
    assert "full fine-tune" in svg
    assert "gain in AUC" in svg


@pytest.mark.slow
def test_a_second_call_trains_nothing_and_one_that_lost_a_run_trains_that(duel, compared, tmp_path):
    again = duel.run(*COMMAND, "--out", str(tmp_path / "out"))
    assert again.returncode == 0, again.stderr
    assert "epoch" not in again.stderr
    assert max(map(len, again.stdout.splitlines())) <= 80
    assert "LoRA - full fine-tune" in again.stdout
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        f"baseline-val.{end}" for end in ("json", "png", "svg")
    }
    lost = compared["rows"][2]["runs"][1]
    client(duel).delete_run(lost)
    done = duel.run(*COMMAND, "--json")
    assert done.stderr.count("epoch 1/1") == 1
    assert "full, seed-2" in done.stderr
    found = json.loads(done.stdout)
    assert found["gains"] == compared["gains"]
    assert [row["scores"] for row in found["rows"]] == [row["scores"] for row in compared["rows"]]
    assert found["rows"][2]["runs"][1] != lost


@pytest.mark.slow
def test_a_strategy_that_gives_no_result_is_said_and_the_others_are_compared(duel, compared, monkeypatch):
    real = training_room.run_experiment

    def fails(job, *more):
        if job.config.model.strategy == "full":
            raise NotFinite("the loss is nan")
        return real(job, *more)

    monkeypatch.setattr(training_room, "run_experiment", fails)
    found = duel.json("baseline", "--study", "duel", "--data", "more", "--seeds", "3", "--rates", "2")
    row = next(row for row in found["rows"] if row["key"] == "full")
    assert (row["scores"], "the loss is nan" in row["failed"]) == ({}, True)
    assert set(found["gains"]) == {"linear", "file metadata", "16×16 thumbnail"}
    assert found["rows"][0]["runs"][:2] == compared["rows"][0]["runs"]


@pytest.mark.slow
def test_a_trial_keeps_the_intervals_of_its_recorded_predictions(duel):
    trial = read_study("duel", duel.workspace).best
    path = client(duel).download_artifacts(trial.notes["mlflow_run"], "val_predictions.csv")
    rows = list(csv.DictReader(Path(path).read_text().splitlines()))
    data = replace(load_study(find_study("duel", duel.workspace)).config.data, root=str(duel.workspace.root / "more"))
    groups = {film.path: film.group for film in prepared(data, duel.workspace).of("val")}
    labels, said = ([float(row[name]) for row in rows] for name in ("label", "probability"))
    found = scored(Cases(np.array(labels), np.array(said)), Patients([groups[row["film"]] for row in rows]), 0.5)
    for score in ("f1", "auc"):
        assert interval_of(trial, score) == pytest.approx((found[score].low, found[score].high))
    shown = duel.run("compare", "duel").stdout
    assert "confirmed: trial 0 has F1" in shown
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.slow
def test_the_test_split_is_opened_behind_finalize_once(duel, compared, monkeypatch):
    sealed = duel.run(*COMMAND, "--split", "test")
    assert (sealed.returncode, sealed.stderr.count("\n")) == (2, 1)
    assert "run xray-opt finalize first" in sealed.stderr
    record = read_study("duel", duel.workspace)
    assert openings(record) == []
    best = record.best.notes["mlflow_run"]
    assert duel.run("finalize", "--model", f"runs:/{best}", "--data", "more", "--device", "cpu").returncode == 0

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("xray_opt.baseline.comparing.cases_of", killed)
        assert duel.run(*COMMAND, "--split", "test", "--why", "to show").returncode == 130
    assert [one.by for one in openings(read_study("duel", duel.workspace))] == ["finalize", "baseline"]
    found = duel.json(*COMMAND, "--split", "test")
    opened = openings(read_study("duel", duel.workspace))
    assert [one.by for one in opened] == ["finalize", "baseline"], "the lost one went on"
    assert (opened[1].why, opened[1].trial) == ("to show", compared["trial"])
    assert opened[1].scores["test.auc"] == found["rows"][0]["scores"]["auc"]["value"]
    assert found["films"] != compared["films"]
    again = duel.run(*COMMAND, "--split", "test", "--json")
    assert "this is the record" in again.stderr
    assert json.loads(again.stdout) == found
    assert len(openings(read_study("duel", duel.workspace))) == 2
    assert len(duel.json("compare", "duel")["test_openings"]) == 2
    shown = " ".join(duel.run("compare", "duel").stdout.split())
    assert "once for the chosen model, and then by baseline, to compare what was chosen and trained before" in shown


@pytest.mark.slow
def test_what_says_nothing_is_one_line(duel):
    none = duel.run("baseline", "--study", "tiny")
    assert (none.returncode, none.stderr.count("\n")) == (6, 1)
    assert "tune first" in none.stderr
    with sole_lock(storage_url(duel.workspace), ":baseline:duel") as held:
        busy = duel.run(*COMMAND)
    assert held
    assert (busy.returncode, busy.stderr.count("\n")) == (6, 1)
    assert "being compared already" in busy.stderr
