"""Scores of a binary classifier in plain numpy (float64); pneumonia is the positive class.

Definitions follow scikit-learn's, against which the tests check them: F1, precision and recall are 0 where
undefined; AUC is the Mann–Whitney statistic with ties counted half (NaN where one class is missing).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Scores:
    """Scores at one threshold (AUC has none); all in [0, 1], AUC may be NaN."""

    f1: float
    auc: float
    accuracy: float
    precision: float
    recall: float


def scores(labels: ArrayLike, probabilities: ArrayLike, threshold: float = 0.5) -> Scores:
    """Scores of ``probabilities`` (N,) against ``labels`` (N,) in {0, 1}; positive where ``>= threshold``."""
    truth = np.asarray(labels).astype(bool)
    chosen = np.asarray(probabilities, dtype=np.float64) >= threshold
    true_positives = float(np.sum(truth & chosen))
    precision = _share(true_positives, float(np.sum(chosen)))
    recall = _share(true_positives, float(np.sum(truth)))
    return Scores(
        f1=_share(2 * true_positives, float(np.sum(truth) + np.sum(chosen))),
        auc=auc(labels, probabilities),
        accuracy=_share(float(np.sum(truth == chosen)), float(truth.size)),
        precision=precision,
        recall=recall,
    )


def auc(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """Area under the ROC curve of (N,) scores; NaN where a class is missing."""
    truth = np.asarray(labels).astype(bool)
    values = np.asarray(probabilities, dtype=np.float64)
    positives, negatives = int(truth.sum()), int((~truth).sum())
    if not positives or not negatives:
        return float("nan")
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2
    above = ranks[inverse][truth].sum() - positives * (positives + 1) / 2
    return float(above / (positives * negatives))


def best_threshold(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """The threshold of highest F1, midway between two neighbouring probabilities; 0.5 where nothing separates."""
    truth = np.asarray(labels).astype(bool)
    values = np.asarray(probabilities, dtype=np.float64)
    order = np.argsort(-values, kind="stable")
    descending = values[order]
    hits = np.cumsum(truth[order])
    chosen = np.arange(1, values.size + 1)
    last_of_tie = np.append(descending[1:] < descending[:-1], True) if values.size else np.array([], bool)
    if not last_of_tie.any() or truth.all() or not truth.any():
        return 0.5
    f1 = np.where(last_of_tie, 2 * hits / (truth.sum() + chosen), -1.0)
    best = int(np.argmax(f1))
    below = descending[best + 1] if best + 1 < values.size else 0.0
    return float((descending[best] + below) / 2)


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
