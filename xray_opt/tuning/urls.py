"""How a storage is named: by a URL of SQLite, PostgreSQL, or a proxy (``grpc://host:port``)."""

from __future__ import annotations

import os
import re
from pathlib import Path

import sqlalchemy

from xray_opt.config import Workspace
from xray_opt.errors import ConfigError, StudyError, shortened


class StorageAway(StudyError):
    """The storage does not answer, or did not come back in time; a running trial is resumed by the next start."""


def storage_url(workspace: Workspace, storage: str | None = None) -> str:
    """``storage`` (a study file's), else ``XRAY_OPT_STORAGE``, else the embedded SQLite file of the workspace.

    A PostgreSQL URL without a driver gets psycopg's, which the extra ``postgres`` brings.
    """
    url = storage or os.environ.get("XRAY_OPT_STORAGE") or f"sqlite:///{workspace.study_database}"
    return re.sub(r"^postgres(ql)?://", "postgresql+psycopg://", url)


def parsed(url: str) -> sqlalchemy.URL:
    """The parts of a storage's URL.

    Raises:
        ConfigError: not a URL.
    """
    try:
        if "\0" in url:
            raise ValueError("no place has such a name")
        return sqlalchemy.make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError) as error:
        raise ConfigError("the storage must be a URL such as sqlite:///studies/optuna.db") from error


def is_proxy(url: str) -> bool:
    """Whether the URL names a proxy of ``xray-opt storage serve`` instead of a database."""
    return url.startswith("grpc://")


def masked(url: str) -> str:
    """The URL without its password, be it before the host or among the options."""
    try:
        shown = sqlalchemy.make_url(url).render_as_string(hide_password=True)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        return "the storage URL"
    return shortened(re.sub(r"(?i)(password(?:=|%3D))[^&]*", r"\1***", shown), 120)


def sqlite_file(url: str) -> Path | None:
    """The file of a SQLite URL; none for one in memory."""
    database = sqlalchemy.make_url(url).database
    return Path(database).resolve() if database and database != ":memory:" else None
