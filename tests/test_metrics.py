"""The scores against scikit-learn, also under weights, and the thresholds against brute force."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from xray_opt.loss import FocalLoss
from xray_opt.metrics import (
    BINS,
    Cases,
    auc,
    best_threshold,
    focal_losses,
    highest_threshold,
    scores,
    weighted_scores,
)

cases = st.lists(st.tuples(st.booleans(), st.integers(0, 20)), min_size=1, max_size=60)


def arrays(case):
    labels = np.array([label for label, _ in case], int)
    return labels, np.array([value for _, value in case]) / 20


@settings(deadline=None)
@given(cases, st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]))
def test_scores_equal_scikit_learn(case, threshold):
    labels, probabilities = arrays(case)
    ours = scores(labels, probabilities, threshold)
    chosen = (probabilities >= threshold).astype(int)
    assert ours.f1 == pytest.approx(reference.f1_score(labels, chosen, zero_division=0))
    assert ours.accuracy == pytest.approx(reference.accuracy_score(labels, chosen))
    assert ours.precision == pytest.approx(reference.precision_score(labels, chosen, zero_division=0))
    assert ours.recall == pytest.approx(reference.recall_score(labels, chosen, zero_division=0))


@settings(deadline=None)
@given(cases)
def test_auc_equals_scikit_learn_also_with_ties(case):
    labels, probabilities = arrays(case)
    if labels.min() == labels.max():
        assert np.isnan(auc(labels, probabilities))
    else:
        assert auc(labels, probabilities) == pytest.approx(reference.roc_auc_score(labels, probabilities))


@settings(deadline=None)
@given(cases)
def test_best_threshold_reaches_the_highest_f1_of_all(case):
    labels, probabilities = arrays(case)
    if labels.min() == labels.max():
        assert best_threshold(labels, probabilities) == 0.5
        return
    reached = scores(labels, probabilities, best_threshold(labels, probabilities)).f1
    assert reached == pytest.approx(max(scores(labels, probabilities, t).f1 for t in np.unique(probabilities)))


def test_best_threshold_lies_between_two_probabilities():
    assert best_threshold([0, 0, 1, 1], [0.1, 0.2, 0.6, 0.9]) == pytest.approx(0.4)


def test_large_inputs_keep_their_precision():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 200_000)
    values = rng.normal(labels * 0.5)
    assert auc(labels, values) == pytest.approx(reference.roc_auc_score(labels, values), abs=1e-12)


def test_nothing_chosen_scores_zero_without_a_warning():
    result = scores([1, 1, 0], [0.1, 0.2, 0.3], threshold=0.9)
    assert (result.f1, result.precision, result.recall) == (0.0, 0.0, 0.0)
    assert result.accuracy == pytest.approx(1 / 3)


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 20), st.integers(0, 3)), min_size=2, max_size=50))
def test_weighted_scores_equal_scikit_learn(case):
    labels, probabilities = arrays([(label, value) for label, value, _ in case])
    weights = np.array([weight for *_, weight in case], float)
    if {*labels[weights > 0]} != {0, 1}:
        return
    ours = {
        name: values[1] for name, values in weighted_scores(Cases(labels, probabilities), both(weights), 0.5).items()
    }
    chosen, kept = (probabilities >= 0.5).astype(int), {"sample_weight": weights}
    assert ours == pytest.approx(
        {
            "f1": reference.f1_score(labels, chosen, zero_division=0, **kept),
            "auc": reference.roc_auc_score(labels, probabilities, **kept),
            "accuracy": reference.accuracy_score(labels, chosen, **kept),
            "precision": reference.precision_score(labels, chosen, zero_division=0, **kept),
            "sensitivity": reference.recall_score(labels, chosen, **kept),
            "specificity": reference.recall_score(labels, chosen, pos_label=0, **kept),
            "auprc": reference.average_precision_score(labels, probabilities, **kept),
            "brier": reference.brier_score_loss(labels, probabilities, **kept),
            "ece": calibration_error(labels, probabilities, weights),
        }
    )


def both(weights):
    """Two weightings at once: one must not touch the other."""
    return np.stack([np.ones_like(weights), weights])


def calibration_error(labels, probabilities, weights):
    """Guo et al. 2017, equation 3, bin by bin."""
    places, error = np.minimum((probabilities * BINS).astype(int), BINS - 1), 0.0
    for place in range(BINS):
        inside = places == place
        if weights[inside].sum() > 0:
            confidence = np.average(probabilities[inside], weights=weights[inside])
            accuracy = np.average(labels[inside], weights=weights[inside])
            error += weights[inside].sum() / weights.sum() * abs(confidence - accuracy)
    return error


def test_a_perfectly_and_a_badly_calibrated_model():
    rng = np.random.default_rng(0)
    truth = rng.random(200_000)
    labels = (rng.random(200_000) < truth).astype(int)
    assert weighted_scores(Cases(labels, truth), np.ones(200_000), 0.5)["ece"][0] < 0.01
    certain = np.where(truth < 0.5, 0.0, 1.0)  # right in three of four cases, and always certain
    assert weighted_scores(Cases(labels, certain), np.ones(200_000), 0.5)["ece"][0] == pytest.approx(0.25, abs=0.01)


def test_a_missing_class_makes_what_needs_it_undefined():
    labels, weights = np.array([0, 1, 1]), np.array([[0, 1, 1], [1, 0, 0]])
    cases = Cases(labels, np.array([0.2, 0.9, 0.4]), kinds={"virus": np.array([False, True, False])})
    found = weighted_scores(cases, weights, 0.5)
    undefined = {name: [bool(np.isnan(value)) for value in values] for name, values in found.items()}
    assert undefined == {
        **{name: [False, False] for name in ("accuracy", "precision", "brier", "ece")},
        **{name: [False, True] for name in ("f1", "sensitivity", "sensitivity.virus", "auprc")},
        "specificity": [True, False],
        "auc": [True, True],
    }
    assert (found["sensitivity"][0], found["sensitivity.virus"][0]) == (0.5, 1.0)


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.floats(-30, 30)), min_size=1, max_size=30), st.floats(0.1, 0.9))
def test_focal_losses_are_those_of_training(case, alpha):
    labels, logits = (np.array(column, float) for column in zip(*case, strict=True))
    theirs = FocalLoss(alpha, 2.0)(torch.from_numpy(logits), torch.from_numpy(labels)).item()
    assert focal_losses(labels, logits, alpha, 2.0).mean() == pytest.approx(theirs, rel=1e-9)
    cases = Cases(labels.astype(int), np.full(len(labels), 0.5), focal_losses(labels, logits, alpha, 2.0))
    assert weighted_scores(cases, np.ones(len(labels)), 0.5)["loss"][0] == pytest.approx(theirs, rel=1e-9)


@settings(deadline=None)
@given(cases, st.integers(50, 100))
def test_no_higher_threshold_reaches_the_wanted_sensitivity(case, percent):
    labels, probabilities = arrays(case)
    threshold = highest_threshold(labels, probabilities, percent / 100)
    if not labels.any():
        assert threshold == 0.5
        return
    wanted = percent / 100 - 1e-9
    assert scores(labels, probabilities, threshold).recall >= wanted
    higher = [value for value in np.append(np.unique(probabilities), 1.01) if value > threshold]
    # The next probability above the threshold is itself still called; the one after it is one film too few.
    assert all(scores(labels, probabilities, value).recall < wanted for value in higher[1:])


@pytest.mark.parametrize("highest", [1.0, 0.9, 0.5])
def test_a_threshold_parts_neighbouring_floats(highest):
    """A very sure network has probabilities next to 1 that differ in the last bit alone; their mean is one of them."""
    values = [highest]
    for _ in range(6):
        values.insert(0, float(np.nextafter(values[0], 0)))
    for positives in range(1, 7):
        labels = np.arange(7) >= 7 - positives
        for threshold in (best_threshold(labels, values), highest_threshold(labels, values, 1.0)):
            assert (np.array(values) >= threshold).tolist() == labels.tolist()
