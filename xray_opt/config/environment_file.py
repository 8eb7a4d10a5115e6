"""The workspace's ``.env``: where its tracking server and study storage are, and the login, typed once.

Docker Compose reads the same file, so it is read here as Compose reads it: comments, quotes, ``export``, and
``${NAME}``, ``${NAME:-default}``, ``$NAME`` outside single quotes. Variables that are set already win. Only what a
client needs is taken: the server's own secrets stay in the file. The login is sent to the server that the file names,
and to no other.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

from xray_opt.config.workspace import Workspace
from xray_opt.errors import ConfigError

#: Beginnings of the names that are taken from the file, and of those among them that are the server's.
TAKEN = ("MLFLOW_", "XRAY_OPT_", "AWS_", "SSL_CERT_", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PGSSL", "PGPASS")
LEFT = ("MLFLOW_AUTH_", "MLFLOW_FLASK_", "MLFLOW_SERVER_", "MLFLOW_BACKEND_", "XRAY_OPT_HOME")
#: A variable of such a name holds a secret; one that holds a URL may carry a password in it.
SECRET = re.compile(r"PASSWORD|TOKEN|SECRET")
#: Shorter secrets than this are not looked for in texts: they would tear words apart.
LEAST_SECRET = 4
#: Whatever else begins so (login, token, certificates) belongs to the server that this variable names.
_SERVER, _OF_SERVER = "MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_"
#: Characters of a file, and of one value with its variables filled in.
MOST = 1 << 16
_VARIABLE = re.compile(r"\\\$|\$\$|\$\{([A-Za-z_]\w*)(?:(:?)-([^}]*))?\}|\$([A-Za-z_]\w*)|\$")

#: What this process took from a file, to be forgotten when another workspace's file is read, and the file's server.
_from_file: dict[str, str] = {}
_servers: list[str] = []
_warned: set[Path] = set()


def load_environment(workspace: Workspace, say: Callable[[str], None] = lambda line: None) -> None:
    """Set the variables of the workspace's ``.env`` that are not set yet; without such a file, none.

    What an earlier call took from another workspace's file is forgotten first. Where ``MLFLOW_TRACKING_URI`` is set to
    another server than the file's, the file's login is not set: see :func:`login_for`.

    Args:
        say: told once a process and file that others may read a password in it, or that its login is not used.

    Raises:
        ConfigError: the file cannot be read; the line names its place, never what stands there.
    """
    for name, value in _from_file.items():
        if os.environ.get(name) == value:
            del os.environ[name]
    _from_file.clear()
    _servers.clear()
    path = workspace.root / ".env"
    if not os.path.lexists(path) or path.is_dir():  # a virtual environment may be called so
        return
    values = {name: value for name, value in read_environment(path).items() if _is_taken(name)}
    for name, value in values.items():
        if name not in os.environ:
            # A certificate beside the file is meant wherever the command is called from.
            whole = str(workspace.root / value) if name.endswith("_CERT_PATH") and value else value
            os.environ[name] = _from_file[name] = whole
    _servers.append(values.get(_SERVER, ""))
    set_elsewhere = os.environ.get(_SERVER, "")
    unused = not login_for(set_elsewhere) and bool(set_elsewhere)
    if path in _warned:
        return
    if unused:
        _warned.add(path)
        say(f"the MLflow login in {path} is not used: MLFLOW_TRACKING_URI is set to another server than there")
    if path.stat().st_mode & 0o077 and any(_secrets(values)):
        _warned.add(path)
        say(f"{path} holds a password and others may read it: chmod 600 {path}")


def login_for(uri: str) -> bool:
    """Let MLflow's login of ``.env`` (it reads variables at each request) apply to the server ``.env`` names alone.

    What was set otherwise than by the file stays. Who connects calls this, as an option or a study may name a server.

    Returns:
        False where the file has a login that is kept from ``uri``.
    """
    own = bool(uri) and uri.rstrip("/") in {server.rstrip("/") for server in _servers}
    login = {name: v for name, v in _from_file.items() if name.startswith(_OF_SERVER) and name != _SERVER}
    for name, value in login.items():
        if own:
            os.environ.setdefault(name, value)
        elif os.environ.get(name) == value:
            del os.environ[name]
    return own or not login


def read_environment(path: Path) -> dict[str, str]:
    """Every variable of a file in Compose's format.

    Raises:
        ConfigError: unreadable, or a line that is none.
    """
    from dotenv.parser import parse_stream

    values: dict[str, str] = {}
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MOST + 1)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError(f"cannot read {path}: {reason}; mend it, or move it away") from error
    if len(text) > MOST:
        raise ConfigError(f"cannot read {path}: it is longer than {MOST} characters; mend it, or move it away")
    for binding in parse_stream(io.StringIO(text)):
        text = binding.original.string
        line = binding.original.line + text[: len(text) - len(text.lstrip())].count("\n")
        if binding.error or "\0" in text:
            raise ConfigError(f"cannot read {path}: line {line} is not NAME=value; mend it (# starts a comment)")
        if binding.key is not None and binding.value is not None:
            literal = re.match(r"\s*(?:export\s+)?[^=]*=\s*'", text)
            values[binding.key] = binding.value if literal else _filled(binding.value, values, f"{path}: line {line}")
    return values


def redacted(text: str) -> str:
    """``text`` without the passwords, tokens and keys that the environment holds."""
    for secret in sorted(set(_secrets(os.environ)), key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def _filled(value: str, known: Mapping[str, str], where: str) -> str:
    """The value with variables filled in: those of the environment first, then those above it in the file."""

    def one(match: re.Match[str]) -> str:
        braced, colon, default, plain = match.groups()
        if match[0] in ("\\$", "$$"):
            return "$"
        name = braced or plain
        if name is None:
            raise ConfigError(f"cannot read {where}: write $$ for a plain $, or put the value in single quotes")
        found = os.environ.get(name, known.get(name))
        return (default or "") if found is None or (colon and not found) else found

    filled = _VARIABLE.sub(one, value)
    if len(filled) > MOST:  # lines that fill in each other grow by the power
        raise ConfigError(f"cannot read {where}: its value is longer than {MOST} characters")
    return filled


def _is_taken(name: str) -> bool:
    return name.startswith(TAKEN) and not name.startswith(LEFT)


def _secrets(values: Mapping[str, str]) -> Iterator[str]:
    """The secrets among variables, as they stand there and as an error may show them."""
    for name, value in values.items():
        if not _is_taken(name):
            continue
        found = value if SECRET.search(name) else _password(value)
        yield from (form for form in {found, unquote(found)} if len(form) >= LEAST_SECRET)


def _password(value: str) -> str:
    """The password of a URL, before its host or among its options; empty where there is none."""
    if "://" not in value:
        return ""
    option = re.search(r"(?i)[?&]password=([^&]*)", value)
    try:
        return urlsplit(value).password or (option[1] if option else "")
    except ValueError:
        return ""
