"""Every look at the labels of test films, whoever's model and study it was for. Light: no torch, no MLflow.

A study, a run or a manifest can be deleted, renamed or made anew with other settings; the films stay what they are. So
a look is known by its films: by keys that are made of their content. It is a file of its own in ``data/openings``,
written whole or not at all, by however many processes at once, and never changed or removed.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from xray_opt.config import Workspace
from xray_opt.dataset import Film, Manifest, write_atomic
from xray_opt.errors import DataError, one_line

log = logging.getLogger(__name__)

#: Hex digits of a film's key: among 100,000 films two are alike by chance in one of 50,000 sets.
KEY = 12
#: File beside a model that was written to a folder.
KNOWN = "films.json"
#: Who scores films of another folder by what this opens no known test split; see :func:`note`.
OUTSIDE = "outside"
#: What records of sets of such films start with, among the artifacts of the model's run.
OUTSIDE_RECORDS = "outside-"
#: Seconds after which it is said that another process is waited for, and after which it is taken to hang.
QUIET, LONGEST = 5.0, 3600.0
#: The record of trivial models on the validation films, there too.
TRIVIAL_RECORD = "trivial-val.json"


@dataclass(frozen=True)
class Look:
    """One time that labels of some films were scored.

    Attributes:
        by: ``evaluate``, ``finalize`` or ``baseline``; ``outside`` for films of another folder that were no known test
            films then.
        study, trial, run: whose model it was for; empty or none where it had none.
        host: where; empty where that was not kept.
        films: keys of the films, sorted; of a look that another machine told MLflow of, the smallest 600.
    """

    who: str
    when: str
    why: str
    by: str
    study: str = ""
    trial: int | None = None
    run: str = ""
    host: str = ""
    films: tuple[str, ...] = ()

    @property
    def identity(self) -> tuple[str, str, str]:
        """What two records of one look have in common, wherever they are kept and whatever was moved since."""
        return self.when, self.who, self.by

    def model(self) -> str:
        """Whose model it was for, in words: ``trial 3 of study lungs, runs:/…``."""
        parts = [f"trial {self.trial}" if self.trial is not None else "", f"study {self.study}" if self.study else ""]
        whose = " of ".join(part for part in parts if part) or "a model without a study"
        return f"{whose}, runs:/{self.run}" if self.run else whose

    def text(self) -> str:
        """Who, when, by what and for which model, in a line."""
        where = f" at {self.host}" if self.host else ""
        return f"{self.when[:19]} by {self.who}{where} ({self.by}) for {self.model()}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self) | {"films": list(self.films)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Look:
        """The look that :meth:`to_dict` gave."""
        return cls(**values | {"films": tuple(values["films"])})


def film_key(sha256: str) -> str:
    """Key of a film with this content. It tells nothing of the film to who does not hold the very file."""
    return hashlib.sha256(f"xray-opt film {sha256}".encode()).hexdigest()[:KEY]


def film_keys(films: Iterable[Film]) -> frozenset[str]:
    """Keys of films."""
    return frozenset(film_key(film.sha256) for film in films)


def held_out_keys(manifest: Manifest) -> frozenset[str]:
    """Keys of the films of a manifest's test split: of sealed films only the content is looked at, and no label."""
    return film_keys(film for film in manifest.films if film.split == "test")


def packed(keys: Iterable[str], most: int) -> str:
    """The smallest ``most`` keys in one text. Keys are hashes, so these stand for all, and two sets that share a good
    part share some of them (bottom-k sketch, Cohen and Kaplan 2007)."""
    return "".join(sorted(keys)[:most])


def unpacked(text: str) -> frozenset[str]:
    """The keys of a packed text."""
    return frozenset(text[place : place + KEY] for place in range(0, len(text) - KEY + 1, KEY))


def keep_known(manifest: Manifest, folder: Path) -> None:
    """Write beside a model which films it was made on: the digest of its split, and the keys of its test films."""
    known = {"manifest_sha256": manifest.sha256, "test_films": packed(held_out_keys(manifest), len(manifest.films))}
    write_atomic(folder / KNOWN, json.dumps(known).encode() + b"\n")


def known_of(folder: Path) -> tuple[str, frozenset[str]]:
    """What :func:`keep_known` wrote; empty where it wrote nothing.

    Raises:
        DataError: it cannot be read.
    """
    path = folder / KNOWN
    if not path.is_file():
        return "", frozenset()
    try:
        known = json.loads(path.read_text(encoding="ascii"))
        return str(known["manifest_sha256"]), unpacked(str(known["test_films"]))
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise DataError(f"cannot read {path}: {one_line(error)}; train again with --out") from error


def note(workspace: Workspace, look: Look) -> None:
    """Write a look down, for good; a second note of the same one changes nothing.

    Raises:
        DataError: it cannot be written.
    """
    name = hashlib.sha256("\n".join(look.identity).encode("utf-8", "surrogateescape")).hexdigest()[:20]
    path = workspace.openings / f"{name}.json"
    if not path.is_file():
        write_atomic(path, json.dumps(look.to_dict()).encode() + b"\n")


def noted(workspace: Workspace) -> Iterator[Look]:
    """Every look that was written down in this workspace.

    Raises:
        DataError: a record is damaged: what it counted must not be forgotten.
    """
    for path in sorted(workspace.openings.glob("*.json")):
        yield _read(path)


def _read(path: Path) -> Look:
    try:
        return Look.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise DataError(
            f"cannot read {path}, the record of an opening of test films: {one_line(error)}; restore it from a backup"
        ) from error


def looks_at(films: Collection[str], *sources: Iterable[Look]) -> tuple[Look, ...]:
    """The looks at any of these films, oldest first; of one look that several sources tell of, the first one's word."""
    wanted = frozenset(films)
    found: dict[tuple[str, str, str], Look] = {}
    for source in sources:
        for look in source:
            if not wanted.isdisjoint(look.films):
                found.setdefault(look.identity, look)
    return tuple(sorted(found.values(), key=lambda look: look.when))


def sealed_keys(workspace: Workspace, manifests: Iterable[Manifest]) -> frozenset[str]:
    """Keys of the films that stand in the test split of one of these manifests, or were opened as test films here."""
    opened = (look.films for look in noted(workspace) if look.by != OUTSIDE)
    return frozenset[str]().union(*map(held_out_keys, manifests), *opened)


@contextmanager
def one_at_a_time(workspace: Workspace, say: Callable[[str], None] = log.warning) -> Iterator[None]:
    """Of those who first ask who looked and then look themselves, one at a time in a workspace; it falls free with its
    process.

    Args:
        say: told once where that takes long.

    Raises:
        DataError: the folder cannot be written or locked, or another one did not end in an hour.
    """
    with ExitStack() as held:
        try:
            workspace.openings.mkdir(parents=True, exist_ok=True)
            lock = held.enter_context((workspace.openings / ".lock").open("a"))
            _wait_for(lock, workspace, say)
        except OSError as error:
            raise DataError(
                f"cannot write to {workspace.openings}: {error.strerror}; check free space and permissions"
            ) from error
        yield


def _wait_for(lock: IO[str], workspace: Workspace, say: Callable[[str], None]) -> None:
    began, told = time.monotonic(), False
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            waited = time.monotonic() - began
        if waited >= LONGEST:
            raise DataError(
                f"somebody has opened test films in {workspace.root} for {waited / 60:.0f} min and hangs; nothing is "
                "lost, end that process and run the same command again"
            )
        if waited >= QUIET and not told:
            told = True
            say("waiting for another process of this workspace that opens test films")
        time.sleep(0.05)
