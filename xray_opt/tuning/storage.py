"""Opens the places where studies are kept, and waits for them when they are away."""

from __future__ import annotations

import hashlib
import logging
import math
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import optuna
import sqlalchemy
from optuna.storages import RDBStorage

from xray_opt.config import StudyConfig, Workspace
from xray_opt.errors import ConfigError, StudyError, one_line
from xray_opt.tuning.connecting import POOL, engine_options, one_connection, within
from xray_opt.tuning.locks import HOLD, Storage, advisory_lock, file_lock, sole_lock, study_lock
from xray_opt.tuning.urls import (
    FAULTS,
    LockBusy,
    LockLost,
    StorageAway,
    is_proxy,
    masked,
    parsed,
    sqlite_file,
    storage_url,
)

if TYPE_CHECKING:
    from xray_opt.tuning.proxy import ProxiedStorage

log = logging.getLogger(__name__)

#: Seconds that a writer waits for another one; SQLite's default of 5 loses workers.
BUSY = 60
#: Seconds that a worker waits for a storage that is away before it gives up.
PATIENCE = 60.0
#: Seconds that a worker that stops gives its storage to take that in.
LAST_PATIENCE = 5.0
#: The lock under which tables are made: two workers at once would trip over each other. For SQLite the studies' own.
TABLES = {"sqlite": "tables", "postgresql": ":tables"}

T = TypeVar("T")


def storage_digest(url: str) -> str:
    """Which storage this is, without its secrets: 16 hex digits of a SHA-256 over kind, place and database.

    User, password, driver and options do not count; a SQLite file counts by its resolved path; a proxy gives the digest
    of what is behind it.

    Raises:
        ConfigError: not a URL.
        StudyError: the proxy does not answer.
    """
    parts = parsed(url)
    place: tuple[object, ...]
    if is_proxy(url):
        return _proxy(url).about().digest
    if parts.get_backend_name() == "sqlite":
        place = (sqlite_file(url),)
    else:
        # A socket's folder stands among the options; it is a place all the same.
        host, port = (parts.query.get(key) for key in ("host", "port"))
        place = (host or (parts.host or "").lower(), port or parts.port or 5432, parts.database)
    text = "\0".join(map(str, (parts.get_backend_name(), *place)))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def open_storage(url: str) -> Storage:
    """Connect to a storage, made where it does not exist.

    Raises:
        ConfigError: not a URL of SQLite, PostgreSQL or a proxy.
        StudyError: it cannot be reached.
    """
    return _proxy(url) if parsed(url) and is_proxy(url) else open_database(url)


def _proxy(url: str) -> ProxiedStorage:
    from xray_opt.tuning.proxy import ProxiedStorage

    storage = ProxiedStorage(url)
    with reachable(url):
        storage.about()
    return storage


def open_database(url: str) -> RDBStorage:
    """Connect to a database itself, made where it does not exist.

    Raises:
        ConfigError: not a URL of SQLite or PostgreSQL.
        StudyError: it cannot be reached.
    """
    backend = parsed(url).get_backend_name()
    if backend not in ("sqlite", "postgresql"):
        raise ConfigError(f"storage {masked(url)}: only sqlite and postgresql are supported, and grpc for a proxy")
    options = {"connect_args": {"timeout": BUSY}} if backend == "sqlite" else POOL | engine_options(url)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with reachable(url):
        try:
            if backend == "sqlite":
                if (file := sqlite_file(url)) is None:
                    raise ConfigError(
                        f"storage {masked(url)} is in memory, where it ends with its process and no other one sees it: "
                        "name a file, as in sqlite:///studies/optuna.db"
                    )
                file.parent.mkdir(parents=True, exist_ok=True)
            name = TABLES[backend]
            with file_lock(url, name) if backend == "sqlite" else advisory_lock(one_connection(url), name, hold=HOLD):
                return RDBStorage(url, engine_kwargs=options)
        except (ImportError, sqlalchemy.exc.NoSuchModuleError) as error:
            raise ConfigError(
                f"storage {masked(url)} needs its driver ({one_line(error, 120)}); "
                "psycopg comes with xray-opt[postgres]"
            ) from error
        except OSError as error:
            raise StudyError(f"storage {masked(url)} cannot be made: {one_line(error, 120)}") from error
        except RuntimeError as error:
            raise StudyError(f"storage {masked(url)} is of another Optuna version: {one_line(error, 120)}") from error
        except (TypeError, ValueError, LookupError, AttributeError) as error:  # of drivers, on options they do not know
            raise ConfigError(
                f"storage {masked(url)} cannot be opened: {one_line(error, 100)}; correct its URL"
            ) from error


