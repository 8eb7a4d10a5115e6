"""Registered models: a version carries base weights, adapter and code, and loads with access to MLflow alone.

Alias ``champion`` is what is used; ``candidate`` is the newest one that waits to be promoted.
"""

# The client's module comes first: it settles how MLflow behaves before anything else imports it.
from xray_opt.mlflow_client import Connection
from xray_opt.registry.copying import copies_of_versions, copy_version, key_of, versions_of_runs
from xray_opt.registry.loading import BASE, Loaded, load, named
from xray_opt.registry.moves import Move, read_state
from xray_opt.registry.registration import register
from xray_opt.registry.versions import (
    ROBUST,
    Comparison,
    Version,
    aliases,
    attach,
    champion,
    promote,
    rollback,
    tag_versions,
    version_for_run,
)

__all__ = [
    "BASE",
    "ROBUST",
    "Comparison",
    "Connection",
    "Loaded",
    "Move",
    "Version",
    "aliases",
    "attach",
    "champion",
    "copies_of_versions",
    "copy_version",
    "key_of",
    "load",
    "named",
    "promote",
    "read_state",
    "register",
    "rollback",
    "tag_versions",
    "version_for_run",
    "versions_of_runs",
]
