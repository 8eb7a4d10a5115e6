"""The picture of a comparison: every contender's interval, and LoRA's lead over each."""

from __future__ import annotations

from pathlib import Path

from xray_opt.baseline.record import Comparison, Row
from xray_opt.report import CONTENDERS, Line, Panel, forest, save

SHOWN = {"f1": "F1", "auc": "AUC", "accuracy": "accuracy"}


def named(key: str) -> str:
    """A contender's name for people."""
    return CONTENDERS.get(key, key)


def draw(found: Comparison, folder: Path, name: str) -> tuple[Path, Path]:
    """Write ``name.png`` and ``name.svg`` into ``folder``; returns both paths."""
    panels = [
        Panel(label, tuple(_line(row, score) for row in found.rows if row.scores)) for score, label in SHOWN.items()
    ]
    leads = tuple(
        Line(f"LoRA - {named(key)}", gains["auc"].value, gains["auc"].low, gains["auc"].high, _kind(key))
        for key, gains in found.gains.items()
    )
    if leads:
        panels.append(Panel("gain in AUC", leads, zero=True))
    title = f"{found.study}, {found.split}: {found.films} films of {found.patients} patients, {found.seeds} seeds"
    return save(forest(panels, f"{title}; mean and 95 % interval"), folder, name)


def _line(row: Row, score: str) -> Line:
    one = row.scores[score]
    return Line(named(row.key), one.value, one.low, one.high, _kind(row.key))


def _kind(key: str) -> int:
    """Ours, a rival, or a trivial model."""
    return 0 if key == "lora" else 1 if key in CONTENDERS else 2
