"""Opens the sealed test split once for the chosen model, scores it against trivial baselines, and keeps the record."""

from xray_opt.finalize.finalizing import finalize, finals, trivial_cases
from xray_opt.finalize.record import Baseline, Final

__all__ = ["Baseline", "Final", "finalize", "finals", "trivial_cases"]
