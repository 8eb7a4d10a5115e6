"""Which files are meant by the films and folders that a command is given."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from xray_opt.dataset import begins_like_a_film, files_below
from xray_opt.errors import DataError

#: What is read where a folder is given, whatever is in it; files of other names if they begin like a film.
SUFFIXES = (".jpeg", ".jpg", ".png", ".dcm", ".dicom")


def film_files(films: Iterable[Path]) -> Iterable[Path]:
    """The files named, and the films below the folders named, sorted within each folder.

    Raises:
        DataError: one does not exist, or a folder holds no film or cannot be read.
    """
    for path in films:
        if not os.path.exists(path):
            raise DataError(f"{path} does not exist")
        if not path.is_dir():
            yield path
            continue
        found = sorted(filter(_is_meant, files_below(path)))
        if not found:
            raise DataError(f"{path} holds no films ({', '.join(SUFFIXES)})")
        yield from found


def _is_meant(path: Path) -> bool:
    """An archive of DICOM often calls its files by numbers alone: to leave them out in silence would be half an
    answer.
    """
    if path.name.upper() == "DICOMDIR":  # the archive's list of its files
        return False
    return path.suffix.lower() in SUFFIXES or begins_like_a_film(path)
