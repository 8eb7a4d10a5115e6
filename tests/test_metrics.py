"""The scores against scikit-learn, and the threshold against brute force."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as reference

from xray_opt.metrics import auc, best_threshold, scores

cases = st.lists(st.tuples(st.booleans(), st.integers(0, 20)), min_size=1, max_size=60)


def arrays(case):
    labels = np.array([label for label, _ in case], int)
    return labels, np.array([value for _, value in case]) / 20


@given(cases, st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]))
def test_scores_equal_scikit_learn(case, threshold):
    labels, probabilities = arrays(case)
    ours = scores(labels, probabilities, threshold)
    chosen = (probabilities >= threshold).astype(int)
    assert ours.f1 == pytest.approx(reference.f1_score(labels, chosen, zero_division=0))
    assert ours.accuracy == pytest.approx(reference.accuracy_score(labels, chosen))
    assert ours.precision == pytest.approx(reference.precision_score(labels, chosen, zero_division=0))
    assert ours.recall == pytest.approx(reference.recall_score(labels, chosen, zero_division=0))


@given(cases)
def test_auc_equals_scikit_learn_also_with_ties(case):
    labels, probabilities = arrays(case)
    if labels.min() == labels.max():
        assert np.isnan(auc(labels, probabilities))
    else:
        assert auc(labels, probabilities) == pytest.approx(reference.roc_auc_score(labels, probabilities))


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
