"""The patient-level split: group films that belong together, then deal groups to train, val and test.

Films of one patient, and files with the same bytes, form one group (union-find), and no group is ever divided. Groups
are dealt in an order drawn from the seed, each to the split whose shares of films, classes and subtypes it
brings nearest to what was asked (greedy, after Sechidis et al. 2011, "On the stratification of multi-label data");
then single groups move as long as that brings the split nearer. The order of the files plays no part, and the
arithmetic is plain IEEE doubles in a fixed order, so every machine deals alike.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from xray_opt.config import DataConfig
from xray_opt.dataset.names import LABELS, SUBTYPES
from xray_opt.dataset.records import KEPT_TEST, NOT_CHOSEN, Film, LeftOut
from xray_opt.errors import DataError

_PASSES = 20
#: What is balanced, with its weight: films, films of each class, films of each subtype.
_STRATA: tuple[tuple[Callable[[Film], bool], float], ...] = (
    (lambda film: True, 4.0),
    (lambda film: film.label == 0, 2.0),
    (lambda film: film.label == 1, 2.0),
    *(((lambda film, name=name: film.subtype == name), 1.0) for name in SUBTYPES[1:]),
)


def grouped(films: Iterable[Film]) -> tuple[Film, ...]:
    """The films with ``group`` set: the smallest patient key of all that share a patient or identical bytes."""
    films = tuple(films)
    leader: dict[str, str] = {}

    def find(node: str) -> str:
        while leader.setdefault(node, node) != node:
            leader[node] = node = leader[leader[node]]
        return node

    for film in films:
        # Two kinds of node in one forest; "p" sorts before "s", so a root is always a patient and the smallest one.
        low, high = sorted((find("p" + film.patient), find("s" + film.sha256)))
        leader[high] = low
    return tuple(replace(film, group=find("p" + film.patient)[1:]) for film in films)


def split_films(films: Iterable[Film], config: DataConfig) -> tuple[tuple[Film, ...], tuple[LeftOut, ...]]:
    """Group, split and limit; every film comes back once, either in a split or as left out.

    Raises:
        DataError: a split cannot get films of both classes, or ``keep_test`` without a test folder.
    """
    films = grouped(films)
    if config.keep_test:
        placed, left_out = _keep_test(films, config)
    else:
        shares = {"train": config.train_fraction, "val": config.val_fraction, "test": config.test_fraction}
        placed, left_out = _deal(films, shares, config.seed, config.classes), []
    for split, most in (("train", config.train_films), ("val", config.val_films)):
        placed, beyond = _limit(placed, split, most, config)
        left_out += beyond
    return tuple(sorted(placed, key=_path)), tuple(sorted(left_out, key=_path))


def redealt(films: Iterable[Film], seed: int, classes: tuple[str, str] = LABELS) -> tuple[Film, ...]:
    """Films of train and val dealt anew to these two, about as many to each as before.

    Raises:
        DataError: a split cannot get films of both classes.
    """
    films = tuple(films)
    share = sum(film.split == "train" for film in films) / len(films)
    return tuple(sorted(_deal(films, {"train": share, "val": 1 - share}, seed, classes), key=_path))


def _path(item: Film | LeftOut) -> str:
    return item.path


def _keep_test(films: Sequence[Film], config: DataConfig) -> tuple[list[Film], list[LeftOut]]:
    kept = [replace(film, split="test") for film in films if film.folder == "test"]
    if not kept:
        raise DataError(
            "data.keep_test is set, but the source has no test folder; leave --keep-test out to have one split off"
        )
    if missing := _missing(kept, config.classes):
        raise DataError(f"the kept test split has no {missing} film; leave --keep-test out to have one split off")
    touched = {film.group for film in kept}
    rest = [film for film in films if film.folder != "test" and film.group not in touched]
    left_out = [LeftOut(film.path, KEPT_TEST) for film in films if film.folder != "test" and film.group in touched]
    both = config.train_fraction + config.val_fraction
    shares = {"train": config.train_fraction / both, "val": config.val_fraction / both}
    return kept + _deal(rest, shares, config.seed, config.classes), left_out


def _limit(films: list[Film], split: str, most: int | None, config: DataConfig) -> tuple[list[Film], list[LeftOut]]:
    mine = [film for film in films if film.split == split]
    if most is None or most >= len(mine):
        return films, []
    share = most / len(mine)
    dealt = _deal(mine, {split: share, "": 1 - share}, config.seed, config.classes)
    beyond = [LeftOut(film.path, NOT_CHOSEN[split]) for film in dealt if not film.split]
    return [film for film in films if film.split != split] + [film for film in dealt if film.split], beyond


def _missing(films: Iterable[Film], classes: tuple[str, str]) -> str:
    found = {film.label for film in films}
    return " and no ".join(name for label, name in enumerate(classes) if label not in found)


def _deal(films: Iterable[Film], shares: Mapping[str, float], seed: int, classes: tuple[str, str]) -> list[Film]:
    """The films with ``split`` set to the names of ``shares``; the split named ``""`` may lack a class."""
    members: dict[str, list[Film]] = defaultdict(list)
    for film in films:
        members[film.group].append(film)
    order = sorted(
        members, key=lambda group: hashlib.sha256(f"{seed}:{group}".encode("utf-8", "surrogateescape")).digest()
    )
    groups = [_Group(name, [float(sum(map(holds, members[name]))) for holds, _ in _STRATA]) for name in order]
    table = _Table(groups, tuple(shares), list(shares.values()))
    _require_patients(groups, [name for name in shares if name], classes)
    for group in groups:
        table.place(group, table.nearest(group, range(len(shares))))
    table.cover()
    table.refine()
    return [replace(film, split=table.names[table.at[film.group]]) for name in order for film in members[name]]


def _require_patients(groups: Sequence[_Group], splits: Sequence[str], classes: tuple[str, str]) -> None:
    for label, name in enumerate(classes):
        having = sum(group.has(label) for group in groups)
        if having < len(splits):
            raise DataError(
                f"{', '.join(splits)} each need {name} films of another patient, but only {having} of {len(groups)} "
                f"patients can give them; add {name} films of more patients"
            )


@dataclass(frozen=True)
class _Group:
    """A group's name and how many films it has of each stratum."""

    name: str
    counts: list[float]

    def has(self, label: int) -> bool:
        return self.counts[1 + label] > 0


