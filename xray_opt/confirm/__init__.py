"""Is the winner of a search really better? Trains its best settings anew and judges them by that alone."""

from xray_opt.confirm.confirming import confirm
from xray_opt.confirm.judging import Confirmation, Retrained, Setting, judge
from xray_opt.confirm.promoting import Promotion

__all__ = ["Confirmation", "Promotion", "Retrained", "Setting", "confirm", "judge"]
