"""The service's ``.env``: passwords made once, ports, and the addresses that clients read; what is in it is kept.

``docker compose`` and the clients read the same file. Three of its lines follow from others (the addresses, from ports
and name) and are brought up to date by every start.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from xray_opt.config import Workspace
from xray_opt.config.environment_file import read_environment as read_file
from xray_opt.errors import ConfigError, ServiceError

HEAD = "# Secrets and addresses of the tracking service (docs/service.md), made by xray-opt up. Keep it like a backup."
#: Made once, by chance; 32 bytes each.
SECRETS = (
    "MLFLOW_TRACKING_PASSWORD",
    "POSTGRES_PASSWORD",
    "MLFLOW_DB_PASSWORD",
    "OPTUNA_DB_PASSWORD",
    "MLFLOW_FLASK_SERVER_SECRET_KEY",
)
DEFAULTS = {
    "MLFLOW_TRACKING_USERNAME": "admin",
    "XRAY_OPT_MLFLOW_PORT": "5000",
    "XRAY_OPT_DASHBOARD_PORT": "8080",
    "XRAY_OPT_POSTGRES_PORT": "15432",
    # With artifacts in an S3 store MLflow hands out addresses of that store, which clients may not reach.
    "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD": "false",
}
ADDRESSES = ("MLFLOW_TRACKING_URI", "XRAY_OPT_STORAGE", "XRAY_OPT_DASHBOARD_URL")
PORTS = ("XRAY_OPT_MLFLOW_PORT", "XRAY_OPT_DASHBOARD_PORT", "XRAY_OPT_POSTGRES_PORT")
TLS = ("XRAY_OPT_TLS_CERT", "XRAY_OPT_TLS_KEY")
OPENING = ("XRAY_OPT_BIND", "XRAY_OPT_HOST", *TLS)
LOCAL = re.compile(r"127(\.\d+){3}")
_NAME = re.compile(r"^\s*(?:export\s+)?([A-Za-z_]\w*)\s*=")
_NEEDS_NO_QUOTES = re.compile(r"[\w./:@%+?=&,~-]*")


def environment_path(workspace: Workspace) -> Path:
    """``.env`` of the workspace."""
    return workspace.root / ".env"


def read_environment(workspace: Workspace) -> dict[str, str]:
    """Name → value of the file, as clients and Compose read it; empty where there is none.

    Raises:
        ServiceError: it cannot be read.
    """
    path = environment_path(workspace)
    if not os.path.lexists(path):
        return {}
    try:
        return read_file(path)
    except ConfigError as error:
        raise ServiceError(str(error)) from error


def ensure_environment(workspace: Workspace, more: Mapping[str, str]) -> dict[str, str]:
    """The settings of the service; what is missing is made and written, what is there stays, the addresses follow.

    Args:
        more: settings to write where the file has none of that name.

    Raises:
        ServiceError: the file is another server's, a setting is wrong, or it cannot be written.
    """
    held = read_environment(workspace)
    path = environment_path(workspace)
    if not held.get("POSTGRES_PASSWORD") and any(held.get(name) for name in ADDRESSES):
        raise ServiceError(
            f"{path} names servers that are not this service ({', '.join(n for n in ADDRESSES if held.get(n))}): "
            "move it away, or start the service in another workspace (XRAY_OPT_HOME)"
        )
    shell = {name: value for name in (*DEFAULTS, *OPENING) if (value := os.environ.get(name))}
    made = {name: secrets.token_urlsafe(32) for name in SECRETS}
    wanted = DEFAULTS | shell | made | dict(more) | {name: value for name, value in held.items() if value}
    check(wanted, path)
    wanted |= addresses(wanted)
    if wanted != held:
        _write(path, wanted, held)
    elif path.stat().st_mode & 0o077:
        path.chmod(0o600)
    return wanted


def check(values: Mapping[str, str], path: Path) -> None:
    """Refuse ports that are none, one port for two, and opening beyond this machine without a certificate.

    Raises:
        ServiceError: one line that names the variable and the file.
    """
    ports = [values[name] for name in PORTS]
    for name in PORTS:
        if not values[name].isdigit() or not 0 < int(values[name]) < 65536:
            raise ServiceError(f"{path}: {name} must be a port from 1 to 65535, not {values[name]!r}")
    if len(set(ports)) < len(ports):
        raise ServiceError(f"{path}: {', '.join(PORTS)} must be three different ports")
    needed = (*TLS, "XRAY_OPT_HOST") if is_open(values) else TLS
    missing = [name for name in needed if not values.get(name)]
    if is_open(values) and missing:
        raise ServiceError(
            f"XRAY_OPT_BIND={values['XRAY_OPT_BIND']} opens the service to the network: set {', '.join(missing)} in "
            f"{path} as well (docs/service.md), or take XRAY_OPT_BIND out"
        )
    if len(missing) == len(TLS):
        return
    for name in TLS:
        if not values.get(name):
            raise ServiceError(f"{path}: {name} is missing beside its other half ({', '.join(TLS)})")
        if not Path(values[name]).is_absolute() or not Path(values[name]).is_file():
            raise ServiceError(f"{path}: {name} must be the absolute path of a file, not {values[name]!r}")


def is_open(values: Mapping[str, str]) -> bool:
    """Whether the ports are published beyond this machine."""
    return not LOCAL.fullmatch(values.get("XRAY_OPT_BIND") or "127.0.0.1")


def addresses(values: Mapping[str, str]) -> dict[str, str]:
    """What clients call the service: by its name over TLS where it has a certificate, else on 127.0.0.1.

    All clients must use the same address of the storage: a study is known by it.
    """
    tls = bool(values.get("XRAY_OPT_TLS_CERT"))
    host = (tls and values.get("XRAY_OPT_HOST")) or "127.0.0.1"
    scheme = "https" if tls else "http"
    password = quote(values["OPTUNA_DB_PASSWORD"], safe="")
    return {
        "MLFLOW_TRACKING_URI": f"{scheme}://{host}:{values['XRAY_OPT_MLFLOW_PORT']}",
        "XRAY_OPT_DASHBOARD_URL": f"{scheme}://{host}:{values['XRAY_OPT_DASHBOARD_PORT']}",
        "XRAY_OPT_STORAGE": f"postgresql://optuna:{password}@{host}:{values['XRAY_OPT_POSTGRES_PORT']}/optuna"
        + ("?sslmode=require" if tls else ""),
    }


def masked(text: str, values: Mapping[str, str]) -> str:
    """``text`` without the service's secrets."""
    hidden = (*SECRETS, "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
    for name in hidden:
        if len(values.get(name, "")) >= 4:
            text = text.replace(values[name], "***").replace(quote(values[name], safe=""), "***")
    return text


def _write(path: Path, values: Mapping[str, str], held: Mapping[str, str]) -> None:
    """Comments, order and what ``held`` has already are kept as they stand; written whole or not at all, readable by
    its owner alone.
    """
    rest = dict(values)
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else [HEAD]:
        match = _NAME.match(line)
        if match and match[1] in rest:
            value = rest.pop(match[1])
            line = line if held.get(match[1]) == value else f"{match[1]}={_quoted(value)}"
        lines.append(line)
    lines += [f"{name}={_quoted(value)}" for name, value in rest.items()]
    part = path.with_name(f".env.{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise ServiceError(f"cannot write {path}: {error.strerror}; check free space and permissions") from error
    finally:
        part.unlink(missing_ok=True)


def _quoted(value: str) -> str:
    """The value as Compose reads it back."""
    if _NEEDS_NO_QUOTES.fullmatch(value):
        return value
    if "'" not in value:
        return f"'{value}'"
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("$", "$$")
    return f'"{escaped}"'
