"""Which films a source holds: Kaggle's layout, class folders, or a CSV. Names and sizes only, nothing is opened.

    train|val|test / NORMAL|PNEUMONIA / film      Kaggle's layout
    NORMAL|PNEUMONIA / film                       class folders
    films.csv: path,label,patient[,subtype][,split]

Class names are those of the settings, ``NORMAL`` and ``PNEUMONIA`` unless others are set; folder names are read in any
case. Where a folder holds no layout itself the one folder inside it that does is taken;
the second ``chest_xray`` that Kaggle's archive carries inside the first one is not.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from xray_opt.dataset.names import LABELS, folded, shown
from xray_opt.dataset.records import Entry
from xray_opt.dataset.table import OTHER_CLASSES, read_table
from xray_opt.errors import DataError

Classes = tuple[str, str]
_SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_NOT_FILMS = {"thumbs.db", "desktop.ini", "__macosx"}
_DEPTH = 3  # kagglehub's versions/2/chest_xray and one more


@dataclass(frozen=True)
class Listing:
    """All files of a source, sorted by path.

    Attributes:
        source: absolute path of the folder or CSV.
        root: absolute folder to which the paths are relative.
    """

    source: Path
    root: Path
    entries: tuple[Entry, ...]

    def fingerprint(self) -> str:
        """Cheap digest of names, sizes and modification times: equal means nothing was touched."""
        digest = hashlib.sha256()
        for entry in self.entries:
            line = (
                entry.path,
                entry.label,
                entry.folder,
                entry.patient,
                entry.subtype,
                *_stamp(self.root / entry.path),
            )
            digest.update(repr(line).encode())
        return digest.hexdigest()


def _stamp(path: Path) -> tuple[int, int]:
    try:
        facts = path.stat()
    except OSError:  # a dangling link: the inspection lists it as a bad film
        return (-1, -1)
    return (facts.st_size, facts.st_mtime_ns)


def layouts(classes: Classes) -> str:
    """What a source of films may be, in words."""
    both = " and ".join(classes)
    return f"train/val/test folders with {both} inside, {both} folders, or a CSV path,label,patient"


def index(source: str | Path, classes: Classes = LABELS) -> Listing:
    """List the films of a folder or CSV.

    Args:
        classes: names of the negative and of the positive class, as folders or labels of the CSV spell them.

    Raises:
        DataError: no such source, no known layout, two sets side by side, a class missing, or a fault in the CSV.
    """
    path = Path(os.path.abspath(os.path.expanduser(source)))
    if os.path.isfile(path):  # False, too, for a name that is too long
        root, entries = path.parent, read_table(path, classes)
    elif os.path.isdir(path):
        root = path = _find_layout(path, classes)
        entries = list(_films(root, classes))
    else:
        raise DataError(f"there is no folder or CSV {path}; data.root must name {layouts(classes)}")
    for label, name in enumerate(classes):
        if not any(entry.label == label for entry in entries):
            raise DataError(f"{path} holds no {name} film; it must hold films of both classes, as {layouts(classes)}")
    return Listing(path, root, tuple(sorted(entries, key=lambda entry: entry.path)))


def _visible(name: str) -> bool:
    return not name.startswith(".") and name.lower() not in _NOT_FILMS


def _folders(folder: Path) -> list[Path]:
    try:
        return sorted(child for child in folder.iterdir() if _visible(child.name) and child.is_dir())
    except OSError as error:
        raise DataError(f"cannot read the folder {folder}: {error.strerror}; check its permissions") from error


def _labels(classes: Classes) -> dict[str, int]:
    return {folded(name): label for label, name in enumerate(classes)}


def _has_layout(folder: Path, classes: Classes) -> bool:
    names, labels = {folded(child.name): child for child in _folders(folder)}, _labels(classes)
    if names.keys() & labels.keys():
        return True
    splits = [names[name] for name in names.keys() & _SPLIT_FOLDERS.keys()]
    return any(folded(child.name) in labels for split in splits for child in _folders(split))


def _find_layout(folder: Path, classes: Classes) -> Path:
    level = [folder]
    for _ in range(_DEPTH):
        found = [candidate for candidate in level if _has_layout(candidate, classes)]
        if len(found) == 1:
            return found[0]
        if found:
            raise DataError(
                f"{folder} holds {len(found)} sets of films; give one of them: {shown([str(f) for f in found])}"
            )
        level = [child for candidate in level for child in _folders(candidate)]
    raise DataError(f"{folder} holds no films in a known layout; it must be {layouts(classes)}{OTHER_CLASSES}")


def _films(root: Path, classes: Classes) -> Iterator[Entry]:
    children, labels = _folders(root), _labels(classes)
    splits = [child for child in children if child.name.lower() in _SPLIT_FOLDERS]
    of_classes = [child for child in children if folded(child.name) in labels]
    if splits and of_classes:
        raise DataError(
            f"{root} holds both split folders ({splits[0].name}) and class folders ({of_classes[0].name}); "
            "keep one layout"
        )
    for folder in of_classes:
        yield from _class_films(root, folder, labels, "")
    for split in splits:
        for folder in _folders(split):
            if folded(folder.name) not in labels:
                raise DataError(
                    f"{folder} is no class folder; {split} may hold {' and '.join(classes)} only, so move it away"
                )
            yield from _class_films(root, folder, labels, _SPLIT_FOLDERS[split.name.lower()])


def _class_films(root: Path, folder: Path, labels: dict[str, int], split: str) -> Iterator[Entry]:
    label = labels[folded(folder.name)]
    for path in files_below(folder):
        yield Entry(path.relative_to(root).as_posix(), label, split)


def files_below(folder: Path) -> Iterator[Path]:
    """Every file below a folder that is not hidden, in no order; folders that are links are followed.

    Raises:
        DataError: a folder cannot be read.
    """
    for place, folders, files in os.walk(folder, onerror=_unreadable, followlinks=True):
        folders[:] = [name for name in folders if _visible(name) and not _leads_back(Path(place, name))]
        yield from (Path(place, name) for name in files if _visible(name))


def _leads_back(folder: Path) -> bool:
    """Whether a folder is a link to one that it stands in: to follow it would have no end."""
    return folder.is_symlink() and os.path.realpath(folder) in map(os.path.realpath, folder.parents)


def _unreadable(error: OSError) -> None:
    raise DataError(f"cannot read the folder {error.filename}: {error.strerror}; check its permissions") from error
