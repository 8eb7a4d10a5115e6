"""The manifest: which films there are and in which split each one stands, kept as a CSV with its own SHA-256.

The first line of the file is a comment of JSON (what it was prepared from, settings, digests); a table follows that
``pandas.read_csv(path, skiprows=1)`` reads. The digest covers names, contents, labels, groups and splits but not where
the folder lies, so data may move and studies go on.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import logging
import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xray_opt.config import DataConfig
from xray_opt.dataset.names import LABELS
from xray_opt.dataset.records import SPLITS, Film, LeftOut
from xray_opt.errors import DataError, one_line

log = logging.getLogger(__name__)

FORMAT = 1
_COLUMNS = tuple(f.name for f in dataclasses.fields(Film))
_NUMBERS = tuple(f.name for f in dataclasses.fields(Film) if f.type == "int")


@dataclass(frozen=True)
class Manifest:
    """All films of a prepared set.

    Attributes:
        root: absolute folder to which the films' paths are relative.
        films: every film in a split, sorted by path.
        left_out: every other file of the source, with its reason.
        settings: the ``data.*`` settings but root, by their leaf name.
        source: absolute path of the folder or CSV that was indexed.
        fingerprint: cheap digest of the source's names, sizes and times when it was read.
    """

    root: str
    films: tuple[Film, ...]
    left_out: tuple[LeftOut, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    source: str = ""
    fingerprint: str = ""

    @property
    def sha256(self) -> str:
        """Digest of every film's record: a study's data hash. Independent of where the root lies."""
        return _digest(dataclasses.astuple(film) for film in self.films)

    @property
    def data_sha256(self) -> str:
        """Digest of film contents and labels alone, whatever their names and splits."""
        return _digest(sorted((film.sha256, film.label) for film in self.films))

    @property
    def classes(self) -> tuple[str, str]:
        """Class names in the order of their label."""
        return self.settings.get("negative", LABELS[0]), self.settings.get("positive", LABELS[1])

    def of(self, split: str) -> tuple[Film, ...]:
        """Films of ``train`` or ``val``, sorted by path; those of ``test`` are sealed, see :meth:`open_test`."""
        if split == "test":
            raise DataError(
                "the test split is sealed: only xray-opt finalize and evaluate --split test read it, and record that"
            )
        if split not in SPLITS:
            raise DataError(f"a split is one of {', '.join(SPLITS)}, not {split!r}")
        return tuple(film for film in self.films if film.split == split)

    def open_test(self, record: Callable[[], None]) -> tuple[Film, ...]:
        """Films of the test split, sorted by path, after ``record`` has written down that and why they are opened.

        What ``record`` raises passes on: no record, no films.
        """
        record()
        return tuple(film for film in self.films if film.split == "test")

    def save(self, folder: Path) -> Path:
        """Write the CSV into ``folder`` under a name drawn from source and settings, atomically."""
        path = folder / manifest_name(self.source or self.root, self.settings)
        body = self._table()
        head = {
            "format": FORMAT,
            "sha256": self.sha256,
            "table_sha256": hashlib.sha256(body).hexdigest(),
            "root": self.root,
            "source": self.source,
            "fingerprint": self.fingerprint,
            "settings": self.settings,
        }
        write_atomic(path, f"# {json.dumps(head, sort_keys=True)}\n".encode() + body)
        return path

    def _table(self) -> bytes:
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow((*_COLUMNS, "left_out"))
        writer.writerows((*dataclasses.astuple(film), "") for film in self.films)
        blank = [""] * (len(_COLUMNS) - 1)
        writer.writerows((item.path, *blank, item.reason) for item in self.left_out)
        return text.getvalue().encode("utf-8", "surrogateescape")

    @classmethod
    def load(cls, path: Path) -> Manifest:
        """Read a saved manifest and verify its digests.

        Raises:
            DataError: the file is missing, of another format, or was changed since it was written.
        """
        try:
            comment, _, body = path.read_bytes().partition(b"\n")
            head = json.loads(comment.removeprefix(b"# "))
            if head["format"] != FORMAT or head["table_sha256"] != hashlib.sha256(body).hexdigest():
                raise ValueError("its digest does not match its table")
            films, left_out = _rows(body)
            manifest = cls(head["root"], films, left_out, head["settings"], head["source"], head["fingerprint"])
            if not all(isinstance(text, str) for text in (manifest.root, manifest.source, manifest.fingerprint)):
                raise ValueError("a place in its first line is no text")
            if manifest.sha256 != head["sha256"]:
                raise ValueError("its digest does not match its films")
        except (OSError, ValueError, LookupError, TypeError, RecursionError, csv.Error) as error:
            raise DataError(
                f"cannot use the manifest {path}: {one_line(error)}; run xray-opt data prepare again"
            ) from error
        return manifest


def kept_manifests(folder: Path, sha256: str | None = None) -> Iterator[Manifest]:
    """The manifests that a folder keeps and that can be read: all, or those of this digest.

    One that is damaged or of another version is told of: it is made anew when it is wanted, and until then its test
    films are not known for such.
    """
    for path in sorted(folder.glob("*.csv")):
        if sha256 is None or _told(path) == sha256:
            try:
                manifest = Manifest.load(path)
            except DataError as error:
                log.warning("%s; until then its test films are not known to be sealed", error)
            else:
                yield manifest


def _told(path: Path) -> object:
    """The digest that a manifest's first line tells, so that the others need not be read as a whole."""
    try:
        with path.open("rb") as file:
            return json.loads(file.readline().removeprefix(b"# "))["sha256"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def settings_of(config: DataConfig) -> dict[str, Any]:
    """The ``data.*`` settings but root: what a manifest keeps."""
    return {name: value for name, value in dataclasses.asdict(config).items() if name != "root"}


def manifest_name(source: str, settings: dict[str, Any]) -> str:
    """File name of the manifest of this source under these settings."""
    key = json.dumps([source, settings], sort_keys=True)
    return f"{hashlib.sha256(key.encode()).hexdigest()[:20]}.csv"


def write_atomic(path: Path, content: bytes, mode: int = 0o666) -> None:
    """Write a whole file or nothing: a kill leaves the old one.

    Raises:
        DataError: the disk is full or the folder cannot be written.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}; check free space and permissions") from error


def _digest(rows: Iterable[tuple[Any, ...]]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row).encode() + b"\n")
    return digest.hexdigest()


def _rows(body: bytes) -> tuple[tuple[Film, ...], tuple[LeftOut, ...]]:
    reader = csv.DictReader(io.StringIO(body.decode("utf-8", "surrogateescape"), newline=""))
    films, left_out = [], []
    for row in reader:
        if reason := row.pop("left_out"):
            left_out.append(LeftOut(row["path"], reason))
            continue
        films.append(Film(**{name: int(value) if name in _NUMBERS else value for name, value in row.items()}))  # type: ignore[arg-type]
    return tuple(films), tuple(left_out)
