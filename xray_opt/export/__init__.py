"""Writes a model as one file for other runtimes: ONNX, torch.export, plain weights; asked in its own before it lies."""

from xray_opt.export.exporting import Exported, export
from xray_opt.export.formats import FORMATS

__all__ = ["FORMATS", "Exported", "export"]
