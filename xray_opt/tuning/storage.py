"""Opens the places where studies are kept, and waits for them when they are away."""

from __future__ import annotations

import hashlib
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
from xray_opt.tuning.locks import Storage, advisory_lock, file_lock, one_connection, sole_lock
from xray_opt.tuning.urls import StorageAway, is_proxy, masked, parsed, sqlite_file, storage_url

if TYPE_CHECKING:
    from xray_opt.tuning.proxy import ProxiedStorage

#: Seconds that a writer waits for another one; SQLite's default of 5 loses workers.
BUSY = 60
#: Seconds that a worker waits for a storage that is away before it gives up.
PATIENCE = 60.0
#: The lock under which tables are made: two workers at once would trip over each other. For SQLite the studies' own.
TABLES = {"sqlite": "tables", "postgresql": ":tables"}

#: Connections to a server are tried before use, and there is one for every thread that asks.
SERVER = {"pool_pre_ping": True, "max_overflow": -1}

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
    return hashlib.sha256("\0".join(map(str, (parts.get_backend_name(), *place))).encode()).hexdigest()[:16]


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
    options = {"connect_args": {"timeout": BUSY}} if backend == "sqlite" else SERVER
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with reachable(url):
        try:
            if backend == "sqlite" and (file := sqlite_file(url)):
                file.parent.mkdir(parents=True, exist_ok=True)
            name = TABLES[backend]
            with file_lock(url, name) if backend == "sqlite" else advisory_lock(one_connection(url), name):
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
