"""CSVs of films, whose faults name their line: ``path,label,patient`` and, if wanted, ``subtype`` and ``split``; and
``path,patient`` for films without labels.
"""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from xray_opt.dataset.names import LABELS, SUBTYPES, folded, patient_key
from xray_opt.dataset.records import SPLITS, Entry
from xray_opt.errors import DataError, brief, shortened

_REQUIRED = ("path", "label", "patient")
_WITHOUT_LABELS = ("path", "patient")
_OPTIONAL = ("subtype", "split")
#: Behind an error that may come of classes that are called otherwise.
OTHER_CLASSES = "; other classes are named with --classes, or data.negative and data.positive"


@dataclass(frozen=True)
class _Line:
    """One row with where it stands, so that every fault can say it."""

    table: Path
    number: int
    cells: dict[str, str]

    def refuse(self, fault: str) -> NoReturn:
        raise DataError(f"{self.table} line {self.number}: {fault}")

    def one_of(self, column: str, allowed: tuple[str, ...]) -> str:
        value = self.cells.get(column, "").lower()
        if value and value not in allowed:
            self.refuse(f"{column} must be one of {', '.join(allowed)}, not {brief(value)}")
        return value


def read_table(path: Path, classes: tuple[str, str] = LABELS) -> list[Entry]:
    """Entries of a CSV; paths are relative to its folder, labels are names of ``classes`` in any case, 0 or 1.

    Raises:
        DataError: a missing column, an unknown label, a path twice, outside the folder or missing, an empty
            patient, or a split on some rows only: one line with the line number.
    """
    lines = _read(path, _REQUIRED, _OPTIONAL)
    entries: dict[str, Entry] = {}
    for line in lines:
        entry = _entry(line, classes)
        if entry.path in entries:
            line.refuse(f"the path {shortened(entry.path)} stands twice")
        entries[entry.path] = entry
    with_split = sum(bool(entry.folder) for entry in entries.values())
    if with_split not in (0, len(entries)):
        first = next(line for line in lines if not line.cells.get("split"))
        first.refuse("no split, while other rows have one; give every row a split or none")
    return list(entries.values())


def read_patients(path: Path) -> dict[str, str]:
    """Real path of a film → its patient, of a CSV ``path,patient``; other columns do not count.

    Paths are relative to the CSV's folder or absolute. A patient's name is taken as it stands: no grammar joins two of
    them. Whether the films are there is not asked.

    Raises:
        DataError: no such file, a missing column, an empty path or patient, or one film of two patients: one line with
            the line number.
    """
    found: dict[str, str] = {}
    for line in _read(path, _WITHOUT_LABELS):
        given, patient = line.cells["path"], line.cells["patient"]
        if not given or "\0" in given:
            line.refuse("the path is empty" if not given else f"{shortened(given)} is no path")
        if not patient:
            line.refuse("the patient is empty; a film whose patient is not known does not belong here")
        film = os.path.realpath(path.parent / given)
        if found.setdefault(film, patient) != patient:
            line.refuse(f"{shortened(given)} is of {brief(patient)} here, and of {brief(found[film])} above")
    if not found:
        raise DataError(f"{path} names no film; under path,patient it needs a line a film")
    return found


def _read(path: Path, required: tuple[str, ...], optional: tuple[str, ...] = ()) -> list[_Line]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            columns = [name.strip().lower() for name in next(reader, [])]
            _check_columns(path, columns, required, optional)
            return [_line(path, reader.line_num, columns, row) for row in reader if any(cell.strip() for cell in row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read {path} as a CSV in UTF-8: {error}") from error


def _check_columns(path: Path, columns: list[str], required: tuple[str, ...], optional: tuple[str, ...]) -> None:
    if missing := [name for name in required if name not in columns]:
        found = shortened(", ".join(columns)) or "nothing"
        raise DataError(
            f"{path} line 1: no column {missing[0]!r}; a CSV of films starts with {','.join(required)}, not '{found}'"
        )
    for name in (*required, *optional):
        if columns.count(name) > 1:
            raise DataError(f"{path} line 1: the column {name!r} stands twice")


def _line(path: Path, number: int, columns: list[str], row: list[str]) -> _Line:
    line = _Line(path, number, dict(zip(columns, (cell.strip() for cell in row), strict=False)))
    if len(row) != len(columns):
        line.refuse(f"{len(row)} cells under {len(columns)} columns; put a cell that holds a comma in quotes")
    return line


def _entry(line: _Line, classes: tuple[str, str]) -> Entry:
    labels = {folded(name): label for label, name in enumerate(classes)} | {"0": 0, "1": 1}
    label = labels.get(folded(line.cells["label"]))
    if label is None:
        line.refuse(f"label must be {', '.join(classes)}, 0 or 1, not {brief(line.cells['label'])}{OTHER_CLASSES}")
    if not line.cells["patient"]:
        line.refuse("the patient is empty; films of one child must share a patient so that they stay in one split")
    subtype = line.one_of("subtype", SUBTYPES)
    if subtype and classes == LABELS and (subtype == "normal") != (label == 0):
        line.refuse(f"subtype {subtype!r} contradicts the label {LABELS[label]}")
    return Entry(_path(line), label, line.one_of("split", SPLITS), patient_key(line.cells["patient"]), subtype)


def _path(line: _Line) -> str:
    given, folder = line.cells["path"], line.table.parent
    if not given:
        line.refuse("the path is empty")
    path = Path(os.path.normpath(folder / given))
    if not path.is_relative_to(folder):
        line.refuse(f"{shortened(given)} lies outside the CSV's folder {folder}; put the CSV above its films")
    if not os.path.isfile(path):
        line.refuse(f"there is no file {shortened(given)} in {folder}")
    return path.relative_to(folder).as_posix()
