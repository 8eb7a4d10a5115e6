"""Looks whether a storage can be worked with, and makes nothing there."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from datetime import UTC, datetime

import optuna
import sqlalchemy
from optuna.storages import RDBStorage

from xray_opt.errors import ConfigError, StudyError
from xray_opt.tuning.storage import open_storage, reachable
from xray_opt.tuning.urls import is_proxy, masked, sqlite_file

#: Seconds for a connection.
PATIENCE = 5
#: A table that Optuna makes.
TABLE = "version_info"


@dataclass(frozen=True)
class StorageFacts:
    """How a storage was found.

    Attributes:
        shown: its URL without password.
        version: of the database; none where there is no file yet.
        made: whether Optuna's tables are there.
        seconds: from a new connection to its first answer.
        skew: seconds that its clock is ahead of ours, none for a file and for a proxy.
    """

    shown: str
    version: str | None
    made: bool
    seconds: float
    skew: float | None


def probe_storage(url: str) -> StorageFacts:
    """Connect, ask for version and time, compare the tables with this Optuna's.

    Raises:
        ConfigError: not a URL of SQLite, PostgreSQL or a proxy, or its driver is missing.
        StudyError: it does not answer, refuses the login, may not be written, or is of another Optuna version.
    """
    shown = masked(url)
    if is_proxy(url):
        began = time.monotonic()
        open_storage(url)
        return StorageFacts(shown, f"a proxy with Optuna {optuna.__version__}", True, time.monotonic() - began, None)
    try:
        backend = sqlalchemy.make_url(url).get_backend_name()
        if backend not in ("sqlite", "postgresql"):
            raise ConfigError(f"storage {shown}: only sqlite and postgresql are supported, and grpc for a proxy")
        if backend == "sqlite":
            return _file(url, shown)
        with reachable(url):
            return _server(url, shown)
    except (ImportError, sqlalchemy.exc.NoSuchModuleError) as error:
        raise ConfigError(f"storage {shown} needs its driver: install xray-opt[postgres]") from error
    except sqlalchemy.exc.ArgumentError as error:
        raise ConfigError("the storage must be a URL such as sqlite:///studies/optuna.db") from error


def _file(url: str, shown: str) -> StorageFacts:
    file = sqlite_file(url)
    if file is None or not file.exists():
        return StorageFacts(shown, None, False, 0.0, None)
    if not (os.access(file, os.W_OK) and os.access(file.parent, os.W_OK)):
        raise StudyError(f"storage {shown} may not be written: give your user write access to {file.parent}")
    began = time.monotonic()
    with reachable(url), sqlalchemy.create_engine(url, connect_args={"timeout": PATIENCE}).connect() as connection:
        version = str(connection.execute(sqlalchemy.text("SELECT sqlite_version()")).scalar())
        made = _is_made(url, connection)
    return StorageFacts(shown, f"SQLite {version}", made, time.monotonic() - began, None)


def _server(url: str, shown: str) -> StorageFacts:
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool, connect_args={"connect_timeout": PATIENCE})
    began, before = time.monotonic(), datetime.now(UTC)
    with engine.connect() as connection:
        row = connection.execute(sqlalchemy.text("SELECT current_setting('server_version'), clock_timestamp()")).one()
        seconds, after = time.monotonic() - began, datetime.now(UTC)
        made = _is_made(url, connection)
        query = (
            "SELECT has_table_privilege('trials', 'INSERT')"
            if made
            else "SELECT has_schema_privilege(current_schema(), 'CREATE')"
        )
        if not connection.execute(sqlalchemy.text(query)).scalar():
            raise StudyError(f"storage {shown}: this user may not write there; grant it INSERT and CREATE")
    skew = max((row[1] - after).total_seconds(), 0.0) or min((row[1] - before).total_seconds(), 0.0)
    return StorageFacts(shown, f"PostgreSQL {str(row[0]).split()[0]}", made, seconds, skew)


def _is_made(url: str, connection: sqlalchemy.Connection) -> bool:
    """Whether Optuna's tables are there.

    Raises:
        StudyError: they are another Optuna version's.
    """
    if not sqlalchemy.inspect(connection).has_table(TABLE):
        return False
    storage = RDBStorage(url, skip_compatibility_check=True, skip_table_creation=True)
    now, wanted = storage.get_current_version(), storage.get_head_version()
    storage.remove_session()
    if now != wanted:
        raise StudyError(
            f"storage {masked(url)} has tables of another Optuna version ({now}, this one makes {wanted}): back it up, "
            "then optuna storage upgrade --storage URL"
        )
    return True
