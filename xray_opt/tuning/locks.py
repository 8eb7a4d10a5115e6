"""Locks that all workers of a storage share: of studies (count and claim are one step), of settling, of confirming.

SQLite: a lock file beside the database. PostgreSQL: an advisory lock of a connection. Proxy: a call that the proxy
answers when it holds the lock of the database behind it, so that workers on either way exclude each other. In all
three a dead holder's lock is free; a server frees that of one that hangs, too, where it is for a moment's work (see
``HOLD``). A holder that is slow, not hung, gives signs of life and keeps it. Nobody waits for ever, and who waits long
says so.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeAlias

import sqlalchemy
from optuna.storages import RDBStorage

from xray_opt.errors import StudyError, one_line
from xray_opt.tuning.connecting import SILENCE, limit, one_connection, within
from xray_opt.tuning.urls import LockBusy, LockLost, is_proxy, masked, sqlite_file

if TYPE_CHECKING:
    from xray_opt.tuning.proxy import ProxiedStorage

log = logging.getLogger(__name__)

#: What holds studies: a database, or a proxy in front of one.
Storage: TypeAlias = "RDBStorage | ProxiedStorage"
Say = Callable[[str], None]

#: Seconds for which one holder of a lock of a file is waited for: one that is at it for a moment, and one (of a lock
#: named with a colon) that uploads. A server's lock is waited for for the longer time, whoever has it: many wait in
#: line, and the server frees it of those that hang (see ``HOLD``).
SOON, LATE = 600.0, 3600.0
#: Seconds before it is first said that a lock is waited for; then at twice the time, and so on.
QUIET = 20.0
#: Seconds without a sign of life after which PostgreSQL takes a lock away that is for a moment's work: it hangs.
HOLD = 60.0
#: Seconds for which a holder gives signs of life: one that is at a moment's work for longer is stuck.
STUCK = 1800.0
#: Seconds that a sign of life waits for its server: whoever leaves the lock, on Ctrl-C say, waits for it.
SIGN = 5.0
#: PostgreSQL finds out within half a minute that the host of a lock's holder is gone; the system's own way takes hours.
GONE = {"tcp_keepalives_idle": "10", "tcp_keepalives_interval": "5", "tcp_keepalives_count": "3"}


@dataclass
class Waiting:
    """Somebody's wait for a lock: says so once it is long, and ends it once it is too long.

    Where the holder can be told (of a file) its time counts anew for each: a line of many is no one that hangs.
    """

    name: str
    url: str
    say: Say
    most: float
    began: float = field(default_factory=time.monotonic)
    said: float = 0.0
    holder: int = 0
    since: float = field(default_factory=time.monotonic)

    def go_on(self, holder: int = 0) -> None:
        """The lock is held by another one still.

        Args:
            holder: tells one holder from the next.

        Raises:
            LockBusy: for too long.
        """
        now = time.monotonic()
        if holder != self.holder and not _hurried():
            self.holder, self.since = holder, now
        if now - self.since >= self.most:
            raise busy(self.name, self.url, now - self.since)
        waited = now - self.began
        if waited >= max(QUIET, 2 * self.said):
            self.said = waited
            self.say(f"waiting for {_shown(self.name, self.url)} for {waited:.0f} s now")


def busy(name: str, url: str, waited: float) -> LockBusy:
    """The error of somebody who waited so many seconds for a lock."""
    return LockBusy(
        f"{_shown(name, url)} was not free for {waited:.0f} s: somebody who holds it hangs; nothing is lost, end that "
        "process and run the same command again"
    )


def lost(name: str, url: str, why: Exception) -> LockLost:
    """The error of somebody who finds at the end that a lock was lost."""
    return LockLost(f"{_shown(name, url)} was lost ({one_line(why.__cause__ or why, 120)})")


def _shown(name: str, url: str) -> str:
    return f"the lock of {name.lstrip(':').replace(':', ' ')} in storage {masked(url)}"


@contextmanager
def study_lock(storage: Storage, name: str, say: Say = log.warning, hold: float | None = HOLD) -> Iterator[None]:
    """Wait for a lock and hold it: a study's, named as the study is, or another one, named with a colon.

    Args:
        say: told where that takes long.
        hold: seconds without a sign of life after which a server may give a study's lock to others, as this holder
            hangs; none means never.

    Raises:
        LockBusy: it was not free for too long; see ``longest``.
        LockLost: at its end: others may have held it meanwhile, so what was done under it must be looked at anew.
    """
    if name.startswith(":"):
        hold = None
    if not isinstance(storage, RDBStorage):
        with storage.hold(name, say=say, limit=hold):
            yield
    elif storage.url.startswith("sqlite"):
        with file_lock(storage.url, name, say):
            yield
    else:
        with advisory_lock(storage.engine, name, say, hold):
            yield


@contextmanager
def living(sign: Callable[[], object], every: float) -> Iterator[None]:
    """Give signs of life inside the block, every so many seconds, until who is in it counts as stuck (``STUCK``)."""
    over = threading.Event()
    thread = threading.Thread(target=_live, args=(sign, every, over), name="xray-opt-lock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()  # it may use the connection of whoever leaves


def _live(sign: Callable[[], object], every: float, over: threading.Event) -> None:
    end = time.monotonic() + STUCK
    while not over.wait(every) and time.monotonic() < end:
        try:
            with within(SIGN):
                sign()
        except Exception as error:  # leaving the lock tells whether it was lost
            log.debug("no sign of life from the holder of a lock: %s", error)


def longest(name: str, server: bool) -> float:
    """Seconds for which a lock of that name is waited for; few where its process is told to end."""
    return limit(SILENCE) if _hurried() else LATE if server or name.startswith(":") else SOON


def _hurried() -> bool:
    return limit(SILENCE) < SILENCE


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
        _set(connection, GONE, local=False)
        query = sqlalchemy.text("SELECT pg_try_advisory_lock(:key)")
        yield bool(connection.execute(query, {"key": _key(name)}).scalar())


@contextmanager
def file_lock(url: str, name: str, say: Say = log.warning) -> Iterator[None]:
    """The lock of a SQLite database, waited for; studies share one, as the database has one writer."""
    file = sqlite_file(url)
    if file is None:
        yield
        return
    waiting = Waiting(name, url, say, longest(name, server=False))
    with _lock_file(file, url, name) as handle:
        while not _held(handle, url):
            waiting.go_on(os.fstat(handle.fileno()).st_mtime_ns)
            time.sleep(random.uniform(0.002, 0.02))
        with living(partial(os.utime, handle.fileno()), SOON / 10):  # to those who wait, as if another one had it now
            yield


@contextmanager
def advisory_lock(
    engine: sqlalchemy.Engine, name: str, say: Say = log.warning, hold: float | None = None
) -> Iterator[None]:
    """A lock of a PostgreSQL database, waited for; leaving it raises ``LockLost`` where it was lost meanwhile."""
    url = engine.url.render_as_string()
    waiting = Waiting(name, url, say, longest(name, server=True))
    with engine.connect() as connection:
        while not _taken(connection, name, hold):
            waiting.go_on()
        sign = partial(connection.execute, sqlalchemy.text("SELECT 1"))
        try:
            with nullcontext() if hold is None else living(sign, hold / 4):
                yield
        except BaseException:
            connection.invalidate()  # it may be lost: what a rollback says must not take the place of this
            raise
        try:
            connection.commit()
        except sqlalchemy.exc.SQLAlchemyError as error:
            raise lost(name, url, error) from error


def _taken(connection: sqlalchemy.Connection, name: str, hold: float | None) -> bool:
    """Ask for a lock for half as long as a server may be silent; held, it ends with the connection's transaction."""
    idle = f"{(hold or 0) * 1000:.0f}"  # 0: for ever, whatever the server's own limit is
    silent = f"{limit(SILENCE) * 500:.0f}"
    _set(connection, GONE | {"idle_in_transaction_session_timeout": idle, "lock_timeout": silent}, local=True)
    try:
        connection.execute(sqlalchemy.text("SELECT pg_advisory_xact_lock(:key)"), {"key": _key(name)})
    except sqlalchemy.exc.DBAPIError as error:
        state = getattr(error.orig, "sqlstate", None) or getattr(error.orig, "pgcode", None)  # psycopg's, psycopg2's
        if state != "55P03":  # lock_not_available
            raise
        connection.rollback()
        return False
    return True


def _set(connection: sqlalchemy.Connection, values: dict[str, str], local: bool) -> None:
    """Change the server's settings for this connection, or only for its transaction."""
    calls = ", ".join(f"set_config('{name}', '{value}', {local})" for name, value in values.items())
    connection.execute(sqlalchemy.text(f"SELECT {calls}"))


def _held(handle: IO[str], url: str) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise StudyError(f"storage {masked(url)} cannot be locked: {one_line(error, 120)}") from error
    with suppress(OSError):  # those who wait see the change; without it they take this holder for the one before
        os.utime(handle.fileno())
    return True


def _key(name: str) -> int:
    """Number of an advisory lock."""
    return int.from_bytes(hashlib.sha256(f"xray-opt:{name}".encode()).digest()[:8], "big", signed=True)


def _lock_file(database: Path, url: str, name: str) -> IO[str]:
    """The file beside a SQLite database that is locked in its place."""
    mark = name.replace(":", ".") if ":" in name else ""
    try:
        return database.with_name(f"{database.name}{mark}.lock").open("a")  # "w" would change its time
    except OSError as error:
        raise StudyError(f"storage {masked(url)} cannot be locked: {one_line(error, 120)}") from error
