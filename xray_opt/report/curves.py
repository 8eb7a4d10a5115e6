"""ROC, precision–recall and reliability curves with bands from a bootstrap of patients. Plain numpy.

The curves are the stairs of which AUC and average precision are the areas. A band holds the middle 95 % of resamples
of patients, at each place by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xray_opt.intervals import LEAST, Patients
from xray_opt.report.records import Predictions

Floats = NDArray[np.float64]

#: Where bands are taken, resamples of patients for them, and bins of equal width of the reliability curve.
GRID = np.linspace(0.0, 1.0, 101)
RESAMPLES, BINS = 1000, 10
#: Percentiles of a band.
ENDS = (2.5, 97.5)


@dataclass(frozen=True)
class Curve:
    """A curve through (N,) points, and a band at (G,) places; ``low`` and ``high`` are none where ``why`` says so."""

    x: Floats
    y: Floats
    at: Floats
    low: Floats | None = None
    high: Floats | None = None
    why: str | None = None


@dataclass(frozen=True)
class Reliability:
    """Bins that hold films: mean probability, share of pneumonia with the ends of its band (NaN: too few patients)."""

    predicted: Floats
    observed: Floats
    low: Floats
    high: Floats
    films: NDArray[np.int64]


def both_classes(predictions: Predictions) -> bool:
    """Whether there are films with and without pneumonia: without, there is no curve."""
    return 0 < int(predictions.labels.sum()) < len(predictions.labels)


def roc(predictions: Predictions) -> Curve:
    """Sensitivity over the share of false alarms."""
    false, true, _ = _steps(predictions, _ones(predictions))
    band = _band(predictions, lambda false, true, precision: _reached(false, true))
    return Curve(np.append(0.0, false[0]), np.append(0.0, true[0]), GRID, *band)


def precision_recall(predictions: Predictions) -> Curve:
    """Precision over sensitivity."""
    _, true, precision = _steps(predictions, _ones(predictions))
    band = _band(predictions, lambda false, true, precision: _at_least(true, precision))
    start = precision[0][:1]
    return Curve(np.append(0.0, true[0]), np.append(start, precision[0]), GRID, *band)


def reliability(predictions: Predictions) -> Reliability:
    """Share of pneumonia over mean probability, in bins of equal width."""
    place = np.minimum((predictions.probabilities * BINS).astype(np.int64), BINS - 1)
    members = (place[:, None] == np.arange(BINS)).astype(np.float64)
    held = np.flatnonzero(members.any(axis=0))
    members = members[:, held]
    counts = members.sum(axis=0)
    hits = members * predictions.labels[:, None]
    patients = Patients(predictions.groups)
    parts = []
    for weights in _weights(patients):
        films = weights @ members
        parts.append(np.divide(weights @ hits, films, out=np.full(films.shape, np.nan), where=films > 0))
    low, high = _percentiles(np.concatenate(parts))
    few = np.array([patients.having(column) < LEAST for column in members.T.astype(bool)])
    low[few], high[few] = np.nan, np.nan
    predicted = predictions.probabilities @ members / counts
    return Reliability(predicted, hits.sum(axis=0) / counts, low, high, counts.astype(np.int64))


def _ones(predictions: Predictions) -> Floats:
    return np.ones((1, len(predictions.labels)))


def _steps(predictions: Predictions, weights: Floats) -> tuple[Floats, Floats, Floats]:
    """(B, U) share of false alarms, sensitivity and precision at each of U probabilities, the highest first."""
    order = np.argsort(-predictions.probabilities, kind="stable")
    descending = predictions.probabilities[order]
    truth = predictions.labels[order] == 1
    first = np.flatnonzero(np.append(True, descending[1:] < descending[:-1]))
    hits = np.cumsum(np.add.reduceat(weights[:, order] * truth, first, axis=1), axis=1)
    alarms = np.cumsum(np.add.reduceat(weights[:, order] * ~truth, first, axis=1), axis=1)
    called = hits + alarms
    precision = np.divide(hits, called, out=np.ones_like(called), where=called > 0)
    return _share(alarms), _share(hits), precision


def _share(sums: Floats) -> Floats:
    """Of the whole, which the last column holds; NaN where it is 0."""
    whole = np.broadcast_to(sums[:, -1:], sums.shape)
    shares: Floats = np.divide(sums, whole, out=np.full(sums.shape, np.nan), where=whole > 0)
    return shares


def _band(
    predictions: Predictions, rows: Callable[[Floats, Floats, Floats], Floats]
) -> tuple[Floats | None, Floats | None, str | None]:
    """The ends over resamples; ``rows`` reads (B, G) values off the steps."""
    patients = Patients(predictions.groups)
    having = min(patients.having(predictions.labels == label) for label in (0, 1))
    if having < LEAST:
        return None, None, f"no band: {having} patients of a class, {LEAST} are needed"
    drawn = np.concatenate([rows(*_steps(predictions, weights)) for weights in _weights(patients)])
    low, high = _percentiles(drawn)
    return low, high, None


def _weights(patients: Patients) -> list[Floats]:
    return [counts[:, patients.codes].astype(np.float64) for counts in patients.draws(RESAMPLES)]


def _reached(false: Floats, true: Floats) -> Floats:
    """(B, G) sensitivity with at most that share of false alarms."""
    found = np.empty((len(false), len(GRID)))
    for row, (over, up) in enumerate(zip(false, true, strict=True)):
        found[row] = np.append(0.0, up)[np.searchsorted(over, GRID + 1e-12, side="right")]
    return found


def _at_least(true: Floats, precision: Floats) -> Floats:
    """(B, G) precision at the first probability that reaches that sensitivity."""
    found = np.empty((len(true), len(GRID)))
    for row, (over, up) in enumerate(zip(true, precision, strict=True)):
        place = np.searchsorted(over, np.maximum(GRID, 1e-9) - 1e-12, side="left")
        found[row] = up[np.minimum(place, len(up) - 1)]
    return found


def _percentiles(drawn: Floats) -> tuple[Floats, Floats]:
    """The ends of the middle 95 % of each column's known values, NaN where a column has none."""
    known = ~np.isnan(drawn).all(axis=0)
    low, high = np.full((2, drawn.shape[1]), np.nan)
    if known.any():
        low[known], high[known] = np.nanpercentile(drawn[:, known], ENDS, axis=0)
    return low, high
