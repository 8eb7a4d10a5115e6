"""Which files are meant by the films and folders that a command is given."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from xray_opt.errors import DataError

#: What is read where a folder is given.
SUFFIXES = (".jpeg", ".jpg", ".png", ".dcm", ".dicom")


def film_files(films: Iterable[Path]) -> Iterable[Path]:
    """The files named, and the films below the folders named, sorted within each folder."""
    for path in films:
        if not os.path.exists(path):
            raise DataError(f"{path} does not exist")
        if not path.is_dir():
            yield path
            continue
        found = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
        if not found:
            raise DataError(f"{path} holds no films ({', '.join(SUFFIXES)})")
        yield from found
