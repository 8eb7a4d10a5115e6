"""How a storage is named: by a URL of SQLite, PostgreSQL, or a proxy (``grpc://host:port``)."""

from __future__ import annotations

import os
import re
from pathlib import Path

import sqlalchemy
from optuna.exceptions import StorageInternalError

from xray_opt.config import Workspace
from xray_opt.errors import ConfigError, StudyError, shortened

#: What a storage raises that fails, which says nothing of what was asked of it.
FAULTS = (sqlalchemy.exc.SQLAlchemyError, StorageInternalError)


class StorageAway(StudyError):
    """The storage does not answer, or did not come back in time; a running trial is resumed by the next start."""


class LockBusy(StorageAway):
    """A lock of the storage was not free for as long as it may be waited for."""


class LockLost(StorageAway):
    """A lock of the storage was taken from its holder, or its connection broke: others may have held it meanwhile."""


def storage_url(workspace: Workspace, storage: str | None = None) -> str:
    """``storage`` (a study file's), else ``XRAY_OPT_STORAGE``, else the embedded SQLite file of the workspace.

    A PostgreSQL URL without a driver gets psycopg's, which the extra ``postgres`` brings.
    """
    url = storage or os.environ.get("XRAY_OPT_STORAGE") or f"sqlite:///{workspace.study_database}"
    return re.sub(r"^postgres(ql)?://", "postgresql+psycopg://", url)


def parsed(url: str) -> sqlalchemy.URL:
    """The parts of a storage's URL.

    Raises:
        ConfigError: not a URL, or one of no port that there is.
    """
    try:
        if "\0" in url:
            raise ValueError("no place has such a name")
        parts = sqlalchemy.make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError) as error:
        raise ConfigError("the storage must be a URL such as sqlite:///studies/optuna.db") from error
    if parts.port is not None and not 0 < parts.port < 1 << 16:  # gRPC would take 65,537 for 1
        raise ConfigError(f"the port of storage {masked(url)} must be from 1 to 65535")
    return parts


def is_proxy(url: str) -> bool:
    """Whether the URL names a proxy of ``xray-opt storage serve`` instead of a database."""
    return url.startswith("grpc://")


def masked(url: str) -> str:
    """The URL without its password, be it before the host or among the options."""
    try:
        parts = sqlalchemy.make_url(url)
        shown = parts.render_as_string(hide_password=True)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        return "the storage URL"
    if parts.password is None:  # where a slash stands in the login, it is no login to SQLAlchemy
        head, separator, rest = shown.partition("://")
        shown = head + separator + re.sub(r"(:|%3A).*(@|%40)", r"\1***\2", rest, flags=re.DOTALL)
    return shortened(re.sub(r"(?i)(password(?:=|%3D))[^&]*", r"\1***", shown), 100)


def sqlite_file(url: str) -> Path | None:
    """The file of a SQLite URL; none for one in memory."""
    database = sqlalchemy.make_url(url).database
    return Path(database).resolve() if database and database != ":memory:" else None
