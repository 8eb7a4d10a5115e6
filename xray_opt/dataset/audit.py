"""The audit: does this split leak, and are its films what they should be? It trusts neither splitter nor manifest.

Every file is read again and hashed again, every patient key is taken anew from its file name where names tell it.
Leaks, splits of one class and unusable films are errors; shares that differ, colour, near-duplicates and shortcuts are
reported, for a person to judge.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xray_opt.dataset import audit_report
from xray_opt.dataset.films import has_colour, read_bytes, thumbnail
from xray_opt.dataset.manifest import Manifest
from xray_opt.dataset.names import LABELS, patient_key, read_name, shown
from xray_opt.dataset.near_duplicates import NearDuplicates, near_duplicates
from xray_opt.dataset.records import SPLITS, Film, LeftOut
from xray_opt.dataset.shortcuts import SIDE, Progress, Shortcut, Thumbnails, in_threads, open_films, screen
from xray_opt.errors import AuditError, BadFilm

#: Percentage points by which a split's share of pneumonia may differ from that of all films without a warning.
MOST_POINTS = 5.0


@dataclass(frozen=True)
class Leak:
    """One patient, file or group that stands in several splits. ``kind`` is ``patient``, ``file`` or ``group``."""

    kind: str
    key: str
    splits: tuple[str, ...]
    paths: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.kind} {self.key[:24]} in {' and '.join(self.splits)} ({shown(list(self.paths), 2)})"


@dataclass(frozen=True)
class Balance:
    """Films of one split, by class."""

    split: str
    films: int
    groups: int
    normal: int
    pneumonia: int

    @property
    def share(self) -> float:
        """Pneumonia in percent of the films, 0 for an empty split."""
        return 100 * self.pneumonia / self.films if self.films else 0.0


@dataclass(frozen=True)
class Audit:
    """What the audit found; ``ok`` unless something in it is an error.

    Attributes:
        manifest_sha256: of the manifest that was looked at.
        balance: train, val, test.
        leaks: patients, files and groups across splits.
        broken: films *in* a split that are missing, changed or unusable now.
        bad_files: files that were left out because they cannot be used.
        bad_allowed: whether leaving those out was asked for (``skip_bad``).
        left_out: other files in no split: reason → how many.
        grey_as_rgb: grey films saved as RGB.
        coloured: RGB films with real colour (drawings, stamps, photographs of films).
        contradictions: identical films that stand under both classes, the paths of each.
        near_duplicates, shortcut: none where the screens were not asked for.
        classes: names of the two classes; ``normal`` and ``pneumonia`` of the balance count label 0 and 1.
    """

    manifest_sha256: str
    balance: tuple[Balance, ...]
    leaks: tuple[Leak, ...]
    broken: tuple[LeftOut, ...]
    bad_files: tuple[LeftOut, ...]
    bad_allowed: bool
    left_out: dict[str, int]
    grey_as_rgb: int
    coloured: tuple[str, ...]
    contradictions: tuple[tuple[str, ...], ...]
    near_duplicates: NearDuplicates | None
    shortcut: Shortcut | None
    classes: tuple[str, str] = LABELS

    @property
    def one_class(self) -> tuple[str, ...]:
        """Splits that lack a class: nothing can be scored on them."""
        return tuple(item.split for item in self.balance if not item.normal or not item.pneumonia)

    @property
    def unbalanced(self) -> tuple[str, ...]:
        """Splits whose share of pneumonia differs from that of all films by more than 5 points."""
        films = sum(item.films for item in self.balance)
        share = 100 * sum(item.pneumonia for item in self.balance) / max(films, 1)
        return tuple(item.split for item in self.balance if item.films and abs(item.share - share) > MOST_POINTS)

    @property
    def ok(self) -> bool:
        """No leak, no split of one class, no unusable film but those that were to be left out."""
        bad = self.bad_files and not self.bad_allowed
        return not (self.leaks or self.one_class or self.broken or bad)

    def raise_on_leak(self) -> None:
        """Raise AuditError where a leak, a split of one class or a broken film makes the split unusable."""
        if self.leaks:
            raise AuditError(
                f"{len(self.leaks)} leaks across splits, first: {self.leaks[0]}; run xray-opt data prepare again"
            )
        if self.one_class:
            raise AuditError(f"the {self.one_class[0]} split lacks a class; use more patients or other fractions")
        if self.broken:
            raise AuditError(f"{_named(self.broken)} in a split; run xray-opt data prepare again")

    def raise_on_bad_files(self) -> None:
        """Raise AuditError where any file cannot be used, left out or not."""
        if bad := (*self.broken, *self.bad_files):
            raise AuditError(f"{_named(bad)}; mend them, or leave them out with --skip-bad")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, with what follows from the fields beside them."""
        return {"ok": self.ok, "one_class": self.one_class, "unbalanced": self.unbalanced} | dataclasses.asdict(self)

    def lines(self) -> list[str]:
        """A plain report that reads well in 80 columns (long paths aside)."""
        return audit_report.lines(self)


