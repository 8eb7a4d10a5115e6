"""The one door to MLflow: which store, one client, one way to report what goes wrong.

Without a URI the embedded store is used: SQLite and files below ``mlruns/`` of the workspace. Nothing here or above
touches MLflow's global state (tracking URI, active run): every call names its run through an ``MlflowClient``.
"""

from __future__ import annotations

import fcntl
import getpass
import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

# MLflow reads these when it is imported: films are nobody's business, and standard output belongs to the commands.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")

from mlflow import MlflowClient
from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_MAX_RETRIES, MLFLOW_HTTP_REQUEST_TIMEOUT
from mlflow.exceptions import MlflowException, RestException
from mlflow.tracking._tracking_service.utils import _get_store
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request
from sqlalchemy.exc import SQLAlchemyError

from xray_opt.config import TrackingConfig, Workspace, login_for, redacted
from xray_opt.errors import AccessRefused, StoreAway, StoreFault, TrackingError
from xray_opt.moved_store import follow

#: Seconds for the first answer of a server; with one retry an unreachable one is reported within 20 s.
PATIENCE = 8
#: Seconds for the answer to a write that can wait in the spool; and where this process is told to end.
QUICK, HURRIED = 10, 3
#: MLflow's codes for "no such run, model, version or alias" and "somebody was faster".
MISSING = "RESOURCE_DOES_NOT_EXIST"
EXISTS = "RESOURCE_ALREADY_EXISTS"
#: Tag of a run: the id of the one above it, which is its study's.
PARENT_RUN = "mlflow.parentRunId"
#: What requests says of a connection → what is told of it.
TROUBLES = {
    "certificate": "its certificate cannot be checked: set MLFLOW_TRACKING_SERVER_CERT_PATH",
    "[Tt]imed out|[Tt]imeout": "no answer in time",
    "refused": "connection refused",
    "resolve|not known": "its name is not known",
    "Connection aborted|closed|reset": "it hangs up",
}


@dataclass(frozen=True)
class Connection:
    """A tracking store and its registry.

    Attributes:
        client: thread safe; always called with explicit ids.
        uri: tracking URI, also the registry's. It may carry a password: show ``shown`` instead.
        local: SQLite or files, so nothing leaves the machine; a server counts as remote even on this machine.
        artifact_root: folder of the artifacts of the workspace's embedded store; none for every other store.
        workspace: where pseudonyms get their salt from, and where writes wait for a store that is away.
        away: why the store could not be reached when it was opened; empty where it could.
    """

    client: MlflowClient = field(repr=False)
    uri: str = field(repr=False)
    local: bool
    artifact_root: Path | None
    workspace: Workspace
    away: str = ""

    @property
    def shown(self) -> str:
        """The URI without user name and password."""
        return without_credentials(self.uri)

    @property
    def address(self) -> str:
        """``shown`` as what is kept: empty for the workspace's own store, which may move with the workspace."""
        return "" if self.artifact_root else self.shown

    def store(self) -> Any:
        """MLflow's own store object, for what the client cannot do: delete for good (as ``mlflow gc`` does)."""
        return _get_store(self.uri)  # type: ignore[no-untyped-call]


def connect(
    tracking: TrackingConfig, workspace: Workspace, excused: tuple[type[TrackingError], ...] = ()
) -> Connection:
    """Open the store that ``tracking.uri`` names, else ``MLFLOW_TRACKING_URI``, else the workspace's embedded one.

    User name, password and token of a server come from MLflow's own variables (``MLFLOW_TRACKING_USERNAME``, …); those
    of ``.env`` are kept from other servers than ``.env`` names. One process speaks with one server at a time.

    Args:
        excused: errors of a server that do not matter now: the connection tells them in ``away``.

    Raises:
        TrackingError: the server is unreachable or refuses, or the database cannot be opened.
    """
    # Somebody may have imported MLflow before this module did: then it has its own idea of how much to say.
    logging.getLogger("mlflow").setLevel(os.environ["MLFLOW_LOGGING_LEVEL"].upper())
    logging.getLogger("alembic").setLevel(logging.WARNING)
    # It warns that no pip was found, wherever uv made the environment.
    logging.getLogger("mlflow.utils.environment").setLevel(logging.ERROR)
    uri = tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri or uri == workspace.mlflow_uri:
        return _embedded(workspace)
    login_for(uri)
    # "databricks" has no scheme either, and is not this machine.
    local = urlsplit(uri).scheme in ("file", "sqlite") or uri.startswith(("/", ".", "~"))
    away = ""
    with speaking(uri, "open the store"):
        if urlsplit(uri).scheme in ("http", "https"):
            try:
                _probe(uri)
            except excused as error:
                away = str(error)
        return Connection(MlflowClient(uri, uri), uri, local, None, workspace, away)


def without_credentials(text: str) -> str:
    """``text`` with ``user:password@`` taken out of a URI it is or holds."""
    return re.sub(r"://[^/\s]*@", "://", text)


def storable(text: str) -> str:
    """``text`` as every store takes it: NUL, and what in a file's name is no UTF-8, as escapes."""
    return text.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode()


@contextmanager
def speaking(uri: str, action: str) -> Iterator[None]:
    """Turn what MLflow and the network raise inside into one TrackingError that names action and store.

    Raises:
        StoreAway: it may work later; StoreFault where the store itself says that it failed.
        AccessRefused: another login is needed.
        TrackingError: MLflow does not take it.
    """
    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        shown, reason = without_credentials(uri), " ".join(redacted(without_credentials(str(error))).split())
        answered = isinstance(error, RestException)  # in MLflow's own words, which may tell of another server
        if not answered and (trouble := _trouble(reason)) and urlsplit(uri).scheme in ("http", "https"):
            kind = StoreFault if trouble == "answers 500" else StoreAway
            raise kind(f"MLflow at {shown} {trouble}: cannot {action}; see that it runs there") from error
        raise _kind(error)(f"MLflow at {shown}: cannot {action}: {reason[:200]}") from error


