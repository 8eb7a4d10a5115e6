"""Temperature scaling on logits whose temperature is known, and the thresholds that validation fixes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from xray_opt.calibration import COLDEST, HOTTEST, calibrate, fit_temperature, probability
from xray_opt.metrics import Cases, auc, scores, weighted_scores


def films(count, temperature, seed=0):
    """Labels drawn from known probabilities, and logits that are ``temperature`` times too large."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0.5, 2.0, count)
    return (rng.random(count) < probability(logits)).astype(int), logits * temperature


@pytest.mark.parametrize("temperature", [0.4, 1.0, 1.7, 6.0])
def test_a_known_temperature_is_found(temperature):
    labels, logits = films(50_000, temperature)
    assert fit_temperature(labels, logits) == pytest.approx(temperature, rel=0.03)


@pytest.mark.parametrize("count", [60, 400, 5000])
def test_it_is_the_least_cross_entropy(count):
    labels, logits = films(count, 2.5, seed=count)
    positives, negatives = labels.sum(), count - labels.sum()
    targets = np.where(labels == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))

    def entropy(log_temperature):
        scaled = logits / np.exp(log_temperature)
        return np.mean(np.logaddexp(0, scaled) - targets * scaled)

    theirs = np.exp(minimize_scalar(entropy, bounds=(-3, 3), method="bounded", options={"xatol": 1e-9}).x)
    assert fit_temperature(labels, logits) == pytest.approx(theirs, rel=1e-5)


def test_calibrated_films_are_better_calibrated_and_in_the_same_order():
    labels, logits = films(4000, 3.0)
    fresh_labels, fresh = films(4000, 3.0, seed=1)
    temperature = calibrate(labels, logits).temperature

    def error(values):
        return weighted_scores(Cases(fresh_labels, values), np.ones(len(values)), 0.5)["ece"][0]

    before, after = probability(fresh), probability(fresh, temperature)
    assert error(after) < 0.03 < 0.1 < error(before)
    assert auc(fresh_labels, after) == pytest.approx(auc(fresh_labels, before))
    assert np.array_equal(after >= 0.5, before >= 0.5)


@pytest.mark.parametrize(("labels", "logits"), [([1, 1], [2.0, 3.0]), ([0], [1.0]), ([], [])])
def test_one_class_fixes_nothing(labels, logits):
    assert fit_temperature(labels, np.array(logits)) == 1.0
    assert calibrate(labels, np.array(logits)).threshold == 0.5


def test_films_told_apart_without_an_error_do_not_become_certain():
    labels = np.array([0] * 50 + [1] * 50)
    temperature = fit_temperature(labels, np.where(labels == 1, 4.0, -4.0))
    assert probability(np.array([4.0]), temperature)[0] == pytest.approx(51 / 52, abs=1e-6)


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.floats(-50, 50)), min_size=1, max_size=40))
def test_whatever_the_logits_the_numbers_are_usable(case):
    labels, logits = (np.array(column) for column in zip(*case, strict=True))
    found = calibrate(labels, logits)
    assert COLDEST <= found.temperature <= HOTTEST
    shares = [found.threshold, *found.thresholds.values()]
    assert all(0 <= share <= 1 for share in shares)
    assert sorted(found.thresholds.values(), reverse=True) == list(found.thresholds.values())


def test_the_thresholds_reach_what_they_are_named_after():
    labels, logits = films(500, 2.0)
    found = calibrate(labels, logits)
    calibrated = probability(logits, found.temperature)
    for name, threshold in found.thresholds.items():
        assert scores(labels, calibrated, threshold).recall >= float(name) - 1e-9
    assert list(found.thresholds)[::25] == ["0.50", "0.75", "1.00"]
