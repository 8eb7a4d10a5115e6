"""Figures of a search: history, epochs, importances, parallel coordinates, slices, confirmation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, NullFormatter

from xray_opt.report.drawing import (
    BLUE,
    GREY,
    ORANGE,
    RED,
    SCALE,
    SIZE,
    drawn,
    empty,
    finite,
    label,
    legend_below,
    marks,
)
from xray_opt.report.html import short_names
from xray_opt.report.records import Evidence
from xray_opt.tuning import StudyRecord, TrialRecord

#: So many trials are drawn where each is a line; the best ones.
MOST_LINES = 200
F1 = "validation F1"


def complete(study: StudyRecord) -> list[TrialRecord]:
    """The trials that have a value which can be drawn."""
    return [trial for trial in study.trials if trial.state == "COMPLETE" and finite([trial.value])]


def best_of(study: StudyRecord) -> TrialRecord | None:
    """The best complete trial of those whose value can be drawn."""
    return next((trial for trial in study.ranked if finite([trial.value])), None)


def last_value(trial: TrialRecord) -> float | None:
    """The value of the last epoch that reported one which can be drawn."""
    values = finite(value for _, value in sorted(trial.intermediate.items()))
    return values[-1] if values else None


def history(evidence: Evidence) -> Markup:
    """Every trial's value, and the best one so far."""
    study = evidence.study
    done = complete(study)
    pruned = [(t.number, last) for t in study.trials if t.state == "PRUNED" and (last := last_value(t)) is not None]
    failed = [trial.number for trial in study.trials if trial.state == "FAIL"]

    def draw(axes: Axes) -> None:
        if not done and not pruned and not failed:
            return empty(axes, "no trial is over")
        if done:
            numbers, values = [t.number for t in done], [t.value or 0.0 for t in done]
            axes.step(numbers, np.maximum.accumulate(values), where="post", color=BLUE, label="best so far", gid="best")
            marks(axes, numbers, values, 18, BLUE, label="complete", gid="complete", zorder=3)
        if pruned:
            x, y = zip(*pruned, strict=True)
            marks(axes, x, y, 24, RED, "x", label="pruned (last epoch)", gid="pruned", zorder=3)
        if failed:
            foot = axes.get_xaxis_transform()
            marks(axes, failed, [0.02] * len(failed), 24, GREY, "^", transform=foot, label="failed", gid="failed")
        _whole_numbers(axes)
        last = max(trial.number for trial in study.trials)
        axes.set(xlabel="trial", ylabel=F1, xlim=(-0.03 * last - 0.3, 1.03 * last + 0.3))
        legend_below(axes)

    words = f"{len(done)} complete, {len(pruned)} pruned and {len(failed)} failed trials."
    if best := best_of(study):
        words += f" The best value is {best.value:.4f}, of trial {best.number}."
    return drawn("history", "Validation F1 of every trial", words, draw)


def epochs(evidence: Evidence) -> Markup:
    """Validation F1 of every epoch of every trial; pruned trials end with a cross."""
    curves = [trial for trial in evidence.study.trials if last_value(trial) is not None]
    curves = sorted(curves, key=lambda trial: -(last_value(trial) or 0.0))[:MOST_LINES]
    best = best_of(evidence.study)

    def draw(axes: Axes) -> None:
        if not curves:
            return empty(axes, "no trial reported an epoch")
        for trial in reversed(curves):
            own, pruned = best is not None and trial.number == best.number, trial.state == "PRUNED"
            points = sorted((at, value) for at, value in trial.intermediate.items() if finite([value]))
            x, y = zip(*points, strict=True)
            colour, mark = BLUE if own else ORANGE if pruned else GREY, "." if len(x) == 1 else ""
            (line,) = axes.plot(x, y, color=colour, marker=mark, gid=f"t{trial.number}")
            line.set(linewidth=2.0 if own else 0.8, zorder=3 if own else 2)
            if pruned:
                marks(axes, x[-1:], y[-1:], 24, RED, "x", zorder=4, gid=f"pruned-{trial.number}")
        for colour, words in ((BLUE, "best trial"), (GREY, "other trials"), (ORANGE, "pruned")):
            axes.plot([], [], color=colour, label=words)
        marks(axes, [], [], 24, RED, "x", label="pruned here")
        _whole_numbers(axes)
        axes.set(xlabel="epoch", ylabel=F1)
        legend_below(axes)

    count = sum(trial.state == "PRUNED" for trial in curves)
    words = f"{len(curves)} trials, {count} of them pruned: a cross marks their last epoch."
    return drawn("epochs", "Validation F1 of every epoch", words, draw)


