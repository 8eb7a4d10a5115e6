"""Intervals near 0 and 1: exact for shares, finite for every score, and no error is never worse than one."""

import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, norm

from xray_opt.intervals import (
    LEAST,
    Interval,
    Patients,
    gains,
    interval,
    scored,
    share,
    share_gain,
    tallies,
    tally,
    together,
)
from xray_opt.intervals.edges import area, precision_area
from xray_opt.metrics import Cases, weighted_scores

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
from coverage import draw
from coverage_shares import clustered, flips


def alone(count):
    """As many patients with one film each."""
    return Patients([f"p{number:05d}" for number in range(count)])


def flipped(films, patients):
    """The interval of the share of these films, (N,) booleans."""
    return share(tally(films, np.ones(len(films), bool), patients), float(films.mean()), [patients.count])


def first(count, of):
    return np.arange(of) < count


@pytest.mark.parametrize("of", [12, 40, 200])
def test_one_film_a_patient_is_clopper_and_pearson_to_the_digit(of):
    for count in range(of + 1):
        found = flipped(first(count, of), alone(of))
        low = beta.ppf(0.025, count, of - count + 1) if count else 0.0
        high = beta.ppf(0.975, count + 1, of - count) if count < of else 1.0
        assert (found.low, found.high) == (pytest.approx(low, abs=1e-9), pytest.approx(high, abs=1e-9)), count


def test_the_upper_end_grows_with_every_flip():
    """The audit's finding: of 200 films none flipped had an upper end of .0183, and one flipped one of .0164."""
    ends = [flipped(first(count, 200), alone(200)).high for count in range(20)]
    assert ends[:2] == [pytest.approx(0.0183, abs=1e-4), pytest.approx(0.0275, abs=1e-4)]
    assert all(low < high for low, high in pairwise(ends))


