"""Writes that wait for a server which is away, in order, on this machine: one SQLite file a process.

A file is made when its process has something to keep, and removed when all of it was sent. Its process holds a lock
on ``NAME.lock``, which dies with it: so a file is emptied by its own process, or, when that is gone, by one other at a
time. An entry and its files are one transaction, written through to the disk: a kill or a power cut leaves it whole, or
not there.
"""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

from xray_opt.errors import DiskFault

#: Seconds that SQLite waits for another reader of the file.
BUSY = 60
TABLES = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = FULL;
CREATE TABLE IF NOT EXISTS about (facts TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS runs (key TEXT PRIMARY KEY, id TEXT);
CREATE TABLE IF NOT EXISTS entries (
    number INTEGER PRIMARY KEY AUTOINCREMENT, run TEXT NOT NULL, kind TEXT NOT NULL, content TEXT NOT NULL,
    refused TEXT NOT NULL DEFAULT '');
CREATE TABLE IF NOT EXISTS files (entry INTEGER NOT NULL, name TEXT NOT NULL, bytes BLOB NOT NULL);
"""


@dataclass(frozen=True)
class Entry:
    """One write: the ``run`` it belongs to, its ``kind`` and its content (JSON-ready).

    Attributes:
        number: place in the order, from 1.
        kind: ``damaged`` where its content cannot be read.
        refused: why the server does not take it; empty where it was not asked or may take it.
    """

    number: int
    run: str
    kind: str
    content: dict[str, Any]
    refused: str = ""


class Spool:
    """One file of entries, held by this process until ``close``; any thread may use it.

    Attributes:
        about: facts on the writer, kept with the file.
        runs: key of a run that was made → its id; none for one that was not made yet.

    Raises:
        DiskFault: from every method, where the disk refuses.
    """

    def __init__(self, path: Path, lock: IO[str], about: Mapping[str, Any] | None = None) -> None:
        self.path, self._file, self._guard = path, lock, threading.RLock()
        with self._writing():
            self._base = sqlite3.connect(path, timeout=BUSY, check_same_thread=False, isolation_level="IMMEDIATE")
            # Text that a disk changed is no UTF-8 any more: it is read all the same, and found damaged below.
            self._base.text_factory = lambda text: text.decode("utf-8", "surrogateescape")
            self._base.executescript(TABLES)
            if about is not None:
                self._base.execute("INSERT INTO about VALUES (?)", [json.dumps(about)])
            kept = self._base.execute("SELECT facts FROM about").fetchone()
            self.about: dict[str, Any] = _facts(kept[0]) if kept else {}
            self.runs: dict[str, str | None] = dict(self._base.execute("SELECT key, id FROM runs"))

    @classmethod
    def create(cls, folder: Path, about: Mapping[str, Any]) -> Self:
        """A new file of this process's own in ``folder``."""
        path = folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}-{uuid.uuid4().hex[:8]}.db"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = _lock_of(path).open("a")
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            raise _fault(folder, error) from error
        return cls(path, lock, about)

    def __len__(self) -> int:
        with self._writing():
            return int(self._base.execute("SELECT count(*) FROM entries").fetchone()[0])

    def append(self, run: str, kind: str, content: Mapping[str, Any], files: Mapping[str, Path] | None = None) -> None:
        """Keep a write behind all others, with a copy of its files (name with ``/`` → path)."""
        with self._writing():
            self._know(run, None)
            values = [run, kind, json.dumps(content)]
            number = self._base.execute("INSERT INTO entries (run, kind, content) VALUES (?, ?, ?)", values).lastrowid
            for name, path in (files or {}).items():
                self._base.execute("INSERT INTO files VALUES (?, ?, ?)", [number, name, path.read_bytes()])

    def supersede(self, run: str, names: Iterable[str]) -> None:
        """Drop the files of these names that wait for a run: newer ones come in their place."""
        with self._writing():
            for name in names:
                query = "SELECT number FROM entries JOIN files ON entry = number WHERE run = ? AND name = ?"
                for (number,) in self._base.execute(query, [run, name]).fetchall():
                    self._base.execute("DELETE FROM files WHERE entry = ?", [number])
                    self._base.execute("DELETE FROM entries WHERE number = ?", [number])

    def after(self, number: int) -> Entry | None:
        """The next entry behind that number; none where it was the last."""
        with self._writing():
            row = self._base.execute(
                "SELECT number, run, kind, content, refused FROM entries WHERE number > ? ORDER BY number LIMIT 1",
                [number],
            ).fetchone()
        return row and Entry(row[0], row[1], *_write(row[2], row[3]), row[4])

    def entries(self) -> Iterator[Entry]:
        """All entries in their order; they may be removed meanwhile."""
        number = 0
        while (entry := self.after(number)) is not None:
            yield entry
            number = entry.number

    @property
    def last(self) -> int:
        """Number of the last entry; 0 where there is none."""
        with self._writing():
            return int(self._base.execute("SELECT coalesce(max(number), 0) FROM entries").fetchone()[0])

    def unpack(self, entry: Entry, folder: Path) -> dict[str, Path]:
        """Write the files of an entry below ``folder``; name → path.

        Raises:
            ValueError: the name of one is damaged.
        """
        paths = {}
        with self._writing():
            for name, content in self._base.execute("SELECT name, bytes FROM files WHERE entry = ?", [entry.number]):
                if any(not 0 < len(part.encode()) < 256 or part == ".." for part in name.split("/")):
                    raise ValueError("the name of a file")
                paths[name] = folder / name
                paths[name].parent.mkdir(parents=True, exist_ok=True)
                paths[name].write_bytes(content)
        return paths

    def sent(self, entry: Entry, run_id: str | None = None) -> None:
        """Remove an entry that the server has, and remember the id of the run that it made."""
        with self._writing():
            if run_id is not None:
                self._know(entry.run, run_id)
            self._base.execute("DELETE FROM files WHERE entry = ?", [entry.number])
            self._base.execute("DELETE FROM entries WHERE number = ?", [entry.number])

    def refuse(self, entry: Entry, why: str) -> None:
        """Note why the server does not take an entry."""
        with self._writing():
            self._base.execute("UPDATE entries SET refused = ? WHERE number = ?", [why, entry.number])

    def close(self) -> None:
        """Let go of the file; an empty one is removed."""
        with self._guard, self._file:
            try:
                empty = not len(self)
                self._base.close()
            except sqlite3.Error as error:
                raise _fault(self.path, error) from error
            if empty:
                remove(self.path)

    def _know(self, key: str, run_id: str | None) -> None:
        if run_id is None:
            self._base.execute("INSERT OR IGNORE INTO runs VALUES (?, NULL)", [key])
            self.runs.setdefault(key, None)
        else:
            self._base.execute("INSERT OR REPLACE INTO runs VALUES (?, ?)", [key, run_id])
            self.runs[key] = run_id

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """One transaction, undone whatever breaks it, Ctrl-C included."""
        with self._guard:
            try:
                yield
                self._base.commit()
            except BaseException as error:
                if hasattr(self, "_base"):
                    self._base.rollback()
                if isinstance(error, sqlite3.Error | OSError):
                    raise _fault(self.path, error) from error
                raise