def importances(evidence: Evidence, second: bool = False) -> Markup:
    """Which params mattered for validation F1, or for the second objective."""
    found = evidence.importances_second if second else evidence.importances
    shares = dict(sorted(found.items(), key=lambda item: item[1]))
    names = short_names(shares)

    def draw(axes: Axes) -> None:
        if not shares:
            return empty(axes, "too few complete trials to tell")
        for row, share in enumerate(shares.values()):
            axes.barh(row, share, color=BLUE, height=0.6, gid=f"bar-{row}")
            axes.text(share, row, f" {share:.2f}", va="center", fontsize=8)
        axes.set_yticks(range(len(shares)), [names[name] for name in shares])
        axes.set(xlabel="share of importance", xlim=(0, max(shares.values()) * 1.2 or 1.0))
        axes.grid(visible=False, axis="y")

    words = "; ".join(f"{name} {share:.2f}" for name, share in reversed(shares.items())) or "None known."
    height = max(SIZE[1] * 0.6, 0.7 + 0.28 * len(shares))
    name, title = "importances", "Importance of the searched settings"
    if second:
        name, title = "importances-second", f"{title} for {evidence.study.second}"
    return drawn(name, title, words, draw, (SIZE[0], height))


def parallel(evidence: Evidence) -> Markup:
    """Each complete trial as a line over its params, coloured by its value."""
    done = sorted(complete(evidence.study), key=lambda trial: trial.value or 0.0)[-MOST_LINES:]
    names = _names(evidence, done)
    short = short_names(names)

    def draw(axes: Axes) -> None:
        if not names:
            return empty(axes, "no complete trial with searched settings")
        scales = [_Scale(evidence, name, [trial.params.get(name) for trial in done]) for name in names]
        values = [trial.value or 0.0 for trial in done]
        low, high = min(values), max(values)
        for trial, value in zip(done, values, strict=True):
            shade = (value - low) / (high - low) if high > low else 0.5
            heights = [scale.height(trial.params.get(name)) for scale, name in zip(scales, names, strict=True)]
            colour = colormaps[SCALE](0.9 * (1 - shade))
            axes.plot(range(len(names) + 1), [*heights, shade], color=colour, linewidth=1.1, gid=f"line-{trial.number}")
        for place, scale in enumerate((*scales, None)):
            axes.axvline(place, color=GREY, linewidth=0.8)
            ticks = scale.ticks() if scale else [(0.0, f"{low:.3f}"), (1.0, f"{high:.3f}")]
            for height, words in ticks:
                axes.text(place + 0.03, height, words, fontsize=7.5, va="center", bbox=_PAPER)
        axes.set_xticks(range(len(names) + 1), [*(short[name] for name in names), F1], rotation=20, ha="right")
        axes.set(yticks=[], xlim=(-0.1, len(names) + 0.45), ylim=(-0.08, 1.08))
        axes.spines[["left", "bottom"]].set_visible(False)

    words = f"{len(done)} complete trials over {len(names)} searched settings; the darkest line is the best trial."
    width = max(SIZE[0], 1.15 * (len(names) + 1))
    return drawn("parallel", "Parallel coordinates", words, draw, (width, 3.1))


