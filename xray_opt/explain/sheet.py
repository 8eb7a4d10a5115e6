"""One picture of many films: each beside itself with its heat, name, probability and label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Grey = NDArray[np.uint8]
#: Longest side in pixels of a film on the sheet; films side by side; room for text; size of letters.
SIDE, ACROSS, LINE, LETTERS = 240, 2, 16, 12
GAP = 10
#: Opacity of the hottest place.
OPAQUE = 0.65
#: Anchors of viridis (Smith and van der Walt 2015, CC0): even in lightness, and told apart with any colour vision.
VIRIDIS = (
    (68, 1, 84),
    (71, 44, 122),
    (59, 81, 139),
    (44, 113, 142),
    (33, 144, 141),
    (39, 173, 129),
    (92, 200, 99),
    (170, 220, 50),
    (253, 231, 37),
)


@dataclass(frozen=True)
class Cell:
    """One film of a sheet.

    Attributes:
        film: (H, W) grey, as :func:`shown` gives it.
        heat: (h, w) in [0, 1].
        lines: text below.
    """

    film: Grey
    heat: NDArray[np.float64]
    lines: tuple[str, ...]


def shown(native: Grey) -> Grey:
    """A film small enough for a sheet, its aspect kept."""
    image = Image.fromarray(native)
    factor = SIDE / max(image.size)
    size = tuple(max(round(side * factor), 1) for side in image.size)
    return np.array(image.resize((size[0], size[1]), Image.Resampling.BILINEAR))


def colours(heat: NDArray[np.float64]) -> Grey:
    """(H, W, 3) colours of (H, W) in [0, 1]."""
    anchors = np.array(VIRIDIS, dtype=np.float64)
    places = np.linspace(0, 1, len(anchors))
    return np.stack([np.rint(np.interp(heat, places, anchors[:, one])) for one in range(3)], axis=-1).astype(np.uint8)


def overlay(film: Grey, heat: NDArray[np.float64]) -> Image.Image:
    """The film with its heat on it; cold places show the film as it is."""
    wide = Image.fromarray(heat.astype(np.float32)).resize((film.shape[1], film.shape[0]), Image.Resampling.BILINEAR)
    spread = np.clip(np.asarray(wide, dtype=np.float64), 0, 1)
    opacity = OPAQUE * spread[..., None]
    mixed = (1 - opacity) * film[..., None] + opacity * colours(spread)
    return Image.fromarray(np.rint(mixed).astype(np.uint8))


def sheet(cells: Sequence[Cell], heads: Sequence[str]) -> Image.Image:
    """All cells below lines of text, in rows of at most two."""
    lines = max(len(cell.lines) for cell in cells)
    wide, high = 2 * SIDE + GAP, SIDE + lines * LINE + GAP
    across = min(ACROSS, len(cells))
    rows = -(-len(cells) // across)
    top = GAP + LINE * len(heads) + GAP
    page = Image.new("RGB", (across * (wide + GAP) + GAP, top + rows * (high + GAP)), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(LETTERS)
    for number, line in enumerate(heads):
        draw.text((GAP, GAP + number * LINE), line, "black", font)
    for number, cell in enumerate(cells):
        row, column = divmod(number, across)
        left, upper = GAP + column * (wide + GAP), top + row * (high + GAP)
        for place, picture in enumerate((Image.fromarray(cell.film), overlay(cell.film, cell.heat))):
            page.paste(picture.convert("RGB"), (left + place * (SIDE + GAP), upper))
        for down, line in enumerate(cell.lines):
            draw.text((left, upper + SIDE + down * LINE), _fitting(line, wide, font), "black", font)
    return page


def _fitting(line: str, wide: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The line, its front cut where it is too long: names differ at the end."""
    cut = line
    while len(cut) > 1 and font.getlength(cut) > wide:
        cut = "…" + cut.removeprefix("…")[1:]
    return cut
