"""Confirmation: what retrainings say of settings, by numbers; and the whole of it on a study with a lucky trial."""

import json
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from conftest import Place, make_place, put_phantoms
from scipy.stats import t as student

from xray_opt.cli.confirm import told
from xray_opt.config import TrackingConfig
from xray_opt.confirm import Retrained, judge
from xray_opt.confirm.judging import Candidate
from xray_opt.errors import DataError
from xray_opt.intervals import Gain, Patients
from xray_opt.mlflow_client import connect
from xray_opt.tuning import read_study, storage_url
from xray_opt.tuning.locks import sole_lock

#: A loss that weighs pneumonia learns to call it, one that hardly weighs it never does: a good and a bad setting that
#: one epoch tells apart. Enough validation patients for an interval.
LUCKY = """
name: lucky
config:
  data: {train_fraction: 0.3, val_fraction: 0.6, test_fraction: 0.1, train_films: 24}
  image: {size: 32}
  model: {base: random, batch_norm: train}
  lora: {rank: 4, stages: late}
  optimizer: {learning_rate: 3.0e-3}
  training: {epochs: 1, batch_size: 8, device: cpu}
  tracking: {system_interval: 0.0}
space:
  loss.alpha: {type: float, low: 0.01, high: 0.95}
pruner: {name: none}
enqueue:
  - {loss.alpha: 0.9}
  - {loss.alpha: 0.02}
"""


def predictions(rng, labels, skill):
    """Which films are called pneumonia by a model that is right with this chance."""
    return np.where(rng.random(len(labels)) < skill, labels == 1, labels != 1)


def f1(labels, called):
    return float(2 * (called & (labels == 1)).sum() / (called.sum() + labels.sum()))


def candidate(rng, trial, labels, skill, seeds=4, search=None, **more):
    runs = tuple(
        Retrained(f"run-{trial}-{n}", f1(labels, called), called)
        for n, called in enumerate(predictions(rng, labels, skill) for _ in range(seeds))
    )
    seen = f1(labels, predictions(rng, labels, skill)) if search is None else search
    return Candidate(trial, {"lora.rank": trial}, seen, runs, **more)


@pytest.fixture
def films():
    rng = np.random.default_rng(0)
    return rng, (rng.random(300) < 0.7).astype(int), Patients([f"p{n // 2}" for n in range(300)])


def test_a_lucky_trial_is_not_chosen(films):
    rng, labels, patients = films
    lucky, good = candidate(rng, 7, labels, 0.80, search=0.99), candidate(rng, 3, labels, 0.93)
    verdict = judge("s", [lucky, good], labels, patients)
    assert (verdict.winner, verdict.runner_up) == (3, 7)
    found = verdict.of(7)
    assert found.gap.low < found.gap.value < found.gap.high
    assert found.gap.low > 0.05, "the search promised what no seed keeps"
    assert verdict.of(3).gap.low < 0.03
    assert verdict.lead.low > 0
    assert verdict.lead.p < 0.01


def test_gap_and_lead_of_two_scores_are_at_most_one(films):
    """Two seeds far apart have one degree of freedom: a gap was "-5.758 to 5.561"."""
    rng, labels, patients = films
    apart = [tuple(candidate(rng, n, labels, skill, seeds=1).seeds[0] for skill in (0.05, 0.99)) for n in (0, 1)]
    verdict = judge("s", [Candidate(n, {}, 0.9, apart[n][:: 1 - 2 * n]) for n in (0, 1)], labels, patients)
    for one in (verdict.of(0).gap, verdict.lead):
        assert (one.low, one.high) == (-1.0, 1.0)


def test_the_search_score_plays_no_part_in_the_choice(films):
    _, labels, patients = films
    verdicts = []
    for search in (0.1, 0.999):
        rng = np.random.default_rng(5)
        pair = [candidate(rng, 0, labels, 0.9, search=search), candidate(rng, 1, labels, 0.85, search=0.9)]
        verdicts.append(judge("s", pair, labels, patients))
    assert verdicts[0].winner == verdicts[1].winner == 0
    assert verdicts[0].lead == verdicts[1].lead


