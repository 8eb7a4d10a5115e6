"""Trains a recorded run anew and says whether it comes out as recorded; writes nothing to MLflow or the study."""

from xray_opt.reproduce.comparing import Difference, Judge, Reproduction
from xray_opt.reproduce.rerunning import reproduce

__all__ = ["Difference", "Judge", "Reproduction", "reproduce"]