def spool_files(folder: Path) -> list[Path]:
    """The files in a folder, oldest first.

    Raises:
        DiskFault: the folder is closed to this user, so that nobody knows what waits there.
    """
    try:
        names = os.listdir(folder)  # ``glob`` finds nothing in a closed folder, and says nothing
    except FileNotFoundError:
        return []
    except OSError as error:
        raise _fault(folder, error) from error
    return sorted(folder / name for name in names if name.endswith(".db"))


@contextmanager
def taken(path: Path) -> Iterator[Spool | None]:
    """A file whose process is gone, held inside the block; none where its process lives, or another has taken it."""
    try:
        lock = _lock_of(path).open("a")
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        yield None
        return
    except OSError as error:
        raise _fault(path, error) from error
    if not path.exists():  # its last holder has just emptied it
        _lock_of(path).unlink(missing_ok=True)
        lock.close()
        yield None
        return
    try:
        spool = Spool(path, lock)
    except DiskFault:
        lock.close()
        raise
    try:
        yield spool
    finally:
        spool.close()


def look(path: Path) -> tuple[dict[str, Any], int]:
    """What a file is about and how many entries wait in it, whoever holds it; nothing where it is gone meanwhile."""
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=BUSY)) as base:
            about = base.execute("SELECT facts FROM about").fetchone()
            return _facts(about[0]), int(base.execute("SELECT count(*) FROM entries").fetchone()[0])
    except (sqlite3.Error, TypeError):
        return {}, 0


def remove(path: Path) -> None:
    """Remove a file with all that belongs to it; the lock goes last, as it tells that the file is not complete."""
    for suffix in (".db", ".db-wal", ".db-shm", ".lock"):
        path.with_suffix(suffix).unlink(missing_ok=True)


def _lock_of(path: Path) -> Path:
    return path.with_suffix(".lock")


def _facts(text: str) -> dict[str, Any]:
    """What a file is about.

    Raises:
        sqlite3.DatabaseError: that is damaged.
    """
    try:
        facts = json.loads(text.encode())
    except (AttributeError, ValueError, RecursionError):
        facts = None
    if not isinstance(facts, dict):
        raise sqlite3.DatabaseError("what it is about is damaged")
    return facts


def _write(kind: str, text: str) -> tuple[str, dict[str, Any]]:
    """Kind and content of an entry; where that is damaged no kind that there is, and nothing."""
    with suppress(AttributeError, ValueError, RecursionError):
        if isinstance(content := json.loads(text.encode()), dict):
            return kind, content
    return "damaged", {}


def _fault(path: Path, error: Exception) -> DiskFault:
    why = error.strerror if isinstance(error, OSError) else str(error)
    return DiskFault(
        f"cannot use {path}, where writes wait for MLflow: {why}; free some space or check permissions, or move the "
        "file away if it is damaged"
    )
