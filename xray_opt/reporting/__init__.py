"""The report of a study: its records are gathered, page and model card made of them, written and logged."""

from xray_opt.reporting.making import CARD, FOLDER, PAGE, Report, report

__all__ = ["CARD", "FOLDER", "PAGE", "Report", "report"]
