"""A forest plot: values with their 95 % intervals under each other. Told apart by colour, mark and word alike.

Colours are of Okabe and Ito 2008, which hold for every kind of colour vision. Matplotlib's objects are used without its
global state, so that threads may draw.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

#: Colour and mark of each kind of line.
STYLES = (("#0072B2", "o"), ("#D55E00", "s"), ("#595959", "D"))
#: Inches of a panel's width, of a line, and of what stands around the lines.
WIDTH, HEIGHT, AROUND = 3.0, 0.32, 1.1


@dataclass(frozen=True)
class Line:
    """One value; an interval of none is not drawn. ``kind`` chooses among ``STYLES``."""

    label: str
    value: float
    low: float | None
    high: float | None
    kind: int = 0


@dataclass(frozen=True)
class Panel:
    """Lines on one axis, the first on top; ``zero`` draws the line of no difference."""

    title: str
    lines: tuple[Line, ...]
    zero: bool = False


def forest(panels: Sequence[Panel], title: str) -> Figure:
    """The figure of panels beside each other."""
    most = max(len(panel.lines) for panel in panels)
    size = (WIDTH * len(panels) + 1.5, HEIGHT * most + AROUND)
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=9)
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _draw(axes, panel)
    return figure


def _draw(axes: Axes, panel: Panel) -> None:
    for place, line in enumerate(panel.lines):
        if math.isnan(line.value):
            continue
        colour, mark = STYLES[line.kind]
        if line.low is not None and line.high is not None:
            axes.plot([line.low, line.high], [place, place], color=colour, linewidth=1.6, solid_capstyle="butt")
        axes.plot([line.value], [place], marker=mark, color=colour, markersize=6, linestyle="none")
        above = (0, 7)
        axes.annotate(
            f"{line.value:+.3f}" if panel.zero else f"{line.value:.3f}",
            (line.value, place),
            xytext=above,
            textcoords="offset points",
            ha="center",
            fontsize=7,
        )
    axes.set_yticks(range(len(panel.lines)), [line.label for line in panel.lines], fontsize=8)
    axes.set_ylim(len(panel.lines) - 0.5, -0.7)
    axes.set_title(panel.title, fontsize=9)
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.margins(x=0.12)
    if panel.zero:
        axes.axvline(0, color="black", linewidth=0.8, linestyle="--")


def save(figure: Figure, folder: Path, name: str) -> tuple[Path, Path]:
    """Write ``name.png`` (150 dots an inch) and ``name.svg`` (text as text); the same figure gives the same files."""
    png, svg = folder / f"{name}.png", folder / f"{name}.svg"
    figure.savefig(png, dpi=150, metadata={"Software": None})
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(svg, metadata={"Date": None})
    return png, svg