def test_among_many_the_search_picks_luck_and_confirmation_picks_skill():
    """Ten settings, one better; the search's best is often another one, its score too high on the average."""
    rng = np.random.default_rng(1)
    labels, patients = (rng.random(200) < 0.7).astype(int), Patients([str(n) for n in range(200)])
    by_search, by_confirmation, gaps = 0, 0, []
    for _ in range(25):
        some = [candidate(rng, n, labels, 0.93 if n == 4 else 0.90, seeds=6) for n in range(10)]
        verdict = judge("s", some, labels, patients)
        luckiest = max(some, key=lambda one: one.search)
        by_search += luckiest.trial == 4
        by_confirmation += verdict.winner == 4
        gaps.append(verdict.of(luckiest.trial).gap.value)
    assert by_confirmation > by_search
    assert by_confirmation >= 20
    assert np.mean(gaps) > 2 * np.std(gaps) / np.sqrt(len(gaps)), "the winner's curse"


def test_seeds_that_agree_by_luck_do_not_decide():
    """One of three settings is better by .02, seeds spread by .015: the spread of three seeds is mostly luck."""
    rng = np.random.default_rng(3)
    patients, found = Patients([str(n) for n in range(400)]), 0
    for _ in range(50):
        labels, hard = (rng.random(400) < 0.7).astype(int), rng.random(400)
        some = []
        for trial, skill in enumerate((0.90, 0.92, 0.90)):
            calls = [np.where(hard < skill + rng.normal(0, 0.015), labels == 1, labels != 1) for _ in range(3)]
            runs = tuple(Retrained(f"{trial}-{n}", f1(labels, called), called) for n, called in enumerate(calls))
            some.append(Candidate(trial, {}, 0.9, runs))
        found += judge("s", some, labels, patients).winner == 1
    assert found >= 37, "an interval from each setting's own three seeds finds it in about 55 %"


def test_equal_settings_are_rarely_told_apart():
    rng = np.random.default_rng(2)
    labels, patients = (rng.random(200) < 0.7).astype(int), Patients([str(n) for n in range(200)])
    alarms = sum(
        judge("s", [candidate(rng, n, labels, 0.9) for n in (0, 1)], labels, patients).lead.p < 0.05 for _ in range(60)
    )
    assert alarms <= 8


def test_the_interval_adds_patients_and_seeds(films):
    rng, labels, patients = films
    one = candidate(rng, 0, labels, 0.9, seeds=5)
    same = Candidate(1, {}, 0.9, (one.seeds[0],) * 5)
    found, without = (judge("s", [x], labels, patients).settings[0] for x in (one, same))
    assert without.confirmed.value == pytest.approx(one.seeds[0].f1)
    assert without.gap.low is None, "seeds that agree wholly have no spread"
    spread = [run.f1 for run in one.seeds]
    assert found.confirmed.value == pytest.approx(np.mean(spread))
    half = student.ppf(0.975, 4) * np.std(spread, ddof=1) * np.sqrt(1 + 1 / 5)
    assert found.gap.high - found.gap.value == pytest.approx(half)
    assert found.confirmed.low < found.confirmed.value < found.confirmed.high < 1


def test_resplit_intervals_are_wider_than_those_of_independent_runs(films):
    rng, labels, patients = films
    splits = tuple(Retrained(f"s{n}", value) for n, value in enumerate([0.90, 0.88, 0.93, 0.86]))
    one = candidate(rng, 0, labels, 0.95, splits=splits)
    found = judge("s", [one], labels, patients, films=(800, 100)).settings[0]
    spread = np.std([run.f1 for run in splits], ddof=1)
    half = student.ppf(0.975, 3) * spread * np.sqrt(1 / 4 + 1 / 8)
    assert found.resplit.high - found.resplit.value == pytest.approx(half)
    assert found.lower == min(found.confirmed.low, found.resplit.low)
    alike = candidate(rng, 0, labels, 0.95, splits=(Retrained("a", 0.8), Retrained("b", 0.8)))
    assert judge("s", [alike], labels, patients).settings[0].lower == 0.8


