"""What a file name tells: the patient and the kind of pneumonia, by the grammar of the Kaggle set.

``personN_bacteria_M``, ``personN_virus_M`` (one film has a further ``_K``), ``IM-NNNN-MMMM[-KKKK]`` and the same
after ``NORMAL2-``. Whether ``person7_bacteria_…`` and ``person7_virus_…`` are one child is not known, nor whether
``IM-0095`` and ``NORMAL2-IM-0095`` are: each pair is one patient here, which is the safe choice.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

from xray_opt.errors import shortened

#: Class names in the order of their label where no others are set: 1 is the positive class.
LABELS = ("NORMAL", "PNEUMONIA")
SUBTYPES = ("normal", "bacteria", "virus", "unknown")
GRAMMAR = "personN_bacteria_M, personN_virus_M, IM-NNNN-MMMM or NORMAL2-IM-NNNN-MMMM"

_IGNORE = re.IGNORECASE | re.ASCII
_PERSON = re.compile(r"person(\d+)", _IGNORE)
_PERSON_FILM = re.compile(r"person(\d+)_(bacteria|virus)_\d+(?:_\d+)?", _IGNORE)
_IM = re.compile(r"(?:NORMAL\d*-)?IM-(\d+)", _IGNORE)
_IM_FILM = re.compile(r"(?:NORMAL\d*-)?IM-(\d+)-\d+(?:-\d+)?", _IGNORE)


@dataclass(frozen=True)
class Name:
    """Patient key and subtype (``normal``, ``bacteria`` or ``virus``) that a file name tells."""

    patient: str
    subtype: str


def read_name(file_name: str) -> Name | None:
    """Read a file name with or without its extension; none where the grammar does not match."""
    stem = file_name.rpartition(".")[0] or file_name
    if person := _PERSON_FILM.fullmatch(stem):
        return Name(_person(person), person[2].lower())
    if im := _IM_FILM.fullmatch(stem):
        return Name(_im(im), "normal")
    return None


def patient_key(patient: str) -> str:
    """One spelling for one patient: ``NORMAL2-IM-95`` → ``IM-0095``; what the grammar does not know stays as it is."""
    text = patient.strip()
    if person := _PERSON.fullmatch(text) or _PERSON_FILM.fullmatch(text):
        return _person(person)
    if im := _IM.fullmatch(text) or _IM_FILM.fullmatch(text):
        return _im(im)
    return text


def folded(name: str) -> str:
    """A class name as it is compared: in any case, and an ``ü`` of one letter or of two, as macOS writes it."""
    return unicodedata.normalize("NFC", name).lower()


def _person(match: re.Match[str]) -> str:
    return f"person{match[1].lstrip('0') or '0'}"


def _im(match: re.Match[str]) -> str:
    return f"IM-{match[1].lstrip('0').zfill(4)}"


def subtype_of(label: int, name: Name | None, classes: tuple[str, str] = LABELS) -> str:
    """Subtype of a film: the label decides between normal and pneumonia, the name between bacteria and virus.

    Under other ``classes`` the label says nothing of it, and the name all.
    """
    if classes != LABELS:
        return name.subtype if name else "unknown"
    if label == 0:
        return "normal"
    return "unknown" if name is None or name.subtype == "normal" else name.subtype


def shown(paths: list[str], most: int = 5, room: int = 125, reasons: Sequence[str] = ()) -> str:
    """The first few paths for a message of one line, whatever bytes the names hold and however long they are.

    Args:
        room: characters for all of them; the first is shown in any case. The middle of a path is left out beyond 100.
        reasons: what is wrong with each, shown behind it; whole, the path shorter for it, where it leaves the path 60.
    """
    given = zip_longest(paths[:most], reasons[:most], fillvalue="")
    safe = [_item(path.replace("\n", "\\n"), reason, room) for path, reason in given]
    while len(safe) > 1 and len(", ".join(safe)) > room:
        safe.pop()
    return ", ".join(safe) + (", …" if len(paths) > len(safe) else "")


def _item(path: str, reason: str, room: int) -> str:
    if not reason:
        return shortened(path, 100)
    told = shortened(reason, room - 63)
    return f"{shortened(path, min(100, room - 3 - len(told)))} ({told})"