@dataclass(frozen=True)
class Patience:
    """Does things with a storage again and again for a while: a database may restart, or be busy.

    A server that says nothing is waited for half as long at a time: it is asked once, then connected to anew. The time
    counts from the first failure: a worker that hung until its lock was lost has all of it when it wakes.
    """

    url: str
    say: Callable[[str], None]
    seconds: float

    def __call__(self, action: Callable[[], T]) -> T:
        """What ``action`` gives; it must bear to be done twice.

        Raises:
            StorageAway: the storage failed for ``seconds``, or a lock was waited for for at least as long.
        """
        began, deadline, wait, told = time.monotonic(), math.inf, 0.25, False
        while True:
            try:
                with within(self.seconds / 2):
                    return action()
            except (*FAULTS, StorageAway) as error:
                lock_lost = isinstance(error, LockLost)
                cause = str(error) if lock_lost else one_line(error.__cause__ or error, 120)
                now = time.monotonic()
                if isinstance(error, LockBusy) and now - began >= self.seconds:
                    raise
                deadline = min(deadline, now + self.seconds)
                if now + wait >= deadline:
                    raise StorageAway(
                        f"storage {masked(self.url)} stayed away ({cause}); nothing is lost, run the same command again"
                    ) from error
            if lock_lost:
                self.say(f"{cause}: what was done under it is looked at anew")
            elif not told:
                told = True
                self.say(f"storage {masked(self.url)} is away ({cause}); waiting up to {self.seconds:.0f} s")
            time.sleep(wait)
            wait = min(2 * wait, 8.0)


def storage_patience(workspace: Workspace, storage: str | None, say: Callable[[str], None]) -> Patience:
    """The patience that a worker has with a study's storage; ``say`` is told once when it is away."""
    return Patience(storage_url(workspace, storage), say, PATIENCE)


@contextmanager
def reachable(url: str) -> Iterator[None]:
    """Turn the database's errors into one line, ``StorageAway``."""
    try:
        yield
    except FAULTS as error:
        cause = one_line(error.__cause__ or error, 120)
        line = f"failed ({cause}); nothing is lost, run the same command again"
        if re.search("is not a database|disk image is malformed", cause):  # in SQLite's words: that mends nothing
            line = f"is damaged ({cause}): put a copy from before in its place, or move the file away and start anew"
        raise StorageAway(f"storage {masked(url)} {line}") from error


@contextmanager
def one_after_another(url: str, what: str, say: Callable[[str], None] = log.warning) -> Iterator[None]:
    """Of all that do this over all machines that share a storage one at a time, waited for; a dead holder's turn ends.

    Args:
        what: is done; no study's lock, which must not wait for uploads.
        say: told where that takes long.

    Raises:
        StudyError: the storage is away, or somebody hangs.
    """
    with reachable(url), study_lock(open_storage(url), f":{what}", say):  # no study has a colon in its name
        yield


@contextmanager
def one_call(workspace: Workspace, study: StudyConfig, what: str, doing: str) -> Iterator[None]:
    """One call of a kind (``what``) a study over all machines that share its storage; the hold dies with the process.

    Args:
        doing: what the other call is said to be doing to the study: "confirmed", say.

    Raises:
        StudyError: another one is at it, or the storage is away.
    """
    url = storage_url(workspace, study.storage)
    with reachable(url), sole_lock(url, f":{what}:{study.name}") as held:
        if not held:
            raise StudyError(f"study {study.name} is being {doing} already, here or elsewhere; wait for its end")
        yield


def database_of(study: optuna.Study) -> Storage:
    """The storage itself, behind Optuna's cache in front of a database."""
    backend: Storage = getattr(study._storage, "_backend", None) or study._storage  # type: ignore[assignment]
    return backend
