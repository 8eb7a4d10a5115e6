"""From a drawing function to an inline SVG: plain text that a reader can select, a title and a description, no script.

Drawn without pyplot, so nothing stays behind. Letters stay letters: the browser sets them, in a size that is read on a
phone, as figures are drawn at a phone's width and stand beside each other on a wide screen.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from xray_opt.errors import shortened

Floats = NDArray[np.float64]

#: Okabe and Ito 2008: colours that are told apart with any colour vision.
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#767676"
#: Of values: even in lightness, and made for colour-blind readers (Nuñez et al. 2018).
SCALE = "cividis"
#: Inches; 3.7 of them are the width of a phone.
SIZE = (3.7, 2.8)
#: Pixels of an inch on the page, and how much larger a drawing may become.
PIXELS, LARGEST = 96, 1.3
SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "xray-opt",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana"],
    "font.size": 9.0,
    "axes.titlesize": 9.0,
    "axes.labelsize": 9.0,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "legend.fontsize": 8.0,
    "legend.framealpha": 0.85,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "axes.axisbelow": True,
    "figure.facecolor": "white",
}

ElementTree.register_namespace("", SVG)


def drawn(
    name: str, title: str, description: str, draw: Callable[[Axes], None], size: tuple[float, float] = SIZE
) -> Markup:
    """The SVG that ``draw`` puts onto its axes.

    Args:
        name: unique on the page: the prefix of all ids; a group with the gid ``g`` gets the id ``NAME-g``.
        title, description: what those hear who do not see it.
        size: inches.
    """
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # letters that the font lacks: the browser has others
        sheet = Figure(figsize=size, layout="constrained")
        draw(sheet.add_subplot())
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        sheet.savefig(buffer, format="svg", metadata=nothing)
    return _inline(buffer.getvalue(), name, title, description, size)


def _inline(drawing: str, name: str, title: str, description: str, size: tuple[float, float]) -> Markup:
    root = ElementTree.fromstring(drawing)
    for element in list(root.iter()):
        for child in list(element):
            if child.tag in (f"{{{SVG}}}style", f"{{{SVG}}}metadata"):
                element.remove(child)
        for key, value in list(element.attrib.items()):
            element.attrib.pop(key)
            element.set(key.replace(f"{{{XLINK}}}", ""), _prefixed(key, value, name))
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    # A wide drawing is not shrunk: its box scrolls. One of a phone's width fits any phone.
    least = size[0] * PIXELS * (1.0 if size[0] > SIZE[0] else 0.7)
    root.set("style", f"min-width: {least:.0f}px; max-width: {size[0] * PIXELS * LARGEST:.0f}px")
    root.set("role", "img")
    root.set("aria-labelledby", f"{name}-title {name}-desc")
    for place, (tag, words) in enumerate((("title", title), ("desc", description))):
        element = ElementTree.Element(f"{{{SVG}}}{tag}", {"id": f"{name}-{tag}"})
        element.text = label(words, 1000)
        root.insert(place, element)
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _prefixed(key: str, value: str, name: str) -> str:
    """Ids are unique in a figure, and must be on the page."""
    if key == "id":
        return f"{name}-{value}"
    if key.endswith("href") and value.startswith("#"):
        return f"#{name}-{value[1:]}"
    return value.replace("url(#", f"url(#{name}-")


def label(value: object, most: int = 24) -> str:
    """Words for a drawing: one line of printable letters, its middle left out where it is too long."""
    return shortened(str(value), most)


def finite(values: Iterable[float | None]) -> list[float]:
    """Those that can be drawn."""
    return [value for value in values if value is not None and math.isfinite(value)]


def empty(axes: Axes, why: str) -> None:
    """A drawing without data says so."""
    axes.set_axis_off()
    axes.text(0.5, 0.5, why, ha="center", va="center", color=GREY, wrap=True, gid="empty")


def legend_below(axes: Axes, columns: int = 2) -> None:
    """The legend outside, where it hides no point."""
    handles, _ = axes.get_legend_handles_labels()
    if handles:
        axes.figure.legend(loc="outside lower center", ncols=columns, frameon=False)


def marks(
    axes: Axes,
    x: Sequence[float] | Floats,
    y: Sequence[float] | Floats,
    size: float | Floats,
    colour: str,
    mark: str = "o",
    **more: Any,
) -> None:
    """Points of one colour; ``more`` goes to matplotlib."""
    axes.scatter(x, y, size, color=colour, marker=mark, **more)
