"""How ``evaluate`` and ``finalize`` print what goes beyond scores: robustness, worst case first; subgroups, shift."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from xray_opt.cli.output import between, print_table
from xray_opt.errors import printable

if TYPE_CHECKING:
    from xray_opt.intervals import Interval
    from xray_opt.robustness import Condition, Goal, Robustness
    from xray_opt.scoring import Shift, Subgroup


def print_headline(suite: Robustness) -> None:
    """The worst case and the goals; what could not be read."""
    print_worst(suite.worst_case, suite.goals)
    if suite.unread:
        rest = f" and {len(suite.unread) - 3} more" if len(suite.unread) > 3 else ""
        named = printable("; ".join(suite.unread[:3]))
        click.echo(f"{len(suite.unread)} films cannot be read any more: {named}{rest}")


def print_worst(worst: Condition, goals: Sequence[Goal]) -> None:
    """The change that flips most decisions, and whether the goals are met."""
    auc = f"AUC {worst.auc.value:.3f}"
    click.echo(textwrap.fill(f"worst case: {worst.name}: {auc}, {_share(worst.flipped)} flipped", 80))
    for goal in goals:
        limit = f"under {100 * goal.limit:.0f} % flipped by {goal.what}"
        click.echo(textwrap.fill(f"goal {limit}: {goal.verdict}, {_share(goal.flipped)}", 80))


def print_robustness(suite: Robustness) -> None:
    """Scores under every change, what changes cost, and the shortcut test."""
    click.echo("changed films, with 95 % intervals over patients:")
    rows = [[one.name, *between(one.auc), *between(one.f1)] for one in (suite.plain, *suite.conditions)]
    print_table(["", "AUC", "95 %", "F1", "95 %"], rows)
    click.echo("against the films as they are:")
    print_table(["", *_COSTS], [_cost(one) for one in suite.conditions])
    click.echo("shortcut test: a part of every film painted out")
    print_table(["", "AUC", *_COSTS], [[one.name, one.auc.value, *_cost(one)[1:]] for one in suite.masks])
    for line in suite.shortcuts:
        click.echo(f"shortcut: {line}")
    if not suite.shortcuts:
        click.echo("no shortcut found")
    reasons = {one.auc.why or one.flipped.why for one in (suite.plain, *suite.conditions, *suite.masks)} - {None}
    for reason in sorted(str(reason) for reason in reasons):
        click.echo(f"no interval: {reason}")


_COSTS = ("AUC", "95 %", "flipped", "95 %")


def _cost(one: Condition) -> list[object]:
    change = one.auc_change
    ends = None if change.low is None else f"{change.low:+.3f} to {change.high:+.3f}"
    moved = None if change.value != change.value else f"{change.value:+.4f}"
    return [one.name, moved, ends, _percent(one.flipped.value), _ends(one.flipped)]


def _share(share: Interval) -> str:
    ends = _ends(share)
    return _percent(share.value) + (f" ({ends})" if ends else "")


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _ends(share: Interval) -> str | None:
    return None if share.low is None or share.high is None else f"{100 * share.low:.1f} to {100 * share.high:.1f}"


def print_subgroups(parts: Sequence[Subgroup]) -> None:
    """Scores of parts of the films, where there are parts."""
    if not parts:
        return
    click.echo("parts of the films, with 95 % intervals over their patients:")
    rows = [
        [f"{one.by}: {one.name}", one.films, *(_brief(score) for score in (one.auc, one.sensitivity, one.specificity))]
        for one in parts
    ]
    print_table(["", "films", "AUC", "sensitivity", "specificity"], rows)
    if any(one.by == "subtype" for one in parts):
        click.echo("a kind of pneumonia is set against all normal films")
    scores = (score for one in parts for score in (one.auc, one.sensitivity, one.specificity))
    for reason in sorted({score.why.partition(":")[0] for score in scores if score.why}):  # without each part's number
        click.echo(f"no interval: {reason}")


def print_shift(shift: Shift, positive: str) -> None:
    """Prevalence and drift of another folder, and a warning where its films look unlike those of training."""
    share = shift.prevalence
    there = "" if shift.trained is None else f"; {_percent(shift.trained)} in training"
    click.echo(f"{printable(positive.lower())}: {_share(share)} of the films{there}")
    trained, low, high = shift.trained, share.low, share.high
    if trained is not None and low is not None and high is not None and not low <= trained <= high:
        click.echo("prevalence shift: F1, precision and calibration do not compare; AUC does")
    if shift.drift is None:
        click.echo(textwrap.fill(f"no drift score: {shift.why}", 80))
        return
    score = shift.drift.score
    text = "" if score.low is None else f" ({score.low:.3f} to {score.high:.3f})"
    parts = ", ".join(f"{name} {value:.2f}" for name, value in shift.drift.parts.items())
    click.echo(f"drift {score.value:.3f}{text}, where .5 is like validation films")
    click.echo(f"of each part alone: {parts}")
    if score.why:
        click.echo(f"no interval: {score.why}")
    if shift.drift.unlike:
        from xray_opt.dataset import FALSE_ALARMS

        click.echo("warning: these films look unlike those of training; scores may not hold here")
        click.echo(f"(such a warning is false for at most {_percent(FALSE_ALARMS)} of sets that are alike)")


def _brief(score: Interval) -> str:
    if score.value != score.value:
        return "-"
    ends = "" if score.low is None else f" {score.low:.2f}-{score.high:.2f}".replace("0.", ".")
    return f"{score.value:.3f}{ends}"
