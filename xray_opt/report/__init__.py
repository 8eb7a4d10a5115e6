"""Figures from plain records: the only room that imports plotting."""

from xray_opt.report.forest import Line, Panel, forest, save

__all__ = ["Line", "Panel", "forest", "save"]