def test_a_setting_that_failed_or_has_too_few_patients_counts_for_nothing(films):
    rng, labels, patients = films
    broken = candidate(rng, 0, labels, 0.99, failed="seed-2 gave no result: nan")
    sound = candidate(rng, 1, labels, 0.9)
    verdict = judge("s", [broken, sound], labels, patients)
    assert (verdict.winner, verdict.runner_up, verdict.lead) == (1, None, None)
    few = judge("s", [sound], labels, Patients(["p"] * 300))
    assert (few.winner, few.settings[0].lower) == (None, None)
    assert "too few patients" in few.settings[0].confirmed.why


def erring(trial, labels, *errors):
    """A setting whose seeds call so many of the films with pneumonia wrong, others each."""
    sick, runs = np.flatnonzero(labels == 1), []
    for seed, count in enumerate(errors):
        called = labels == 1
        called[sick[10 * seed : 10 * seed + count]] = False
        runs.append(Retrained(f"run-{trial}-{seed}", f1(labels, called), called))
    return Candidate(trial, {}, 0.9, tuple(runs))


def test_a_perfect_setting_wins(films):
    """It had no interval, so it counted for nothing and one of F1 .92 won."""
    _, labels, patients = films
    good = erring(3, labels, *(int(0.15 * labels.sum()),) * 3)
    assert good.seeds[0].f1 == pytest.approx(0.92, abs=0.01)
    verdict = judge("s", [good, erring(7, labels, 0, 0, 0)], labels, patients)
    assert (verdict.winner, verdict.runner_up) == (7, 3)
    best = verdict.of(7)
    assert (best.confirmed.value, best.confirmed.high) == (1.0, 1.0)
    assert best.lower == best.confirmed.low > verdict.of(3).confirmed.high
    assert verdict.lead.low > 0
    # Clopper and Pearson's bound for so many patients with pneumonia, turned into F1.
    least = 0.025 ** (1 / patients.having(labels == 1))
    assert best.lower == pytest.approx(2 * least / (1 + least), abs=0.002)


def test_where_all_are_perfect_there_is_a_winner(films):
    _, labels, patients = films
    verdict = judge("s", [erring(trial, labels, 0, 0) for trial in (4, 2)], labels, patients)
    assert (verdict.winner, verdict.runner_up) == (4, 2), "among equals the search's best"
    assert 0.95 < verdict.of(4).lower < 1
    assert "both call every film alike" in verdict.lead.why


def test_every_error_costs_a_setting(films):
    """Beside others that spread or agree: none is better off with one error more."""
    rng, labels, patients = films
    for others in ([], [candidate(rng, 9, labels, 0.9, seeds=3)], [erring(9, labels, 5, 5, 5)]):
        steps = [(0, 0, 0), (1, 0, 0), (1, 1, 0), (1, 1, 1), (2, 1, 1), (2, 2, 1)]
        some = [erring(number, labels, *errors) for number, errors in enumerate(steps)]
        verdict = judge("s", [*some, *others], labels, patients)
        lower = [verdict.of(number).lower for number in range(len(steps))]
        assert sorted(lower, reverse=True) == lower
        assert len(set(lower)) == len(lower)
        assert verdict.winner == 0


def test_a_setting_that_finds_nothing_counts_for_nothing_but_has_an_interval(films):
    _, labels, patients = films
    nothing = Retrained("r", 0.0, np.zeros(len(labels), bool))
    verdict = judge("s", [Candidate(0, {}, 0.9, (nothing, nothing))], labels, patients)
    found = verdict.settings[0]
    assert (verdict.winner, found.confirmed.value, found.confirmed.low, found.lower) == (None, 0.0, 0.0, 0.0)
    assert 0 < found.confirmed.high < 0.1


