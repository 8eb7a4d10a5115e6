"""The plain records of the data room: a file found, a film, a file left out."""

from __future__ import annotations

from dataclasses import dataclass

SPLITS = ("train", "val", "test")
KEPT_TEST = "patient also in the kept test split"
NOT_CHOSEN = {split: f"not chosen by data.{split}_films" for split in ("train", "val")}


@dataclass(frozen=True)
class Entry:
    """One file of a source. ``patient`` and ``subtype`` are empty where the film itself must tell them."""

    path: str
    label: int
    folder: str = ""
    patient: str = ""
    subtype: str = ""


@dataclass(frozen=True)
class Film:
    """One film of a manifest.

    Attributes:
        path: relative to the manifest's root, with forward slashes.
        label: 1 of the positive class (pneumonia, unless other classes are set), 0 of the negative one.
        patient: patient key after normalisation.
        subtype: ``normal``, ``bacteria``, ``virus`` or ``unknown``.
        folder: split folder in which the source had it (``train``, ``val``, ``test``), empty if none.
        group: films of one group stay in one split: same patient key, or linked by identical files.
        split: ``train``, ``val`` or ``test``.
        sha256, bytes: digest and size of the file.
        width, height: pixels.
        mode: mode as Pillow names it, or for example ``DICOM MONOCHROME2``.
    """

    path: str
    label: int
    patient: str
    subtype: str
    folder: str
    group: str
    split: str
    sha256: str
    bytes: int
    width: int
    height: int
    mode: str


@dataclass(frozen=True)
class LeftOut:
    """A file of the source that is in no split, and why."""

    path: str
    reason: str

    @property
    def bad(self) -> bool:
        """Whether the file itself cannot be used (not merely unwanted by the split or its limits)."""
        return self.reason != KEPT_TEST and self.reason not in NOT_CHOSEN.values()
