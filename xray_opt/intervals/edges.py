"""How near 1 the lower end of a score's interval may lie: there it lies if the score is exactly 1.

Where no film is out of order no resample differs, and where few are, resamples tell little of what was not seen. So an
end is never nearer the edge than that of a perfect model, and one error never looks better than none.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from xray_opt.intervals.records import Z

#: Points at which a precision-recall curve is integrated.
POINTS = 2000


def nearest(name: str, having: Sequence[int]) -> float:
    """The lower end of a perfect score; 1 less it is the upper end of a score of 0.

    Args:
        having: patients of each class that the score needs.
    """
    if name == "auc":
        return area(*having)
    if name == "auprc":
        return precision_area(*having)
    # A mean of numbers in [0, 1] is 0 with all of n patients with a chance of at most (1 - truth)^n.
    return float(0.025 ** (1 / min(having)))


def area(positives: int, negatives: int) -> float:
    """Lower end of an AUC of 1: the AUC that is 1.96 of its own standard errors away from 1.

    The standard error is Hanley and McNeil's (1982), of an exponential ROC curve turned to that side where it is the
    larger, and solved for the bound as in Newcombe 2006; Obuchowski and Lieber 2002 say why one is needed. For normal
    scores, the one class up to four times as wide as the other, a model at the bound looks perfect in less than 3 of
    100 sets (tests). A bound without any assumption is .025^(1 / the smaller class), about twice as far away: it allows
    for a few films that are as wrong as can be and were not seen.
    """
    few, many, pairs = min(positives, negatives), max(positives, negatives), positives * negatives
    low, high = 0.0, 1.0
    while high - low > 1e-12:
        middle = (low + high) / 2
        spread = 1 + (few - 1) * (1 - middle) / (2 - middle) + (many - 1) * middle / (1 + middle)
        low, high = (middle, high) if 1 - middle > Z**2 * middle * spread / pairs else (low, middle)
    return low


def precision_area(positives: int, negatives: int) -> float:
    """Lower end of an average precision of 1: that of the ROC curve of one parameter with the AUC of :func:`area`.

    Hanley and McNeil's exponential curve is not symmetric; of the two that there are it is the one that costs precision
    most: some negatives lie far above where they should.
    """
    bound = area(positives, negatives)
    reached = (np.arange(POINTS) + 0.5) / POINTS
    alarms = 1 - (1 - reached) ** ((1 - bound) / bound)
    return float(np.mean(reached * positives / (reached * positives + alarms * negatives)))