def test_very_uncertain_settings_are_still_in_order(films):
    """Two seeds each that agree in nothing: no lower end is cut off at 0, where the search's would win."""
    rng, labels, patients = films
    settings = []
    for trial, skills in enumerate(((0.3, 0.7), (0.6, 0.99))):
        calls = [predictions(rng, labels, skill) for skill in skills]
        runs = tuple(Retrained(f"{trial}-{n}", f1(labels, called), called) for n, called in enumerate(calls))
        settings.append(Candidate(trial, {}, 0.9, runs))
    verdict = judge("s", settings, labels, patients)
    assert verdict.winner == 1
    assert 0 < verdict.of(0).lower < verdict.of(1).lower < 0.5


def test_a_lead_of_the_runner_up_is_said_so():
    assert told(Gain(0.02, 0.01, 0.03, 0.001)) == "the lead is beyond chance"
    assert "the runner-up is better; the re-drawn splits decided" in told(Gain(-0.02, -0.03, -0.01, 0.001))
    assert told(Gain(0.02, -0.01, 0.05, 0.3)) == told(Gain(0.02)) == "the two are not told apart"


def test_the_median_seed_stands_for_the_setting(films):
    _, labels, patients = films
    called = labels == 1
    runs = tuple(Retrained(f"r{value}", value, called) for value in (0.9, 0.7, 0.95, 0.8))
    assert judge("s", [Candidate(0, {}, 0.9, runs)], labels, patients).settings[0].run == "r0.8"


@pytest.fixture(scope="module")
def lucky(tmp_path_factory) -> Place:
    """A finished study in which a setting that learns nothing got the best score by luck: its stored one."""
    place = make_place(tmp_path_factory.mktemp("lucky") / "own")
    put_phantoms(place.workspace.root / "more", 90, 3)
    (place.workspace.studies / "lucky.yaml").write_text(LUCKY)
    done = place.run("tune", "--study", "lucky", "--data", "more", "--trials", "2")
    assert done.returncode == 0, done.stderr
    with sqlite3.connect(place.workspace.study_database) as database:
        # What a lucky seed and lucky films may give once, and no retraining again.
        database.execute(
            "UPDATE trial_values SET value = 0.999 WHERE trial_id = (SELECT t.trial_id FROM trials t "
            "JOIN studies s ON s.study_id = t.study_id WHERE s.study_name = 'lucky' AND t.number = 1)"
        )
    assert read_study("lucky", place.workspace).best.number == 1
    return place


@pytest.fixture(scope="module")
def confirmed(lucky) -> dict:
    return lucky.json("confirm", "--study", "lucky", "--data", "more", "--top", "2", "--seeds", "2")


def retrainings(place):
    record = read_study("lucky", place.workspace)
    client = connect(TrackingConfig(), place.workspace).client
    parent = record.notes["mlflow_parent"]
    experiment = client.get_run(parent).info.experiment_id
    runs = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'")
    return [run for run in runs if "xray_opt.confirms" in run.data.tags]


@pytest.mark.slow
def test_the_planted_lucky_trial_is_not_chosen(confirmed):
    lucky, good = confirmed["settings"]
    assert (lucky["trial"], lucky["search"], good["trial"]) == (1, 0.999, 0)
    assert confirmed["winner"] == 0
    assert lucky["gap"]["value"] > 0.05
    assert lucky["confirmed"]["value"] < good["confirmed"]["value"]
    assert good["lower"] == good["confirmed"]["low"] > (lucky["lower"] or 0.0)


@pytest.mark.slow
def test_retrainings_are_runs_below_the_study_with_seeds_of_their_own(lucky, confirmed):
    runs = retrainings(lucky)
    named = sorted((run.data.tags["xray_opt.confirms"], run.data.tags["xray_opt.confirmation"]) for run in runs)
    assert named == [("0", "seed-1"), ("0", "seed-2"), ("1", "seed-1"), ("1", "seed-2")]
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert {run.data.params["training.seed"] for run in runs} == {"1", "2"}
    assert all("xray_opt.trial" not in run.data.tags for run in runs), "they are no trials of the search"
    assert read_study("lucky", lucky.workspace).counted == 2
    scores = {run.data.metrics["best.f1"] for run in runs if run.data.tags["xray_opt.confirms"] == "0"}
    assert scores == set(confirmed["settings"][1]["seeds"])