class _Table:
    """Who stands where, and how far each split is from what was asked."""

    def __init__(self, groups: Sequence[_Group], names: tuple[str, ...], shares: list[float]) -> None:
        self.groups, self.names = groups, names
        totals = [sum(group.counts[k] for group in groups) for k in range(len(_STRATA))]
        self.wanted = [[share * total for total in totals] for share in shares]
        self.counts = [[0.0] * len(_STRATA) for _ in names]
        self.covers = [[0, 0] for _ in names]  # groups with a film of each class, a split
        self.at: dict[str, int] = {}

    def place(self, group: _Group, split: int) -> None:
        self.at[group.name] = split
        self._count(group, split, 1)

    def move(self, group: _Group, split: int) -> None:
        self._count(group, self.at[group.name], -1)
        self.place(group, split)

    def _count(self, group: _Group, split: int, sign: int) -> None:
        self.counts[split] = [have + sign * films for have, films in zip(self.counts[split], group.counts, strict=True)]
        for label in (0, 1):
            self.covers[split][label] += sign * group.has(label)

    def cost(self, group: _Group, split: int, sign: int) -> float:
        """Change of the weighted squared distance, relative to what was asked, if the group came (1) or went (-1)."""
        total = 0.0
        rows = zip(group.counts, self.counts[split], self.wanted[split], _STRATA, strict=True)
        for films, have, wanted, (_, weight) in rows:
            if films:
                total += weight * films * (films + 2 * sign * (have - wanted)) / wanted
        return total

    def nearest(self, group: _Group, splits: Iterable[int]) -> int:
        return min(splits, key=lambda split: self.cost(group, split, 1))

    def may_leave(self, group: _Group) -> bool:
        """Whether its split keeps both classes without the group."""
        split = self.at[group.name]
        return not self.names[split] or all(self.covers[split][label] - group.has(label) >= 1 for label in (0, 1))

    def cover(self) -> None:
        """Give every named split both classes. With one patient a class and split, some other split has two to give."""
        for split, name in enumerate(self.names):
            for label in (0, 1):
                if name and not self.covers[split][label]:
                    self.move(self._giver(split, label), split)

    def _giver(self, split: int, label: int) -> _Group:
        def spare(group: _Group) -> bool:
            at = self.at[group.name]
            other = 1 - label
            spares = self.covers[at][label] > 1 and not (group.has(other) and self.covers[at][other] == 1)
            return at != split and group.has(label) and (spares or not self.names[at])

        return min(
            filter(spare, self.groups),
            key=lambda group: self.cost(group, split, 1) + self.cost(group, self.at[group.name], -1),
        )

    def refine(self) -> None:
        """Move single groups while that brings the shares nearer and no split loses a class."""
        for _ in range(_PASSES):
            if not sum([self._improve(group) for group in self.groups]):
                return

    def _improve(self, group: _Group) -> bool:
        at = self.at[group.name]
        if not self.may_leave(group):
            return False
        best = self.nearest(group, [split for split in range(len(self.names)) if split != at])
        if self.cost(group, best, 1) + self.cost(group, at, -1) > -1e-9:
            return False
        self.move(group, best)
        return True
