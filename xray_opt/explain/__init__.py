"""Where in a film a model finds what speaks for its answer: Grad-CAM, and sheets of pictures that show it."""

from xray_opt.explain.heat import grad_cam, towards
from xray_opt.explain.sheet import Cell, colours, sheet, shown

__all__ = ["Cell", "colours", "grad_cam", "sheet", "shown", "towards"]