def audit(manifest: Manifest, screen: bool = True, progress: Progress | None = None) -> Audit:
    """Look at every film of a manifest.

    Args:
        screen: also look for near-duplicates and shortcuts, which decodes every film.
        progress: called with (films done, films in all).
    """
    sights = in_threads(lambda film: _look(Path(manifest.root), film, screen), manifest.films, progress)
    seen = [sight for sight in sights if isinstance(sight, _Sight)]
    return Audit(
        manifest_sha256=manifest.sha256,
        balance=tuple(_balance(split, [film for film in manifest.films if film.split == split]) for split in SPLITS),
        leaks=_leaks(manifest, seen),
        broken=tuple(sight for sight in sights if isinstance(sight, LeftOut)),
        bad_files=tuple(item for item in manifest.left_out if item.bad),
        bad_allowed=bool(manifest.settings.get("skip_bad")),
        left_out=dict(Counter(item.reason for item in manifest.left_out if not item.bad)),
        grey_as_rgb=sum(sight.film.mode == "RGB" and not sight.coloured for sight in seen),
        coloured=tuple(sight.film.path for sight in seen if sight.coloured),
        contradictions=_contradictions(seen),
        near_duplicates=near_duplicates([sight.film for sight in seen], _stacked(seen)) if screen else None,
        shortcut=_shortcut(manifest, seen) if screen else None,
        classes=manifest.classes,
    )


@dataclass(frozen=True)
class _Sight:
    """What one look at a film gave: its digest now, and its thumbnail where the screens want it."""

    film: Film
    sha256: str
    coloured: bool
    thumbnail: Thumbnails | None


def _look(root: Path, film: Film, screened: bool) -> _Sight | LeftOut:
    path = root / film.path
    try:
        digest = hashlib.sha256(read_bytes(path)).hexdigest()
        if digest != film.sha256:
            return LeftOut(film.path, "changed since the manifest was made")
        coloured = film.mode == "RGB" and has_colour(path)
        return _Sight(film, digest, coloured, thumbnail(path, SIDE) if screened else None)
    except BadFilm as error:
        return LeftOut(film.path, str(error))


def _balance(split: str, films: Sequence[Film]) -> Balance:
    labels = Counter(film.label for film in films)
    return Balance(split, len(films), len({film.group for film in films}), labels[0], labels[1])


def _leaks(manifest: Manifest, seen: Iterable[_Sight]) -> tuple[Leak, ...]:
    names_tell = manifest.source in ("", manifest.root)  # else a table, whatever it is called
    keys = [(_patient(film, names_tell), film) for film in manifest.films]
    return (
        *_across("patient", keys),
        *_across("file", [(sight.sha256, sight.film) for sight in seen]),
        *_across("group", [(film.group, film) for film in manifest.films]),
    )


def _contradictions(seen: Iterable[_Sight]) -> tuple[tuple[str, ...], ...]:
    films: dict[str, list[Film]] = defaultdict(list)
    for sight in seen:
        films[sight.sha256].append(sight.film)
    both = (found for found in films.values() if len({film.label for film in found}) > 1)
    return tuple(sorted(tuple(film.path for film in found) for found in both))


def _patient(film: Film, names_tell: bool) -> str:
    """The key anew: from the name in a folder of films, else from what a CSV or a DICOM header said."""
    name = read_name(Path(film.path).name)
    if name and names_tell and not film.mode.startswith("DICOM"):
        return name.patient
    return patient_key(film.patient)


def _across(kind: str, keyed: Iterable[tuple[str, Film]]) -> list[Leak]:
    films: dict[str, list[Film]] = defaultdict(list)
    for key, film in keyed:
        films[key].append(film)
    return [
        Leak(kind, key, tuple(split for split in SPLITS if split in splits), tuple(film.path for film in found))
        for key, found in sorted(films.items())
        if len(splits := {film.split for film in found}) > 1
    ]


def _stacked(seen: Sequence[_Sight]) -> Thumbnails:
    return np.array([sight.thumbnail for sight in seen], dtype=np.uint8).reshape(-1, SIDE, SIDE)


def _shortcut(manifest: Manifest, seen: Sequence[_Sight]) -> Shortcut:
    """In the order of ``shortcut_screen``, so that both give the same numbers."""
    by_path = {sight.film.path: sight for sight in seen}
    chosen = [by_path[film.path] for film in open_films(manifest) if film.path in by_path]
    return screen([sight.film for sight in chosen], _stacked(chosen), manifest.classes[1])


def _named(items: Sequence[LeftOut]) -> str:
    paths, reasons = [item.path for item in items], [item.reason for item in items]
    return f"{len(items)} unusable films: {shown(paths, 3, 200, reasons)}"
