"""Patients whom base weights have seen already: where they stand in val or test, scores there are too good.

A base that ``xray-opt base export`` wrote tells what it was trained on, and so do the bases before it. A patient of the
new split counts as seen if a film of their group was among those films, or if their key was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

from xray_opt.backbone import Ancestor, Base
from xray_opt.config import ModelConfig
from xray_opt.dataset import Film, Manifest
from xray_opt.errors import AuditError

#: Study note, and MLflow tag of study, runs and versions, where an overlap was allowed.
OVERLAP, TAG = "base_overlap", "xray_opt.base_overlap"
WAYS_ON = (
    "train the base on patients of this study's train split alone, or set model.base_overlap=warn, which is noted "
    "wherever scores are kept"
)


@dataclass(frozen=True)
class Overlap:
    """How many patients of val and of test the base was trained on, and how many there are.

    Attributes:
        runs: the MLflow runs that saw them.
        unlisted: films that the base was trained on without telling which.
    """

    val: int
    val_patients: int
    test: int
    test_patients: int
    runs: tuple[str, ...]
    unlisted: int

    def text(self) -> str:
        """``3 of 12 val and 1 of 14 test patients``."""
        if self.unlisted:
            return f"{self.unlisted} films that are not listed"
        return f"{self.val} of {self.val_patients} val and {self.test} of {self.test_patients} test patients"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self) | {"runs": list(self.runs)}


def overlap_of(trained_on: Iterable[Ancestor], manifest: Manifest) -> Overlap | None:
    """The overlap of a base's trainings with the val and test splits of ``manifest``; none where there is none.

    Of test films digests and patient keys are looked at, as the split itself does, and neither labels nor pixels.
    """
    ancestors = tuple(trained_on)
    held_out = [film for film in manifest.films if film.split != "train"]
    found = [(one.run, seen_groups([one], held_out)) for one in ancestors]
    unlisted = sum(one.film_count for one in ancestors if not one.is_listed)
    seen = set[str]().union(*(groups for _, groups in found))
    if not seen and not unlisted:
        return None
    groups = {name: {film.group for film in held_out if film.split == name} for name in ("val", "test")}
    val, test = groups["val"], groups["test"]
    runs = tuple(sorted({run for run, some in found if some}))
    return Overlap(len(val & seen), len(val), len(test & seen), len(test), runs, unlisted)


def seen_groups(trained_on: Iterable[Ancestor], films: Iterable[Film]) -> set[str]:
    """The patient groups of ``films`` of whom a film, or whose key, was among those of a base's trainings."""
    ancestors = tuple(trained_on)
    return {
        film.group
        for film in films
        for one in ancestors
        if one.saw_film(film.sha256) or one.saw_patient(film.patient) or one.saw_patient(film.group)
    }


def require_apart(
    base: Base, manifest: Manifest, model: ModelConfig, say: Callable[[str], None] = lambda line: None
) -> Overlap | None:
    """Refuse base weights that have seen patients of val or test; where settings allow it, say it and return how many.

    Raises:
        AuditError: they have, or do not tell, and ``model.base_overlap`` is ``refuse``.
    """
    found = overlap_of(base.trained_on, manifest)
    if found is None:
        return None
    what = f"the base weights ({base.origin}) were trained on {found.text()}"
    if model.base_overlap == "refuse":
        if found.unlisted:
            raise AuditError(f"{what}: a leak cannot be ruled out; give the file that base export wrote, {WAYS_ON}")
        raise AuditError(f"{what} of this split: scores on them would be too good; {WAYS_ON}")
    say(f"!!! LEAK, allowed by model.base_overlap=warn: {what}: scores on val and test are too good")
    return found


def overlap_tags(found: Overlap | None) -> dict[str, str]:
    """Tags that tell of an allowed overlap."""
    return {} if found is None else {TAG: found.text()}