@pytest.mark.slow
def test_a_second_call_does_what_is_missing(lucky, confirmed):
    lost = next(run for run in retrainings(lucky) if run.data.tags["xray_opt.confirmation"] == "seed-2")
    connect(TrackingConfig(), lucky.workspace).client.delete_run(lost.info.run_id)
    done = lucky.run("confirm", "--study", "lucky", "--data", "more", "--top", "2", "--seeds", "2", "--json")
    assert "3 of 4 retrainings are done already" in done.stderr
    again = json.loads(done.stdout)
    scores = [[one["trial"], one["seeds"], one["confirmed"]] for one in again["settings"]]
    assert scores == [[one["trial"], one["seeds"], one["confirmed"]] for one in confirmed["settings"]]


@pytest.mark.slow
def test_splits_are_drawn_anew_without_the_test_and_the_winner_is_promoted_with_the_evidence(lucky, confirmed):
    command = ("confirm", "--study", "lucky", "--data", "more", "--top", "2", "--seeds", "2", "--splits", "2")
    verdict = lucky.json(*command, "--promote")
    winner = next(one for one in verdict["settings"] if one["trial"] == verdict["winner"])
    # So few films and epochs do not tell on other splits which is better; the rule holds whatever they say.
    assert winner["lower"] == max(one["lower"] for one in verdict["settings"])
    assert len(winner["splits"]) == 2
    over_splits = winner["resplit"]["value"] if winner["resplit"]["low"] is None else winner["resplit"]["low"]
    assert winner["lower"] == pytest.approx(min(winner["confirmed"]["low"], over_splits))
    digests = {
        run.data.tags["xray_opt.confirmation"]: run.data.tags["xray_opt.manifest_sha256"] for run in retrainings(lucky)
    }
    assert digests["seed-1"] == digests["seed-2"]
    assert len(set(digests.values())) == 3
    client = connect(TrackingConfig(), lucky.workspace).client
    champion = client.get_model_version_by_alias("xray-pneumonia", "champion")
    assert (str(champion.version), champion.run_id) == (verdict["champion"]["version"], winner["run"])
    assert champion.tags["confirmed.lower"] == f"{winner['lower']:.4f}"
    attached = Path(champion.source.removeprefix("file://")) / "confirmation.json"
    assert json.loads(attached.read_text())["settings"] == verdict["settings"]
    assert lucky.json(*command, "--promote")["champion"] == verdict["champion"], "again is the same"
    assert max(map(len, lucky.run(*command).stdout.splitlines())) <= 80
    assert lucky.run("evaluate", "--model", f"runs:/{winner['run']}", "--data", "more").returncode == 0


@pytest.mark.slow
def test_splits_that_cannot_be_drawn_are_found_before_anything_is_trained(lucky, monkeypatch):
    def refuses(manifest, seed):
        raise DataError("too few patients for another split")

    monkeypatch.setattr("xray_opt.confirm.confirming.redrawn", refuses)
    done = lucky.run("confirm", "--study", "lucky", "--data", "more", "--seeds", "5", "--splits", "2")
    assert done.returncode == 3
    assert "too few patients for another split" in done.stderr
    assert "retraining" not in done.stderr


@pytest.mark.slow
def test_numbers_and_studies_that_say_nothing_are_one_line(lucky):
    none = lucky.run("confirm", "--study", "tiny")
    assert (none.returncode, none.stderr.count("\n")) == (6, 1)
    assert "tune first" in none.stderr
    with sole_lock(storage_url(lucky.workspace), ":confirm:lucky") as held:
        busy = lucky.run("confirm", "--study", "lucky", "--data", "more")
    assert held
    assert (busy.returncode, busy.stderr.count("\n")) == (6, 1)
    assert "being confirmed already" in busy.stderr
    assert lucky.run("confirm", "--study", "lucky", "--data", "more", "--seeds", "1").returncode == 2
    assert "0 or at least 2" in lucky.run("confirm", "--study", "lucky", "--data", "more", "--splits", "1").stderr
