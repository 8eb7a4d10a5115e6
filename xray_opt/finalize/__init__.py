"""Opens the sealed test split once for the chosen model, scores it against trivial baselines, and keeps the record."""

from xray_opt.finalize.finalizing import finalize, finals
from xray_opt.finalize.record import Changed, Final

__all__ = ["Changed", "Final", "finalize", "finals"]
