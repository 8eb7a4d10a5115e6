"""Where studies are kept, and the lock under which trials are counted and claimed."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import optuna
import sqlalchemy
from optuna.storages import RDBStorage

from xray_opt.config import Workspace
from xray_opt.errors import ConfigError, StudyError

#: Seconds that a writer waits for another one; SQLite's default of 5 loses workers.
BUSY = 60


def storage_url(workspace: Workspace, configured: str | None = None) -> str:
    """The study file's storage, else ``XRAY_OPT_STORAGE``, else the embedded SQLite file of the workspace."""
    return configured or os.environ.get("XRAY_OPT_STORAGE") or f"sqlite:///{workspace.study_database}"


def masked(url: str) -> str:
    """The URL without its password."""
    try:
        return sqlalchemy.make_url(url).render_as_string(hide_password=True)
    except sqlalchemy.exc.ArgumentError:
        return "the storage URL"


def open_storage(url: str) -> RDBStorage:
    """Connect to a storage, made where it does not exist.

    Raises:
        ConfigError: not a URL of SQLite or PostgreSQL.
        StudyError: it cannot be reached.
    """
    try:
        backend = sqlalchemy.make_url(url).get_backend_name()
    except sqlalchemy.exc.ArgumentError as error:
        raise ConfigError("the storage must be a URL such as sqlite:///studies/optuna.db") from error
    if backend not in ("sqlite", "postgresql"):
        raise ConfigError(f"storage {masked(url)}: only sqlite and postgresql are supported")
    if backend == "sqlite" and (file := sqlite_file(url)):
        file.parent.mkdir(parents=True, exist_ok=True)
    options = {"connect_args": {"timeout": BUSY}} if backend == "sqlite" else {"pool_pre_ping": True}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # Two workers that make the tables at once would trip over each other.
    with reachable(url), _file_lock(url) if backend == "sqlite" else nullcontext():
        try:
            return RDBStorage(url, engine_kwargs=options)
        except ImportError as error:
            raise ConfigError(f"storage {masked(url)} needs its driver: {error}") from error
        except RuntimeError as error:
            raise StudyError(f"storage {masked(url)} is of another Optuna version: {_line(error)}") from error


@contextmanager
def reachable(url: str) -> Iterator[None]:
    """Turn the database's errors into one line."""
    try:
        yield
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        cause = _line(error.__cause__ or error)
        raise StudyError(
            f"storage {masked(url)} failed ({cause}); nothing is lost, run the same command again"
        ) from error


def sqlite_file(url: str) -> Path | None:
    """The file of a SQLite URL; none for one in memory."""
    database = sqlalchemy.make_url(url).database
    return Path(database).resolve() if database and database != ":memory:" else None


@contextmanager
def study_lock(storage: RDBStorage, study: str) -> Iterator[None]:
    """Hold the study's lock: count and claim are one step for all workers, and a dead holder's lock is free.

    SQLite: a lock file beside the database. PostgreSQL: an advisory lock on a connection of its own.
    """
    with _file_lock(storage.url) if storage.url.startswith("sqlite") else _advisory_lock(storage, study):
        yield


@contextmanager
def _file_lock(url: str) -> Iterator[None]:
    file = sqlite_file(url)
    if file is None:
        yield
        return
    with file.with_name(file.name + ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextmanager
def _advisory_lock(storage: RDBStorage, study: str) -> Iterator[None]:
    key = int.from_bytes(hashlib.sha256(f"xray-opt:{study}".encode()).digest()[:8], "big", signed=True)
    with storage.engine.connect() as connection, connection.begin():
        connection.execute(sqlalchemy.text("SELECT pg_advisory_xact_lock(:key)"), {"key": key})
        yield


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