_PAPER = {"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 0.6}


class _Scale:
    """Heights from 0 to 1 of one param's values: numbers by size, others by their kinds."""

    def __init__(self, evidence: Evidence, name: str, values: Sequence[object]) -> None:
        self.log = name in evidence.logarithmic
        self.kinds = kinds(evidence, name, values)
        known = [] if self.kinds else [float(value) for value in values if _number(value)]  # type: ignore[arg-type]
        self.low, self.high = min(known, default=0.0), max(known, default=0.0)

    def height(self, value: object) -> float:
        """NaN where a trial has no such value: its line has a gap there."""
        if self.kinds:
            last = max(len(self.kinds) - 1, 1)
            return self.kinds.index(str(value)) / last if str(value) in self.kinds else np.nan
        if not _number(value):
            return np.nan
        low, high, at = (self._scaled(number) for number in (self.low, self.high, float(value)))  # type: ignore[arg-type]
        return (at - low) / (high - low) if high > low else 0.5

    def _scaled(self, value: float) -> float:
        return float(np.log(value)) if self.log and self.low > 0 else value

    def ticks(self) -> list[tuple[float, str]]:
        """Heights that have a label."""
        if self.kinds:
            return [(self.height(kind), label(kind, 14)) for kind in self.kinds]
        marks = [(0.0, self.low), (1.0, self.high)] if self.high > self.low else [(0.5, self.low)]
        return [(height, f"{value:.3g}") for height, value in marks]


def kinds(evidence: Evidence, name: str, values: Sequence[object]) -> list[str]:
    """The kinds of a param that is no number on a scale, in order; empty for one that is."""
    known = [value for value in values if value is not None]
    if name not in evidence.categorical and all(map(_number, known)):
        return []
    if all(map(_number, known)):
        return [str(value) for value in sorted(set(known))]  # type: ignore[type-var]
    return sorted({str(value) for value in known})


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and bool(np.isfinite(value))


def _names(evidence: Evidence, done: Sequence[TrialRecord]) -> list[str]:
    """The params that one of these trials has."""
    return [name for name in evidence.params if any(trial.params.get(name) is not None for trial in done)]


def slices(evidence: Evidence) -> list[tuple[str, Markup]]:
    """(param, value over it), a figure each."""
    done = complete(evidence.study)
    names = _names(evidence, done)
    return [(name, _slice(evidence, done, name, place)) for place, name in enumerate(names)]


def _slice(evidence: Evidence, done: Sequence[TrialRecord], name: str, place: int) -> Markup:
    own = [trial for trial in done if trial.params.get(name) is not None]
    values = [trial.params[name] for trial in own]
    order = kinds(evidence, name, values)
    whole = max(trial.number for trial in own) or 1

    def draw(axes: Axes) -> None:
        x = [order.index(str(value)) if order else float(value) for value in values]  # type: ignore[arg-type]
        shades = [trial.number / whole for trial in own]
        heights = [trial.value or 0.0 for trial in own]
        axes.scatter(
            x, heights, 20, shades, cmap=f"{SCALE}_r", vmin=0, vmax=1, edgecolors=GREY, linewidths=0.5, gid="p"
        )
        if order:
            axes.set_xticks(range(len(order)), [label(kind, 14) for kind in order])
            axes.set_xlim(-0.5, len(order) - 0.5)
        elif name in evidence.logarithmic and min(x) > 0:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(lambda value, place: f"{value:g}")
            axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set(xlabel=label(name, 36), ylabel=F1)

    words = f"{len(own)} complete trials; the darker a point, the later its trial."
    return drawn(f"slice-{place}", f"Validation F1 over {name}", words, draw, (SIZE[0], 2.3))


def confirmation(verdict: Mapping[str, Any]) -> Markup:
    """Each setting's search score beside the mean of its new seeds with the interval."""
    settings = list(reversed(verdict["settings"]))

    def draw(axes: Axes) -> None:
        for row, one in enumerate(settings):
            found = one["confirmed"]
            marks(axes, one["seeds"], [row - 0.18] * len(one["seeds"]), 14, GREY, gid=f"seeds-{row}")
            marks(axes, [one["search"]], [row + 0.18], 30, ORANGE, "D", gid=f"search-{row}", zorder=3)
            if found["value"] is None:
                continue
            if found["low"] is not None:
                axes.plot([found["low"], found["high"]], [row, row], color=BLUE, linewidth=2, gid=f"interval-{row}")
            marks(axes, [found["value"]], [row], 34, BLUE, zorder=3, gid=f"confirmed-{row}")
        marks(axes, [], [], 30, ORANGE, "D", label="in the search")
        marks(axes, [], [], 34, BLUE, label="confirmed, 95 %")
        marks(axes, [], [], 14, GREY, label="new seeds")
        names = [f"trial {one['trial']}" + (" ★" if one["trial"] == verdict["winner"] else "") for one in settings]
        axes.set_yticks(range(len(settings)), names)
        axes.set(xlabel=F1, ylim=(-0.6, len(settings) - 0.4))
        legend_below(axes, 3)

    words = "; ".join(f"trial {one['trial']}: {one['search']:.4f} in the search" for one in reversed(settings))
    return drawn(
        "confirmation", "Search scores and confirmed scores", words, draw, (SIZE[0], 1.4 + 0.4 * len(settings))
    )


def _whole_numbers(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
