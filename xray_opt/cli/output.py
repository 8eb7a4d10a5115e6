"""How commands print: tables that fit 80 columns, JSON for scripts, numbers in one format."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click

from xray_opt.errors import printable

if TYPE_CHECKING:
    from rich.table import Table

    from xray_opt.intervals import Gain, Interval
    from xray_opt.scoring import Baseline, Evaluation, Explanation, Level


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str | None = None) -> None:
    """A table on stdout; a plain one when stdout is not a terminal. The first column is left-aligned."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else 100
    width = max(width, _room()) if width else None
    console = Console(width=width, soft_wrap=False, highlight=False, markup=False)
    console.print(_table(columns, rows, title))


def print_wide(columns: Sequence[str], rows: Sequence[Sequence[object]], title: str | None) -> None:
    """A table whose last columns stand in another one below, led by the first column again, where they find no room."""
    from rich.console import Console

    room, measure = _room(), Console(width=10_000, markup=False).measure
    first, *places = range(len(columns))
    while places:
        taken = [first]
        for place in places:
            tried = [*taken, place]
            part = _table([columns[one] for one in tried], [[row[one] for one in tried] for row in rows])
            if len(tried) > 2 and measure(part).maximum > room:
                break
            taken = tried
        print_table([columns[one] for one in taken], [[row[one] for one in taken] for row in rows], title)
        places, title = places[len(taken) - 1 :], None


def _room() -> int:
    """Columns of the terminal, or as many as COLUMNS says."""
    return shutil.get_terminal_size((80, 24)).columns


def _table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str | None = None) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*(cell(value) for value in row))
    return table


def between(one: Interval | Gain) -> list[object]:
    """Cells of a score or gain (always with four decimals) and its 95 % interval, ``-`` where that is not to be had."""
    ends = None if one.low is None or one.high is None else f"{_end(one.low)} to {_end(one.high)}"
    return [f"{one.value:.4f}" if hasattr(one, "p") and not math.isnan(one.value) else one.value, ends]


def _end(end: float) -> str:
    """Three decimals; the loss of a very wrong model has no room for them in 80 columns."""
    return f"{end:.3f}" if abs(end) < 100 else f"{end:.3g}"


def print_level_table(image: Level, patient: Level) -> None:
    """Scores of films and patients with their intervals, why some are missing, and the confusion matrices."""
    rows = [
        [
            f"{name} ≈" if one.rough else name,
            *between(one),
            *(between(patient.scores[name]) if name in patient.scores else ["", ""]),
        ]
        for name, one in image.scores.items()
    ]
    heads = [f"{image.cases} films", "95 %", f"{patient.cases} patients", "95 %"]
    print_wide(["", *heads], rows, None)
    every = [one for level in (image, patient) for one in level.scores.values()]
    if any(one.rough for one in every):
        from xray_opt.intervals import ROUGH

        click.echo(f"≈ {ROUGH} (docs/statistics.md)")
    for reason in sorted({one.why for one in every if one.why}):
        click.echo(f"no interval: {reason}")
    for what, level in (("films", image), ("patients", patient)):
        calls = (
            f"{level.confusion[f'true_{call}']} true and {level.confusion[f'false_{call}']} false {call}"
            for call in ("positive", "negative")
        )
        click.echo(f"{what}: {', '.join(calls)}")


def print_baselines(models: Sequence[Baseline]) -> None:
    """Trivial models on the same films, best AUC first, and what the gain over the first one says."""
    names = ("auc", "f1")
    heads = ["AUC", "95 %", "F1", "95 %"]
    rows = [[one.name, *(cell for name in names for cell in between(one.image.scores[name]))] for one in models]
    print_table(["same films", *heads], rows)
    rows = [[one.name, *(cell for name in names for cell in between(one.gains[name]))] for one in models]
    print_table(["gain over", *heads], rows)
    best = models[0]
    gain = best.gains["auc"]
    value = "not defined" if math.isnan(gain.value) else f"AUC {gain.value:+.4f}"
    if gain.low is None or gain.high is None or gain.p is None:
        click.echo(f"gain over {best.name}: {value}")
        click.echo(f"no interval: {gain.why}")
        return
    verdict = "better than" if gain.low > 0 else "worse than" if gain.high < 0 else "not told apart from"
    click.echo(f"gain over {best.name}: {value} ({gain.low:+.4f} to {gain.high:+.4f}), p {gain.p:.2g}")
    click.echo(f"the model is {verdict} a model that looks at no lungs")


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


def print_left_out(result: Evaluation | Explanation) -> None:
    """Which films were left out, and how often sealed ones were looked at."""
    if not result.own_known:
        click.echo("the model's own films are not known here: whether some of these are among them was not checked")
    out = dict(result.left_out)
    if sealed := out.pop("of_a_sealed_test", 0):
        click.echo(f"left out, as films of a sealed test split: {sealed}")
        click.echo('(--why "…" scores them too, which is recorded as an opening)')
    if unusable := out.pop("unusable", 0):
        click.echo(f"left out, as they cannot be used: {unusable}")
    if out:
        words = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in out.items())
        click.echo(f"left out, as the model's own films or of its patients: {words}")
    if result.looks is not None:
        click.echo(f"recorded as an opening: this is look {result.looks} at these test films")
