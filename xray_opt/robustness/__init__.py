"""What a film may go through on its way, and what a model's answers are worth then.

``perturbing`` changes native films, ``rescoring`` asks a model about each of them, ``judging`` says what that costs:
AUC and F1 with intervals over patients, the paired change of AUC, the share of decisions that flip; and whether the
model reads what lies outside the lungs.
"""

from xray_opt.robustness.judging import Condition, Goal, Robustness, judge
from xray_opt.robustness.perturbing import MASKS, PERTURBATIONS, Change, Grey
from xray_opt.robustness.rescoring import Rescored, rescore

__all__ = [
    "MASKS",
    "PERTURBATIONS",
    "Change",
    "Condition",
    "Goal",
    "Grey",
    "Rescored",
    "Robustness",
    "judge",
    "rescore",
]
