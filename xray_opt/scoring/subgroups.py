"""Scores of parts of the films: by kind of pneumonia, size, original folder and mode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count, pairwise

import numpy as np
from numpy.typing import NDArray

from xray_opt.dataset import Film
from xray_opt.intervals import Interval, Patients, scored
from xray_opt.metrics import Cases

Members = Mapping[str, NDArray[np.bool_]]


@dataclass(frozen=True)
class Subgroup:
    """Scores of one part at the fixed threshold, with 95 % intervals over its patients.

    Attributes:
        by: what the films are parted by; ``name`` is the part.
    """

    by: str
    name: str
    films: int
    patients: int
    auc: Interval
    sensitivity: Interval
    specificity: Interval


def subgroups(films: Sequence[Film], cases: Cases, threshold: float) -> tuple[Subgroup, ...]:
    """Every part of every parting that has more than one part; a kind of pneumonia is set against all normal films."""
    normal = cases.labels == 0
    kinds = _parts([film.subtype for film in films if film.label], ~normal)
    partings: dict[str, Members] = {
        "subtype": {name: members | normal for name, members in kinds.items()},
        "size": _by_size(films),
        "folder": _parts([film.folder or "none" for film in films]),
        "mode": _parts([film.mode for film in films]),
    }
    groups = np.array([film.group for film in films])
    return tuple(
        _subgroup(by, name, cases, members, groups, threshold)
        for by, parts in partings.items()
        if len(parts) > 1
        for name, members in parts.items()
    )


def _subgroup(
    by: str, name: str, cases: Cases, members: NDArray[np.bool_], groups: NDArray[np.str_], threshold: float
) -> Subgroup:
    whose = Patients(groups[members].tolist())
    found = scored(Cases(cases.labels[members], cases.probabilities[members]), whose, threshold)
    three = (found[score] for score in ("auc", "sensitivity", "specificity"))
    return Subgroup(by, name, int(members.sum()), whose.count, *three)


def _parts(names: Sequence[str], among: NDArray[np.bool_] | None = None) -> Members:
    """Name → (N,) the films of this name; ``names`` are of the films ``among`` all, or of all of them."""
    found: dict[str, NDArray[np.bool_]] = {}
    for name in sorted(set(names)):
        own = np.array([other == name for other in names], dtype=bool)
        if among is not None:
            whole = np.zeros(len(among), dtype=bool)
            whole[among] = own
            own = whole
        found[name] = own
    return found


def _by_size(films: Sequence[Film]) -> Members:
    """Thirds by pixels; fewer parts where many films are of one size."""
    sizes = np.array([film.width * film.height for film in films], dtype=np.float64)
    ends = [0.0, *np.unique(np.quantile(sizes, [1 / 3, 2 / 3])), np.inf] if len(films) else []
    thirds = [(sizes > low) & (sizes <= high) for low, high in pairwise(ends)]
    thirds = [members for members in thirds if members.any()]
    ranges = [(sizes[members].min() / 1e6, sizes[members].max() / 1e6) for members in thirds]
    digits = next(some for some in count(2) if len(set(_ranges(ranges, some))) == len(ranges))
    return dict(zip(_ranges(ranges, digits), thirds, strict=True))


def _ranges(ranges: Sequence[tuple[float, float]], digits: int) -> list[str]:
    """In words of so many digits; two parts of one name would be one."""
    return [f"{least:.{digits}g}-{most:.{digits}g} Mpx" for least, most in ranges]
