"""Where studies are kept, and the lock under which trials are counted and claimed."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar

import optuna
import sqlalchemy
from optuna.storages import RDBStorage

from xray_opt.config import StudyConfig, Workspace
from xray_opt.errors import ConfigError, StudyError, one_line, shortened

#: Seconds that a writer waits for another one; SQLite's default of 5 loses workers.
BUSY = 60
#: Seconds that a worker waits for a storage that is away before it gives up.
PATIENCE = 60.0

T = TypeVar("T")


class StorageAway(StudyError):
    """The storage does not answer, or did not come back in time; a running trial is resumed by the next start."""


def storage_url(workspace: Workspace, storage: str | None = None) -> str:
    """``storage`` (a study file's), else ``XRAY_OPT_STORAGE``, else the embedded SQLite file of the workspace.

    A PostgreSQL URL without a driver gets psycopg's, which the extra ``postgres`` brings.
    """
    url = storage or os.environ.get("XRAY_OPT_STORAGE") or f"sqlite:///{workspace.study_database}"
    return re.sub(r"^postgres(ql)?://", "postgresql+psycopg://", url)


def storage_digest(url: str) -> str:
    """Which storage this is, without its secrets: 16 hex digits of a SHA-256 over kind, place and database.

    User, password, driver and options do not count; a SQLite file counts by its resolved path.

    Raises:
        ConfigError: not a URL.
    """
    parsed = _parsed(url)
    place: tuple[object, ...]
    if parsed.get_backend_name() == "sqlite":
        place = (sqlite_file(url),)
    else:
        # A socket's folder stands among the options; it is a place all the same.
        host, port = (parsed.query.get(key) for key in ("host", "port"))
        place = (host or (parsed.host or "").lower(), port or parsed.port or 5432, parsed.database)
    return hashlib.sha256("\0".join(map(str, (parsed.get_backend_name(), *place))).encode()).hexdigest()[:16]


def _parsed(url: str) -> sqlalchemy.URL:
    try:
        if "\0" in url:
            raise ValueError("no place has such a name")
        return sqlalchemy.make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError) as error:
        raise ConfigError("the storage must be a URL such as sqlite:///studies/optuna.db") from error


def masked(url: str) -> str:
    """The URL without its password, be it before the host or among the options."""
    try:
        shown = sqlalchemy.make_url(url).render_as_string(hide_password=True)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        return "the storage URL"
    return shortened(re.sub(r"(?i)(password(?:=|%3D))[^&]*", r"\1***", shown), 120)


def open_storage(url: str) -> RDBStorage:
    """Connect to a storage, made where it does not exist.

    Raises:
        ConfigError: not a URL of SQLite or PostgreSQL.
        StudyError: it cannot be reached.
    """
    backend = _parsed(url).get_backend_name()
    if backend not in ("sqlite", "postgresql"):
        raise ConfigError(f"storage {masked(url)}: only sqlite and postgresql are supported")
    options = {"connect_args": {"timeout": BUSY}} if backend == "sqlite" else {"pool_pre_ping": True}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with reachable(url):
        try:
            if backend == "sqlite" and (file := sqlite_file(url)):
                file.parent.mkdir(parents=True, exist_ok=True)
            # Two workers that make the tables at once would trip over each other. No study has a colon in its name.
            with _file_lock(url) if backend == "sqlite" else _advisory_lock(_one_connection(url), ":tables"):
                return RDBStorage(url, engine_kwargs=options)
        except (ImportError, sqlalchemy.exc.NoSuchModuleError) as error:
            raise ConfigError(
                f"storage {masked(url)} needs its driver ({one_line(error)}); psycopg comes with xray-opt[postgres]"
            ) from error
        except OSError as error:
            raise StudyError(f"storage {masked(url)} cannot be made: {error}") from error
        except RuntimeError as error:
            raise StudyError(f"storage {masked(url)} is of another Optuna version: {one_line(error, 200)}") from error
        except (TypeError, ValueError, LookupError, AttributeError) as error:  # of drivers, on options they do not know
            raise ConfigError(f"storage {masked(url)} cannot be opened: {one_line(error)}; correct its URL") from error


@dataclass(frozen=True)
class Patience:
    """Does things with a storage again and again for a while: a database may restart, or be busy."""

    url: str
    say: Callable[[str], None]
    seconds: float

    def __call__(self, action: Callable[[], T]) -> T:
        """What ``action`` gives; it must bear to be done twice.

        Raises:
            StorageAway: the storage failed for ``seconds``.
        """
        deadline, wait = time.monotonic() + self.seconds, 0.25
        while True:
            try:
                return action()
            except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError, StorageAway) as error:
                cause = one_line(error.__cause__ or error, 200)
                if time.monotonic() + wait >= deadline:
                    raise StorageAway(
                        f"storage {masked(self.url)} stayed away ({cause}); nothing is lost, run the same command again"
                    ) from error
            if wait == 0.25:
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
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        cause = one_line(error.__cause__ or error, 200)
        raise StorageAway(
            f"storage {masked(url)} failed ({cause}); nothing is lost, run the same command again"
        ) from error


def sqlite_file(url: str) -> Path | None:
    """The file of a SQLite URL; none for one in memory."""
    database = sqlalchemy.make_url(url).database
    return Path(database).resolve() if database and database != ":memory:" else None


@contextmanager
def study_lock(storage: RDBStorage, study: str) -> Iterator[None]:
    """Hold the lock of the study named so: count and claim are one step for all workers, a dead holder's lock is free.

    SQLite: a lock file beside the database. PostgreSQL: an advisory lock on a connection of its own.
    """
    with _file_lock(storage.url) if storage.url.startswith("sqlite") else _advisory_lock(storage.engine, study):
        yield


@contextmanager
def sole_lock(url: str, name: str) -> Iterator[bool]:
    """Hold a lock, named with a colon, for a long time without waiting for it: whether it is held.

    A dead holder's lock is free.

    SQLite: a lock file beside the database. PostgreSQL: an advisory lock of a connection, without a transaction.

    Raises:
        StudyError: the storage cannot be locked.
    """
    if url.startswith("sqlite"):
        file = sqlite_file(url)
        if file is None:
            yield True
            return
        with _lock_file(file, url, name.replace(":", ".")) as handle:
            yield _held(handle, url)
        return
    with _one_connection(url).connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        query = sqlalchemy.text("SELECT pg_try_advisory_lock(:key)")
        yield bool(connection.execute(query, {"key": _key(name)}).scalar())


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


def _held(handle: IO[str], url: str) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise StudyError(f"storage {masked(url)} cannot be locked: {error}") from error
    return True


def _key(name: str) -> int:
    """Number of an advisory lock."""
    return int.from_bytes(hashlib.sha256(f"xray-opt:{name}".encode()).digest()[:8], "big", signed=True)


def database_of(study: optuna.Study) -> RDBStorage:
    """The database behind Optuna's cache in front of it."""
    backend: RDBStorage = getattr(study._storage, "_backend")  # noqa: B009
    return backend


@contextmanager
def _file_lock(url: str) -> Iterator[None]:
    file = sqlite_file(url)
    if file is None:
        yield
        return
    with _lock_file(file, url) as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _lock_file(database: Path, url: str, mark: str = "") -> IO[str]:
    """The file beside a SQLite database that is locked in its place."""
    try:
        return database.with_name(f"{database.name}{mark}.lock").open("w")
    except OSError as error:
        raise StudyError(f"storage {masked(url)} cannot be locked: {error}") from error


@contextmanager
def _advisory_lock(engine: sqlalchemy.Engine, name: str) -> Iterator[None]:
    with engine.connect() as connection, connection.begin():
        connection.execute(sqlalchemy.text("SELECT pg_advisory_xact_lock(:key)"), {"key": _key(name)})
        yield


def _one_connection(url: str) -> sqlalchemy.Engine:
    """An engine whose connections are closed when they are done."""
    return sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
