"""Is LoRA worth it? Trains a linear probe and everything beside it, on the same split, films, seeds and epochs."""

from xray_opt.baseline.comparing import baseline
from xray_opt.baseline.judging import Contender, Model, compare
from xray_opt.baseline.record import Comparison, Row

__all__ = ["Comparison", "Contender", "Model", "Row", "baseline", "compare"]
