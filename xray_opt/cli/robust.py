"""How ``evaluate --robustness`` is printed: worst case and goals in the head, two tables, the shortcut test."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import click

from xray_opt.cli.output import between, print_table

if TYPE_CHECKING:
    from xray_opt.intervals import Interval
    from xray_opt.robustness import Condition, Robustness


def print_headline(suite: Robustness) -> None:
    """The worst case and the goals; what could not be read."""
    worst = suite.worst_case
    auc = f"AUC {worst.auc.value:.3f}"
    click.echo(textwrap.fill(f"worst case: {worst.name}: {auc}, {_flipped(worst.flipped)} flipped", 80))
    for goal in suite.goals:
        limit = f"under {goal.limit:.0%} flipped by {goal.what}"
        click.echo(textwrap.fill(f"goal {limit}: {goal.verdict}, {_flipped(goal.flipped)}", 80))
    if suite.unread:
        rest = f" and {len(suite.unread) - 3} more" if len(suite.unread) > 3 else ""
        click.echo(f"{len(suite.unread)} films cannot be read any more: {'; '.join(suite.unread[:3])}{rest}")


def print_robustness(suite: Robustness) -> None:
    """Scores under every change, what changes cost, and the shortcut test."""
    click.echo("changed films, with 95 % intervals over patients:")
    rows = [[one.name, *between(one.auc), *between(one.f1)] for one in (suite.plain, *suite.conditions)]
    print_table(["", "AUC", "95 %", "F1", "95 %"], rows)
    click.echo("against the films as they are:")
    print_table(["", *_COSTS], [_cost(one) for one in suite.conditions])
    click.echo("shortcut test: a part of every film painted out")
    print_table(["", "AUC", *_COSTS], [[one.name, one.auc.value, *_cost(one)[1:]] for one in suite.masks])
    for line in suite.shortcuts or ("no shortcut found",):
        click.echo(line if line.startswith("no") else f"shortcut: {line}")
    reasons = {one.auc.why or one.flipped.why for one in (suite.plain, *suite.conditions, *suite.masks)} - {None}
    for reason in sorted(str(reason) for reason in reasons):
        click.echo(f"no interval: {reason}")


_COSTS = ("AUC", "95 %", "flipped", "95 %")


def _cost(one: Condition) -> list[object]:
    change = one.auc_change
    ends = None if change.low is None else f"{change.low:+.3f} to {change.high:+.3f}"
    moved = None if change.value != change.value else f"{change.value:+.4f}"
    return [one.name, moved, ends, f"{one.flipped.value:.1%}", _ends(one.flipped)]


def _flipped(share: Interval) -> str:
    ends = _ends(share)
    return f"{share.value:.1%}" + (f" ({ends})" if ends else "")


def _ends(share: Interval) -> str | None:
    return None if share.low is None or share.high is None else f"{share.low:.1%} to {share.high:.1%}"
