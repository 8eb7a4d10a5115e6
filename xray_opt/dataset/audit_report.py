"""The audit in plain lines of at most 80 columns (long paths aside)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from xray_opt.dataset.names import shown

if TYPE_CHECKING:
    from xray_opt.dataset.audit import Audit

_SHOWN = 10


def lines(audit: Audit) -> list[str]:
    """The whole report: verdict first, then what it rests on."""
    verdict = "audit: ok" if audit.ok else "audit: NOT OK"
    return [
        verdict,
        *_balance(audit),
        *_leaks(audit),
        *_files(audit),
        *_contradictions(audit),
        *_colour(audit),
        *_near_duplicates(audit),
        *(audit.shortcut.lines() if audit.shortcut else ()),
    ]


def _balance(audit: Audit) -> Iterator[str]:
    negative, positive = (name.lower()[:10] for name in audit.classes)
    yield f"split    films  groups {negative:>7} {positive:>10}   share"
    for item in audit.balance:
        note = "  ONE CLASS ONLY" if item.split in audit.one_class else ""
        note = note or ("  differs by more than 5 points" if item.split in audit.unbalanced else "")
        counts = f"{item.films:8} {item.groups:7} {item.normal:7} {item.pneumonia:10}"
        yield f"{item.split:5} {counts} {item.share:5.1f} %{note}"
    for reason, count in audit.left_out.items():
        yield f"left out: {count} ({reason})"


def _leaks(audit: Audit) -> Iterator[str]:
    yield f"leaks across splits: {len(audit.leaks)}"
    yield from _some([str(leak) for leak in audit.leaks])


def _files(audit: Audit) -> Iterator[str]:
    """Every bad file with its reason, never cut short: the list is what a person works from."""
    yield f"films in a split that cannot be used now: {len(audit.broken)}"
    yield from (f"  {shown([item.path], room=200)}: {item.reason}" for item in audit.broken)
    yield f"bad files{', left out as asked' if audit.bad_allowed else ''}: {len(audit.bad_files)}"
    yield from (f"  {shown([item.path], room=200)}: {item.reason}" for item in audit.bad_files)


def _contradictions(audit: Audit) -> Iterator[str]:
    negative, positive = audit.classes
    yield f"identical films called {negative} and {positive}, one of them wrongly: {len(audit.contradictions)}"
    yield from _some([" = ".join(paths) for paths in audit.contradictions])


def _colour(audit: Audit) -> Iterator[str]:
    yield f"grey films saved as RGB: {audit.grey_as_rgb} (harmless: decoded to grey)"
    yield f"films with real colour, worth a look: {len(audit.coloured)}"
    yield from _some(audit.coloured)


def _near_duplicates(audit: Audit) -> Iterator[str]:
    found = audit.near_duplicates
    if found is None:
        return
    yield f"near-duplicates of different patients: {found.total}, across splits: {found.across_splits}"
    yield from _some([f"{a.first} ~ {a.second} (r {a.correlation:.3f})" for a in found.pairs], found.total)


def _some(texts: Sequence[str], total: int = 0) -> Iterator[str]:
    yield from (f"  {shown([text], room=200)}" for text in texts[:_SHOWN])
    if (more := max(total, len(texts)) - _SHOWN) > 0:
        yield f"  … and {more} more"
