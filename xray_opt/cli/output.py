"""How commands print: tables that fit 80 columns, JSON for scripts, numbers in one format."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click

from xray_opt.errors import printable

if TYPE_CHECKING:
    from xray_opt.intervals import Gain, Interval
    from xray_opt.scoring import Level


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str | None = None) -> None:
    """A table on stdout; a plain one when stdout is not a terminal. The first column is left-aligned."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*(cell(value) for value in row))
    width = None if sys.stdout.isatty() else 100
    Console(width=width, soft_wrap=False, highlight=False, markup=False).print(table)


def between(one: Interval | Gain) -> list[object]:
    """Cells of a score or gain and its 95 % interval, ``-`` where that is not to be had."""
    ends = None if one.low is None or one.high is None else f"{one.low:.3f} to {one.high:.3f}"
    return [one.value, ends]


def print_level_table(image: Level, patient: Level) -> None:
    """Scores of films and patients with their intervals, why some are missing, and the confusion matrices."""
    rows = [
        [name, *between(one), *(between(patient.scores[name]) if name in patient.scores else ["", ""])]
        for name, one in image.scores.items()
    ]
    heads = [f"{image.cases} films", "95 %", f"{patient.cases} patients", "95 %"]
    print_table(["", *heads], rows)
    reasons = {one.why for level in (image, patient) for one in level.scores.values() if one.why}
    for reason in sorted(reasons):
        click.echo(f"no interval: {reason}")
    for what, level in (("films", image), ("patients", patient)):
        calls = (
            f"{level.confusion[f'true_{call}']} true and {level.confusion[f'false_{call}']} false {call}"
            for call in ("positive", "negative")
        )
        click.echo(f"{what}: {', '.join(calls)}")


def short_names(names: Iterable[str]) -> list[str]:
    """Heads for dotted names: the last part, the whole name where two would share it, ``lr`` for the learning rate."""
    last = {name: "lr" if name == "optimizer.learning_rate" else name.split(".")[-1] for name in names}
    shared = Counter(last.values())
    return [name if shared[short] > 1 else short for name, short in last.items()]


def cell(value: object) -> str:
    """A value as tables show it: four decimals for scores, three digits for small ones, ``-`` for none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, float) and value.is_integer() and abs(value) >= 2:
        return str(int(value))
    if isinstance(value, float):
        return f"{value:.4f}" if 0.01 <= abs(value) < 10 else f"{value:.3g}"
    return printable(str(value))


def print_json(value: Any) -> None:
    """One JSON document on stdout; NaN becomes null."""
    click.echo(json.dumps(_plain(value), indent=2, sort_keys=False))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def duration(seconds: float) -> str:
    """``42 s``, ``3 min 05 s``, ``2 h 07 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
