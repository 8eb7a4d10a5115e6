"""Scores of a binary classifier in plain numpy (float64); pneumonia is the positive class.

Definitions follow scikit-learn's, against which the tests check them: F1, precision and recall are 0 where
undefined; AUC is the Mann–Whitney statistic with ties counted half (NaN where one class is missing).

:func:`scores` is what training reports. :func:`weighted_scores` gives all scores of a report for many weightings of the
same films at once: a bootstrap resample is a weighting by counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

#: Bins of equal width of the expected calibration error, as Guo et al. 2017 take them.
BINS = 15


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
    return _midway(float(descending[best]), float(below))


def focal_losses(labels: ArrayLike, logits: ArrayLike, alpha: float, gamma: float) -> Floats:
    """(N,) focal losses of (N,) logits, in float64; their mean is what ``loss.FocalLoss`` gives."""
    truth = np.asarray(labels, dtype=np.float64)
    margin = np.asarray(logits, dtype=np.float64) * (2 * truth - 1)
    weight = alpha * truth + (1 - alpha) * (1 - truth)
    losses: Floats = weight * np.exp(-gamma * np.logaddexp(0, margin)) * np.logaddexp(0, -margin)
    return losses


@dataclass(frozen=True)
class Cases:
    """What is scored: films, or patients.

    Attributes:
        labels: (N,) in {0, 1}.
        probabilities: (N,) in [0, 1].
        losses: (N,) of the study's own loss; none leaves the loss out.
        kinds: name → (N,) whether a case is of that kind of pneumonia; its sensitivity is scored apart.
    """

    labels: NDArray[np.int64]
    probabilities: Floats
    losses: Floats | None = None
    kinds: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)


def weighted_scores(cases: Cases, weights: ArrayLike, threshold: float) -> dict[str, Floats]:
    """Score → (B,) values under (B, N) non-negative ``weights``; one row of ones gives the plain scores.

    ``auprc`` is the average precision (no interpolation), ``brier`` and ``ece`` are of the probabilities themselves.
    NaN where a class is missing that a score needs.
    """
    w = np.atleast_2d(np.asarray(weights, dtype=np.float64))
    truth, chosen = cases.labels == 1, cases.probabilities >= threshold
    total, positive, called = w.sum(axis=1), w @ truth, w @ chosen
    hits = w @ (truth & chosen)
    negative = total - positive
    misses = positive - hits
    false_alarms = called - hits
    area, precision_area = _areas(truth, cases.probabilities, w)
    found = {
        "f1": np.where(positive > 0, _ratio(2 * hits, positive + called, 0.0), np.nan),
        "auc": area,
        "accuracy": _ratio(total - misses - false_alarms, total),
        "precision": _ratio(hits, called, 0.0),
        "sensitivity": _ratio(hits, positive),
        "specificity": _ratio(negative - false_alarms, negative),
    }
    if cases.losses is not None:
        found["loss"] = _ratio(w @ cases.losses, total)
    found |= {
        "auprc": precision_area,
        "brier": _ratio(w @ (cases.probabilities - truth) ** 2, total),
        "ece": _calibration_error(truth, cases.probabilities, w),
    }
    for kind, members in cases.kinds.items():
        found[f"sensitivity.{kind}"] = _ratio(w @ (members & chosen), w @ members)
    return found


def _areas(truth: NDArray[np.bool_], values: Floats, w: Floats) -> tuple[Floats, Floats]:
    """(B,) areas under ROC curve and precision-recall curve, ties in one step each."""
    if not values.size:
        return np.full(len(w), np.nan), np.full(len(w), np.nan)
    order = np.argsort(-values, kind="stable")
    descending = values[order]
    weights = w[:, order]
    hits, alarms = weights * truth[order], weights * ~truth[order]
    first = np.flatnonzero(np.append(True, descending[1:] < descending[:-1]))
    if first.size < values.size:
        hits, alarms = np.add.reduceat(hits, first, axis=1), np.add.reduceat(alarms, first, axis=1)
    above = np.cumsum(alarms, axis=1)
    positive, negative = hits.sum(axis=1), above[:, -1]
    below = negative[:, None] - above
    area = _ratio(np.einsum("bu,bu->b", hits, below + alarms / 2), positive * negative)
    reached = np.cumsum(hits, axis=1)
    precision = _ratio(reached, reached + above, 0.0)
    return area, _ratio(np.einsum("bu,bu->b", hits, precision), positive)


def _calibration_error(truth: NDArray[np.bool_], values: Floats, w: Floats) -> Floats:
    """(B,) mean over bins, by weight, of how far mean probability and share of positives lie apart."""
    place = np.minimum((values * BINS).astype(np.int64), BINS - 1)
    gaps = np.zeros((values.size, BINS))
    gaps[np.arange(values.size), place] = values - truth
    return _ratio(np.abs(w @ gaps).sum(axis=1), w.sum(axis=1))


def _ratio(part: Floats, whole: Floats, otherwise: float = np.nan) -> Floats:
    """``part / whole`` where there is a whole."""
    shares: Floats = np.divide(part, whole, out=np.full(np.shape(whole), otherwise), where=whole > 0)
    return shares


def highest_threshold(labels: ArrayLike, probabilities: ArrayLike, sensitivity: float) -> float:
    """The highest threshold at which at least this share of the positives is found; 0.5 where there are none.

    Midway between two neighbouring probabilities where that keeps the share.
    """
    truth = np.asarray(labels).astype(bool)
    values = np.asarray(probabilities, dtype=np.float64)
    found = np.sort(values[truth])[::-1]
    if not found.size:
        return 0.5
    # The guard is for shares such as .95 · 20, which come out a little above 19.
    last = found[max(int(np.ceil(sensitivity * found.size - 1e-9)), 1) - 1]
    below = values[values < last]
    return _midway(float(last), float(below.max()) if below.size else 0.0)


def _midway(above: float, below: float) -> float:
    """Between two probabilities, and never at the lower one: of neighbouring floats the middle is rounded."""
    middle = (above + below) / 2
    return middle if middle > below else above


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
