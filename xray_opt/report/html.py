"""Pieces of a page. Whatever comes from outside passes :func:`text`, which escapes it; only pieces are trusted."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape

from xray_opt.errors import printable, shortened
from xray_opt.intervals import ROUGH

NOTHING = "–"
#: Letters of a text that is not broken into lines.
SHORT = 24


def text(value: object, most: int = 300) -> Markup:
    """A value as tables show it, escaped: a ``Markup`` as it is, four decimals for scores, a dash for none and NaN."""
    return value if isinstance(value, Markup) else escape(plain(value, most))


def plain(value: object, most: int = 300) -> str:
    """As :func:`text`, one line of at most ``most`` characters without the escapes of HTML."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return NOTHING
    if isinstance(value, float) and value.is_integer() and abs(value) >= 2:
        return str(int(value)) if abs(value) < 1e15 else f"{value:.3g}"
    if isinstance(value, float):
        return f"{value:.4f}" if 0.01 <= abs(value) < 10 else f"{value:.3g}"
    return shortened(str(value), most)


def ends(record: Mapping[str, Any] | None, digits: int = 3) -> str:
    """The 95 % interval of an ``Interval`` or ``Gain`` record, ``≈`` before a rough one; a dash where it has none."""
    if not record or record.get("low") is None or record.get("high") is None:
        return NOTHING
    sign, about = "+" if "p" in record else "", "≈ " if record.get("rough") else ""
    return f"{about}{record['low']:{sign}.{digits}f} to {record['high']:{sign}.{digits}f}"


def rough(records: Iterable[Mapping[str, Any]]) -> str:
    """What ``≈`` says, where any of these records is a rough interval; else nothing."""
    return f"≈ {ROUGH}." if any(one.get("rough") for one in records) else ""


def gained(record: Mapping[str, Any]) -> str:
    """A ``Gain`` record in words: value, interval and p, or why there is no interval."""
    value = signed(record.get("value"))
    if value == NOTHING:
        return NOTHING
    if record.get("low") is None:
        return f"{value} (no interval: {record.get('why')})"
    return f"{value} (95 %: {ends(record, 4)}, p {record['p']:.2g})"


def signed(value: float | None) -> str:
    """A difference of scores; a dash for none and NaN."""
    return NOTHING if value is None or math.isnan(value) else f"{value:+.4f}"


def short_names(names: Iterable[str]) -> dict[str, str]:
    """Dotted name → its last part, or the whole where two would share it; long ones are cut in the middle."""
    last = {name: name.split(".")[-1] for name in names}
    shared = Counter(last.values())
    return {name: shortened(name if shared[short] > 1 else short, 28) for name, short in last.items()}


def table(caption: str, heads: Sequence[object], rows: Iterable[Sequence[object]]) -> Markup:
    """A table in a box that scrolls by itself where it is too wide; the first column names the rows."""
    lines = [*rows]
    kinds = ["", *(_kind([row[place] for row in lines]) for place in range(1, len(heads)))]
    pairs = zip(kinds, map(text, heads), strict=True)
    head = Markup("").join(Markup('<th scope="col" class="{}">{}</th>').format(*one) for one in pairs)
    body = Markup("").join(Markup("<tr>{}</tr>\n").format(_cells(row, kinds)) for row in lines)
    return Markup(
        '<div class="scroll" role="region" tabindex="0" aria-label="{0}"><table><caption>{0}</caption>'
        "<thead><tr>{1}</tr></thead>\n<tbody>{2}</tbody></table></div>\n"
    ).format(text(caption), head, body)


def _kind(column: Sequence[object]) -> str:
    """How a column is set: numbers to the right, short texts on one line."""
    if any(isinstance(one, int | float) for one in column):
        return "number"
    return "short" if all(len(plain(one)) <= SHORT for one in column) else ""


def _cells(row: Sequence[object], kinds: Sequence[str]) -> Markup:
    first, columns = Markup('<th scope="row">{}</th>').format(text(row[0])), zip(kinds[1:], row[1:], strict=True)
    return first + Markup("").join(Markup('<td class="{}">{}</td>').format(kind, text(one)) for kind, one in columns)


def paragraph(*parts: object, kind: str = "") -> Markup:
    """A paragraph of escaped texts and pieces; its words are our own, and none of them is left out."""
    return Markup('<p class="{}">{}</p>\n').format(kind, Markup("").join(text(part, 2000) for part in parts))


def heading(words: str) -> Markup:
    """The heading of a part of a section."""
    return Markup("<h3>{}</h3>\n").format(text(words))


def code(lines: Iterable[str]) -> Markup:
    """Lines to be copied, in a box that scrolls by itself."""
    shown = Markup("\n").join(escape(printable(line)) for line in lines)
    return Markup('<pre tabindex="0">{}</pre>\n').format(shown)


def missing(what: str, command: str) -> Markup:
    """What is not recorded, and the command that records it."""
    return Markup('<p class="missing">{}: <code>{}</code></p>\n').format(text(what), text(command))


def figure(svg: Markup, caption: str, wide: bool = False) -> Markup:
    """A drawing with its caption; a wide one takes the whole row, and scrolls by itself on a phone."""
    return Markup('<figure class="{}"><div class="scroll">{}</div><figcaption>{}</figcaption></figure>\n').format(
        "wide" if wide else "", svg, text(caption)
    )


def figures(*drawn: Markup) -> Markup:
    """Figures beside each other where there is room."""
    return Markup('<div class="figures">{}</div>\n').format(Markup("").join(drawn))


def picture(png: str, words: str) -> Markup:
    """A picture of base64 PNG; ``words`` are for those who do not see it. On a phone it scrolls in its figure's box."""
    return Markup('<img src="data:image/png;base64,{}" alt="{}">').format(png, text(words))