@settings(max_examples=40, deadline=None)
@given(st.integers(LEAST, 80), st.integers(0, 2**32 - 1), st.booleans())
def test_no_error_is_never_worse_than_some_and_few_errors_are_in_order(count, seed, whole):
    """Patients of 1 to 4 films; errors come in any order, or patient by patient."""
    rng = np.random.default_rng(seed)
    codes = np.repeat(np.arange(count), rng.integers(1, 5, count))
    patients, wrong = Patients([f"{code:03d}" for code in codes]), np.zeros(len(codes), bool)
    order = np.argsort(rng.permutation(count)[codes], kind="stable") if whole else rng.permutation(len(codes))
    ends = [flipped(wrong, patients).high]
    for film in order:
        wrong[film] = True
        ends.append(flipped(wrong, patients).high)
    assert min(ends) == ends[0]
    # Where every third film is wrong one more can make patients more alike, which narrows the interval as much.
    few = min(9, len(codes) // 5)
    assert all(low < high for low, high in pairwise(ends[: few + 1]))


@pytest.mark.parametrize("sizes", [[50] + [1] * 9, [200] + [2] * 30, [20] * 3 + [1] * 40, [7] * 10])
def test_one_error_is_no_better_than_none_where_a_patient_has_far_more_films(sizes):
    """Of 10 patients, one with 50 films, the lower end was .581 without an error and .636 with one in that patient."""
    patients = Patients([f"{code:03d}" for code, films in enumerate(sizes) for _ in range(films)])
    none = np.zeros(sum(sizes), bool)
    for wrong in (first(1, sum(sizes)), first(2, sum(sizes)), first(1, sum(sizes))[::-1]):
        assert flipped(~wrong, patients).low <= flipped(~none, patients).low + 1e-12
        assert flipped(wrong, patients).high >= flipped(none, patients).high - 1e-12


def test_few_errors_of_one_patient_tell_less_than_those_of_many():
    patients = Patients([f"{number // 4:03d}" for number in range(400)])
    one, many = first(4, 400), np.zeros(400, bool)
    many[::100] = True
    assert flipped(one, patients).high > 1.15 * flipped(many, patients).high
    whole = beta.ppf(0.975, 2, 99)
    assert flipped(one, patients).high == pytest.approx(whole), "1 of 100 patients, wholly"


@pytest.mark.parametrize(
    ("patients", "truth", "most", "alike"), [(200, 0.02, 1, 0), (400, 0.01, 1, 0), (200, 0.02, 4, 0.5)]
)
def test_rare_flips_are_covered_and_a_goal_is_not_met_by_luck(patients, truth, most, alike):
    """What the logit scale covered in 89 of 100: 2,000 sets, of one film a patient and of correlated films."""
    found = flips(patients, truth, most, alike, simulations=2000, resamples=0, seed=3)["ours"]
    assert found["covered"] >= 95 - 1.5
    assert found["below"] <= 2.5 + 1.0, "whole intervals below the truth: 'under 2 %' at a true 2 %"


def test_simulated_flips_are_as_frequent_and_as_alike_as_they_should_be():
    counts, films = clustered(np.random.default_rng(0), (4000, 50), 0.1, 4, 0.5)
    assert counts.sum() / films.sum() == pytest.approx(0.1, abs=0.004)
    assert set(np.unique(films)) == {1, 2, 3, 4}
    pairs = counts[films == 2]
    assert (pairs == 2).mean() == pytest.approx(0.1 * 0.1 + 0.5 * 0.09, abs=0.005)


def test_f1_is_the_share_of_hits_in_what_is_positive_or_called_so():
    rng = np.random.default_rng(0)
    labels = np.repeat((rng.random(120) < 0.6).astype(int), 2)
    cases, patients = Cases(labels, np.clip(0.5 + 0.3 * (labels - 0.5) + rng.normal(0, 0.2, 240), 0, 1)), alone(240)
    hits = tallies(cases, patients, 0.5)["f1"].hits.sum()
    plain = weighted_scores(cases, np.ones(240), 0.5)["f1"][0]
    assert 2 * hits / (1 + hits) == pytest.approx(plain)
    found = scored(cases, patients, 0.5, resamples=100)["f1"]
    assert found.low < found.value < found.high


@pytest.mark.parametrize("right", [True, False])
def test_the_calibration_error_of_a_model_without_any_doubt_is_not_known_for_certain(right):
    """Its films are all right, or all wrong, so the error is that of a share: no interval of no length."""
    labels = np.arange(40) % 2
    found = scored(Cases(labels, (labels if right else 1 - labels).astype(float)), alone(40), 0.5, resamples=50)
    ends = (found["ece"].value, found["ece"].low, found["ece"].high)
    assert ends == ((0.0, 0.0, pytest.approx(1 - 0.025 ** (1 / 40))) if right else (1.0, 0.025 ** (1 / 40), 1.0))
    assert ends == (found["brier"].value, found["brier"].low, found["brier"].high)


def test_where_all_films_are_right_every_score_has_a_finite_interval():
    labels = np.array([0, 1] * 40)
    found = scored(Cases(labels, labels.astype(float), np.linspace(0.005, 0.015, 80)), alone(80), 0.5, resamples=100)
    exact = beta.ppf(0.025, 40, 1)  # Clopper and Pearson's lower bound for 40 of 40
    assert (found["sensitivity"].low, found["sensitivity"].high) == (pytest.approx(exact), 1.0)
    assert (found["f1"].low, found["f1"].high) == (pytest.approx(2 * exact / (1 + exact)), 1.0)
    assert (found["auc"].value, found["auc"].low, found["auc"].high) == (1.0, area(40, 40), 1.0)
    assert (found["auprc"].low, found["auprc"].high) == (precision_area(40, 40), 1.0)
    assert (found["brier"].low, found["brier"].high) == (0.0, pytest.approx(1 - 0.025 ** (1 / 80)))
    assert {name for name, one in found.items() if one.low is None or one.high is None} == set()
    assert 0.9 < found["auprc"].low < found["auc"].low < found["f1"].low < 1


@pytest.mark.parametrize("loss", [0.01, 0.1, np.log(2)])
def test_a_loss_that_rounding_alone_moves_has_no_interval(loss):
    labels = np.array([0, 1] * 40)
    found = scored(Cases(labels, np.full(80, 0.5), np.full(80, loss)), alone(80), 0.5, resamples=100)["loss"]
    assert (found.value, found.low, found.why) == (pytest.approx(loss), None, "it is the same in every resample")


def test_where_all_films_are_wrong_ends_are_finite_too():
    labels = np.array([0, 1] * 40)
    found = scored(Cases(labels, 1.0 - labels), alone(80), 0.5, resamples=100)
    assert (found["f1"].value, found["f1"].low) == (0.0, 0.0)
    assert 0.05 < found["f1"].high < 0.15
    assert (found["auc"].low, found["auc"].high) == (0.0, pytest.approx(1 - area(40, 40)))
    assert found["brier"].low == pytest.approx(0.025 ** (1 / 80))


@settings(max_examples=30, deadline=None)
@given(st.integers(LEAST, 60), st.integers(LEAST, 60), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_a_model_that_errs_is_never_better_off_than_a_perfect_one(positives, negatives, errors, seed):
    rng = np.random.default_rng(seed)
    labels = np.repeat([1, 0], [positives, negatives])
    perfect = np.where(labels == 1, 0.7, 0.1) + 0.2 * rng.random(len(labels))
    wrong = perfect.copy()
    wrong[rng.permutation(len(labels))[:errors]] = rng.random(errors)
    best, worse = (scored(Cases(labels, p), alone(len(labels)), 0.5, resamples=200) for p in (perfect, wrong))
    for name in ("f1", "auc", "auprc", "accuracy", "sensitivity", "specificity"):
        assert worse[name].low <= best[name].low, name
        assert worse[name].low <= worse[name].value <= worse[name].high, name


@pytest.mark.parametrize(("positives", "negatives"), [(420, 180), (50, 50), (10, 10), (10, 200)])
@pytest.mark.parametrize("width", [0.25, 0.5, 1.0, 2.0, 4.0])
def test_a_model_whose_auc_is_the_bound_rarely_looks_perfect(positives, negatives, width):
    """Normal scores; the negatives' are ``width`` times as wide as the positives'."""
    rng, bound = np.random.default_rng(0), area(positives, negatives)
    apart = norm.ppf(bound) * np.sqrt(1 + width**2)
    lowest = apart + norm.ppf(1 - rng.random(20_000) ** (1 / positives))
    highest = width * norm.ppf(rng.random(20_000) ** (1 / negatives))
    assert (lowest > highest).mean() < 0.035
    assert bound > 0.025 ** (1 / min(positives, negatives)), "the bound without any assumption is farther away"


def test_bounds_of_a_perfect_ranking_near_one_with_more_patients_of_the_rarer_class():
    for bound in (area, precision_area):
        assert bound(50, 50) < bound(100, 100) < bound(1000, 1000) < 1
    assert area(30, 300) == area(300, 30)
    assert precision_area(30, 300) < precision_area(300, 30), "a high negative costs more where positives are rare"
    assert area(LEAST, LEAST) > 0.5


def test_too_few_patients_still_have_no_interval():
    few = LEAST - 1
    assert "too few patients" in flipped(first(0, few), alone(few)).why
    assert "too few patients" in interval("auc", 1.0, np.ones(100), [few, 50]).why
    nobody = tally(first(0, 50), first(0, 50), alone(50))
    assert share(nobody, 0.0, [0]) == Interval(
        0.0, why=f"too few patients for an interval: 0, at least {LEAST} are needed"
    )
    assert share_gain(nobody, nobody, 0.0, [0, 0]).why


def test_seeds_are_joined_film_by_film():
    patients, every = alone(100), np.ones(100, bool)
    seeds = [tally(first(count, 100), every, patients) for count in (2, 4, 6)]
    joined = together(seeds)
    assert joined.hits.sum() == pytest.approx(0.04)
    one = share(joined, 0.04, [100])
    assert share(seeds[0], 0.02, [100]).high < one.high < share(seeds[2], 0.06, [100]).high
    assert share(together([seeds[1]] * 3), 0.04, [100]) == share(seeds[1], 0.04, [100])


def test_models_that_differ_on_few_patients_are_rarely_told_apart():
    """Three more errors of one model are nothing: the plain normal test says p .08, a fourth one .043."""
    patients, every = alone(200), np.ones(200, bool)
    ours = tally(every, every, patients)
    found = [share_gain(ours, tally(~first(n, 200), every, patients), n / 200, [200, 200]) for n in range(8)]
    assert (found[0].p, found[0].low) == (1.0, -found[0].high)
    assert found[4].low < 0 < found[4].high, "McNemar's mid-p is .0625"
    assert found[4].p > 0.05 > found[6].p
    assert all(before.p > after.p for before, after in pairwise(found))
    assert all((one.p < 0.05) == (one.low > 0) for one in found)


def test_paired_tests_of_a_share_cry_wolf_as_often_as_they_say():
    rng, alarms = np.random.default_rng(1), 0
    for _ in range(1500):
        (ours, theirs), whose = draw(rng, 150, 0.9, models=2)
        patients = Patients([f"{one:04d}" for one in whose])
        ours, theirs = (tallies(cases, patients, 0.5)["specificity"] for cases in (ours, theirs))
        alarms += share_gain(ours, theirs, float(ours.hits.sum() - theirs.hits.sum()), [LEAST]).p < 0.05
    assert alarms / 1500 <= 0.05 + 0.015


def test_gains_of_shares_agree_with_their_scores():
    rng = np.random.default_rng(2)
    labels = np.repeat([1, 0], 60)
    ours, theirs = (Cases(labels, np.clip(labels * 0.4 + 0.6 * rng.random(120), 0, 1)) for _ in range(2))
    found = gains(ours, theirs, alone(120), (0.5, 0.6), resamples=200)
    plain = [weighted_scores(cases, np.ones(120), at) for cases, at in ((ours, 0.5), (theirs, 0.6))]
    for name in ("accuracy", "precision", "sensitivity", "specificity"):
        assert found[name].value == pytest.approx(plain[0][name][0] - plain[1][name][0])
        assert found[name].low < found[name].value < found[name].high
