"""Figures of what goes beyond scores: values with their intervals under each other, told apart by colour and mark."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup
from matplotlib.axes import Axes

from xray_opt.report.drawing import GREY, SIZE, drawn, empty, finite, label
from xray_opt.report.forest import STYLES, Line

#: Inches of a line, and of what stands around the lines.
HEIGHT, AROUND = 0.26, 0.8


def intervals(name: str, title: str, lines: Sequence[Line], axis: str, mark: float | None = None) -> Markup:
    """The drawing of ``lines``, the first on top.

    Args:
        mark: a value that all are to be compared with; a dotted line stands there.
    """
    known = [line for line in lines if finite([line.value])]

    def draw(axes: Axes) -> None:
        if not known:
            empty(axes, "no values")
            return
        if mark is not None:
            axes.axvline(mark, color=GREY, linewidth=0.8, linestyle=":", gid="mark")
        for place, line in enumerate(known):
            colour, point = STYLES[line.kind]
            ends = finite([line.low, line.high])
            if len(ends) == 2:
                axes.plot(ends, [place, place], color=colour, linewidth=1.6, solid_capstyle="butt", gid=f"bar-{place}")
            axes.plot([line.value], [place], marker=point, color=colour, markersize=5, gid=f"point-{place}")
        axes.set_yticks(range(len(known)), [label(line.label) for line in known])
        axes.set_ylim(len(known) - 0.5, -0.5)
        axes.set_xlabel(axis)

    words = "; ".join(f"{line.label} {line.value:.3f}" for line in known)
    return drawn(name, title, words, draw, (SIZE[0], HEIGHT * max(len(known), 2) + AROUND))
