"""The picture of a comparison: every contender's interval, and LoRA's lead over each."""

from __future__ import annotations

from pathlib import Path

from xray_opt.baseline.record import Comparison, Row
from xray_opt.report import Line, Panel, called, forest, kind_of, save

SHOWN = {"f1": "F1", "auc": "AUC", "accuracy": "accuracy"}


def draw(found: Comparison, folder: Path, name: str) -> tuple[Path, Path]:
    """Write ``name.png`` and ``name.svg`` into ``folder``; returns both paths."""
    panels = [
        Panel(label, tuple(_line(row, score) for row in found.rows if row.scores)) for score, label in SHOWN.items()
    ]
    leads = tuple(
        Line(f"LoRA - {called(key)}", gains["auc"].value, gains["auc"].low, gains["auc"].high, kind_of(key))
        for key, gains in found.gains.items()
    )
    if leads:
        panels.append(Panel("gain in AUC", leads, zero=True))
    title = f"{found.study}, {found.split}: {found.films} films of {found.patients} patients, {found.seeds} seeds"
    return save(forest(panels, f"{title}; mean and 95 % interval"), folder, name)


def _line(row: Row, score: str) -> Line:
    one = row.scores[score]
    return Line(called(row.key), one.value, one.low, one.high, kind_of(row.key))
