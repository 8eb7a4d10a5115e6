"""Locks that all workers of a storage share: of studies (count and claim are one step), of settling, of confirming.

SQLite: a lock file beside the database. PostgreSQL: an advisory lock of a connection. Proxy: a call that the proxy
answers when it holds the lock of the database behind it, so that workers on either way exclude each other. In all three
a dead holder's lock is free.
"""

from __future__ import annotations

import fcntl
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeAlias

import sqlalchemy
from optuna.storages import RDBStorage

from xray_opt.errors import StudyError
from xray_opt.tuning.urls import is_proxy, masked, sqlite_file

if TYPE_CHECKING:
    from xray_opt.tuning.proxy import ProxiedStorage

#: What holds studies: a database, or a proxy in front of one.
Storage: TypeAlias = "RDBStorage | ProxiedStorage"


@contextmanager
def study_lock(storage: Storage, name: str) -> Iterator[None]:
    """Wait for a lock and hold it: a study's, named as the study is, or another one, named with a colon."""
    if not isinstance(storage, RDBStorage):
        with storage.hold(name):
            yield
        return
    with file_lock(storage.url, name) if storage.url.startswith("sqlite") else advisory_lock(storage.engine, name):
        yield


@contextmanager
def sole_lock(url: str, name: str) -> Iterator[bool]:
    """Hold a lock, named with a colon, for a long time without waiting for it: whether it is held.

    Raises:
        StudyError: the storage cannot be locked.
    """
    if is_proxy(url):
        from xray_opt.tuning.proxy import ProxiedStorage

        with ProxiedStorage(url).hold(name, wait=False) as held:
            yield held
        return
    if url.startswith("sqlite"):
        file = sqlite_file(url)
        if file is None:
            yield True
            return
        with _lock_file(file, url, name) as handle:
            yield _held(handle, url)
        return
    with one_connection(url).connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        query = sqlalchemy.text("SELECT pg_try_advisory_lock(:key)")
        yield bool(connection.execute(query, {"key": _key(name)}).scalar())


@contextmanager
def file_lock(url: str, name: str) -> Iterator[None]:
    """The lock of a SQLite database, waited for; studies share one, as the database has one writer."""
    file = sqlite_file(url)
    if file is None:
        yield
        return
    with _lock_file(file, url, name) as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextmanager
def advisory_lock(engine: sqlalchemy.Engine, name: str) -> Iterator[None]:
    """A lock of a PostgreSQL database, waited for."""
    with engine.connect() as connection, connection.begin():
        connection.execute(sqlalchemy.text("SELECT pg_advisory_xact_lock(:key)"), {"key": _key(name)})
        yield


def one_connection(url: str) -> sqlalchemy.Engine:
    """An engine whose connections are closed when they are done."""
    return sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)


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


def _lock_file(database: Path, url: str, name: str) -> IO[str]:
    """The file beside a SQLite database that is locked in its place."""
    mark = name.replace(":", ".") if ":" in name else ""
    try:
        return database.with_name(f"{database.name}{mark}.lock").open("w")
    except OSError as error:
        raise StudyError(f"storage {masked(url)} cannot be locked: {error}") from error