def _trouble(reason: str) -> str:
    """What became of a request that got no answer of MLflow's own; empty where it got one.

    What requests and MLflow say then names pools, objects and whole pages of gateways.
    """
    if found := re.search(r"failed with error code (429|5\d\d)\b|too many (\d+) error responses", reason):
        return f"answers {found[1] or found[2]}"
    if not re.search(r"failed with (timeout )?exception|HTTPS?ConnectionPool\(|Connection aborted", reason):
        return ""
    why = next((words for pattern, words in TROUBLES.items() if re.search(pattern, reason)), "")
    return "does not answer" + (f" ({why})" if why else "")


def _kind(error: Exception) -> type[TrackingError]:
    """What an error means. MLflow gives 500 to what it does not know, a connection that breaks included."""
    answer = getattr(error, "response", None)  # of an upload
    status = getattr(answer, "status_code", 500)
    if isinstance(error, MlflowException):
        status = error.get_http_status_code()  # type: ignore[no-untyped-call]
    if status in (401, 403):
        return AccessRefused
    if status == 500 and (answer is not None or isinstance(error, MlflowException)):
        return StoreFault
    return StoreAway if status >= 500 or status == 429 else TrackingError


_haste: ContextVar[int | None] = ContextVar("haste", default=None)


@contextmanager
def quickly(size: int = 0, patience: int = QUICK) -> Iterator[None]:
    """Make MLflow's requests of this thread give up early inside the block.

    They have one try, ``patience`` seconds for the answer and one more a megabyte of ``size``; a user's variables win.
    Who is in the block keeps what could not be sent; and a create that MLflow repeats by itself would make two runs.
    """
    token = _haste.set(patience + size // 10**6)
    try:
        yield
    finally:
        _haste.reset(token)


def _hurry(variable: Any, wanted: Callable[[int], int]) -> None:
    """Let a setting of MLflow follow ``quickly``. Changing the environment instead would reach every thread, and those
    of other libraries read it meanwhile.
    """
    usual = variable.get

    def get() -> Any:
        seconds = _haste.get()
        return usual() if seconds is None or variable.is_set() else wanted(seconds)

    variable.get = get


_hurry(MLFLOW_HTTP_REQUEST_MAX_RETRIES, lambda seconds: 0)
_hurry(MLFLOW_HTTP_REQUEST_TIMEOUT, lambda seconds: seconds)


def pages(fetch: Callable[[str | None], Any]) -> Iterator[Any]:
    """Every item of a search that MLflow answers a page at a time; ``fetch`` gets a page by its token (first: none)."""
    token = None
    while True:
        page = fetch(token)
        yield from page
        token = page.token
        if not token:
            return


def _embedded(workspace: Workspace) -> Connection:
    """The first caller creates the tables; others wait for it, as MLflow's migrations do not stand two at once."""
    uri, artifacts = workspace.mlflow_uri, workspace.mlruns.resolve() / "artifacts"
    with speaking(uri, "open the embedded store (is the folder writable, is the disk full?)"):
        artifacts.mkdir(parents=True, exist_ok=True)
        with open(workspace.mlruns / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if (database := workspace.mlruns / "mlflow.db").exists():
                database.open("rb").close()  # where it is closed to this user MLflow would try for minutes
            store = _get_store(uri, artifacts.as_uri())  # type: ignore[no-untyped-call]
            follow(store.engine, artifacts)
            client = MlflowClient(uri, uri)
            client.search_registered_models(max_results=1)
    return Connection(client, uri, True, artifacts, workspace)


def ask(uri: str, path: str, **params: object) -> Any:
    """One GET of a server with few retries, where MLflow itself would try for minutes; the answer, whatever its status.

    Raises:
        TrackingError: no answer, or its certificate is not trusted.
    """
    shown = without_credentials(uri)
    try:
        return http_request(  # type: ignore[no-untyped-call]
            get_default_host_creds(uri),  # type: ignore[no-untyped-call]
            path,
            "GET",
            max_retries=1,
            backoff_factor=0,
            timeout=PATIENCE,
            raise_on_status=False,
            params=params,
        )
    except (MlflowException, OSError) as error:
        if "certificate" in str(error).lower():
            raise TrackingError(
                f"the certificate of {shown} cannot be checked: set MLFLOW_TRACKING_SERVER_CERT_PATH to the file of "
                "the CA that signed it"
            ) from error
        raise StoreAway(
            f"no MLflow server answers at {shown}: start it or correct tracking.uri / MLFLOW_TRACKING_URI "
            "(unset, the embedded store in mlruns/ is used)"
        ) from error


def _probe(uri: str) -> None:
    """One small request that needs a login, with few retries: MLflow itself would try for minutes."""
    shown = without_credentials(uri)
    answer = ask(uri, "/api/2.0/mlflow/experiments/search", max_results=1)
    if answer.status_code in (401, 403):
        raise AccessRefused(
            f"MLflow at {shown} refuses access ({answer.status_code}): set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD (or MLFLOW_TRACKING_TOKEN; in .env they are for the MLFLOW_TRACKING_URI there), "
            "and add its host name to the server's --allowed-hosts"
        )
    if answer.status_code != 200:
        kind = StoreAway if answer.status_code >= 500 or answer.status_code == 429 else TrackingError
        raise kind(f"{shown} answers {answer.status_code}, not as an MLflow server does: correct the URI")


def user_name() -> str:
    """Who runs this, as records name them; in a container the number may have no name."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return f"uid {os.getuid()}"
