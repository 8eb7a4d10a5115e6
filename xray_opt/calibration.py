"""Temperature scaling: one number, fitted on validation, that makes probabilities mean what they say.

After Guo et al. 2017, *On Calibration of Modern Neural Networks*: the logit is divided by a temperature that minimises
the cross-entropy, so order, AUC and every decision at 0.5 stay as they are. Plain numpy.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from xray_opt.metrics import best_threshold, highest_threshold

Floats = NDArray[np.float64]

#: Temperatures outside of these bounds are no calibration any more.
COLDEST, HOTTEST = 0.05, 20.0
#: Wanted sensitivities, in percent, whose thresholds are kept.
SENSITIVITIES = range(50, 101)


@dataclass(frozen=True)
class Calibration:
    """What is fixed on validation, and only there.

    Attributes:
        temperature: divides the logit before the sigmoid.
        threshold: calibrated probability of best F1.
        thresholds: wanted sensitivity (``0.50`` to ``1.00``) → highest threshold that reaches it.
    """

    temperature: float = 1.0
    threshold: float = 0.5
    thresholds: dict[str, float] = field(default_factory=dict)


def calibrate(labels: ArrayLike, logits: ArrayLike) -> Calibration:
    """Fit temperature and thresholds to (N,) ``labels`` in {0, 1} and (N,) raw ``logits``."""
    temperature = fit_temperature(labels, logits)
    probabilities = probability(np.asarray(logits, dtype=np.float64), temperature)
    wanted = {f"{percent / 100:.2f}": percent / 100 for percent in SENSITIVITIES}
    return Calibration(
        temperature,
        best_threshold(labels, probabilities),
        {name: highest_threshold(labels, probabilities, share) for name, share in wanted.items()},
    )


def fit_temperature(labels: ArrayLike, logits: ArrayLike) -> float:
    """The temperature of least cross-entropy, within ``COLDEST`` and ``HOTTEST``; 1 without films of both classes.

    Films that are told apart without an error would want a temperature of 0. There, and only there, the targets are
    Platt's (1999): ``(n + 1) / (n + 2)`` for the n films of a class in place of 1. Elsewhere they would make the
    temperature too high, by half with 300 films of an AUC of 0.99.
    """
    truth = np.asarray(labels).astype(bool)
    values = np.asarray(logits, dtype=np.float64)
    positives, negatives = int(truth.sum()), int((~truth).sum())
    if not positives or not negatives:
        return 1.0
    low, high = 1 / HOTTEST, 1 / COLDEST
    targets = truth.astype(np.float64)
    if _slope(high, values, targets) <= 0:
        targets = np.where(truth, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (low, middle) if _slope(middle, values, targets) > 0 else (middle, high)
    return 2 / (low + high)


def _slope(inverse: float, logits: Floats, targets: Floats) -> float:
    """Of the cross-entropy over the inverse temperature, in which it is convex."""
    return float(np.sum((probability(inverse * logits) - targets) * logits))


def logit(probabilities: Floats) -> Floats:
    """What :func:`probability` made them from; of 0 and 1 a finite one."""
    inside = np.clip(probabilities, 1e-12, 1 - 1e-12)
    found: Floats = np.log(inside / (1 - inside))
    return found


def probability(logit: Floats, temperature: float = 1.0) -> Floats:
    """Sigmoid of ``logit / temperature`` in float64, without overflow."""
    values: Floats = 0.5 * (1 + np.tanh(logit / temperature / 2))
    return values
