"""The report of a study: an HTML page with its figures and a model card, from plain records; reads no store, no film.

The only room that draws. ``reporting`` gathers the records and keeps what is made.
"""

from xray_opt.report.forest import Line, Panel, forest, save
from xray_opt.report.model_card import model_card
from xray_opt.report.page import SECTIONS, Section, page
from xray_opt.report.records import ARTIFACTS, OUTSIDE, SHOWING_FILMS, Chosen, Evidence, Predictions, Split
from xray_opt.report.sections_evidence import called, kind_of
from xray_opt.report.sections_trivial import wanted

__all__ = [
    "ARTIFACTS",
    "OUTSIDE",
    "SECTIONS",
    "SHOWING_FILMS",
    "Chosen",
    "Evidence",
    "Line",
    "Panel",
    "Predictions",
    "Section",
    "Split",
    "called",
    "forest",
    "kind_of",
    "model_card",
    "page",
    "save",
    "wanted",
]
