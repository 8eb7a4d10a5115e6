"""Runs the scoring server of one registered version in processes of its own until Ctrl-C."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from xray_opt import registry
from xray_opt.config import Workspace
from xray_opt.errors import ConfigError, XrayError
from xray_opt.interfaces import address_of, end, require_free, wait_until_up
from xray_opt.mlflow_client import Connection, connect
from xray_opt.places import Place
from xray_opt.serving.scoring_app import MODEL, MOST

#: Addresses that mean all of a machine → one at which it is asked.
ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}
#: Seconds until the server must answer; each process loads the model.
PATIENCE = 180
#: Variable that names the folder from which the model reads films by path.
ROOT = "XRAY_OPT_SERVE_ROOT"
#: Requests that wait at most; whoever comes then is answered 503.
WAITING = 128


@dataclass(frozen=True)
class Served:
    """What is served where.

    Attributes:
        version: ``NAME/NUMBER``: an alias that moves later moves nothing here.
        url: that takes requests.
    """

    version: str
    url: str


def serve(
    model: str,
    workspace: Workspace,
    place: Place = Place(),
    host: str = "127.0.0.1",
    port: int = 5001,
    workers: int = 1,
    most_mib: int = 64,
    films: Path | None = None,
    ready: Callable[[Served], None] = lambda served: None,
) -> None:
    """Serve a registered version until Ctrl-C or until its server ends.

    Args:
        model: ``models:/NAME@ALIAS`` or ``models:/NAME/NUMBER``.
        workers: processes, each with the model in memory.
        most_mib: largest request.
        films: folder below which requests may name films by ``path``; none: they may not.
        ready: called when the server answers.

    Raises:
        ConfigError: no registered version is named, or the folder is none.
        TrackingError: there is no such version.
        XrayError: the port is taken, or the server ended or did not answer.
    """
    connection = connect(place.tracking(workspace), workspace)
    version = registry.named(connection, model)
    if version is None:
        raise ConfigError(f"--model {model}: only registered versions are served: models:/NAME@ALIAS, models:/NAME/3")
    if films is not None and not films.is_dir():
        raise ConfigError(f"--films {films} is no folder")
    host = host.strip("[]")  # as it stands in a URL
    require_free(port, "--port or --host", host)
    own = f"{version.name}/{version.version}"
    environment = _environment(connection, own, most_mib, films, workers)
    server = subprocess.Popen(_command(host, port, workers), env=environment, start_new_session=True)
    try:
        ping = f"http://{address_of(ANYWHERE.get(host, host), port)}/ping"
        wait_until_up("the scoring server", server, ping, "its lines above say why", PATIENCE)
        ready(Served(own, f"http://{address_of(host, port)}/invocations"))
        code = server.wait()
        raise XrayError(f"the scoring server ended (exit code {code}); its last lines above say why")
    finally:
        end(server)


def _command(host: str, port: int, workers: int) -> list[str]:
    """uvicorn on the app's file, which must not be imported as a part of this package."""
    where = ["--host", host, "--port", str(port), "--workers", str(workers)]
    quiet = ["--log-level", "warning", "--no-access-log", "--no-server-header"]
    limits = ["--limit-concurrency", str(WAITING), "--timeout-graceful-shutdown", "5"]
    app = ["--app-dir", str(Path(__file__).parent), "--factory", "scoring_app:make_app"]
    return [sys.executable, "-m", "uvicorn", *where, *quiet, *limits, *app]


def _environment(
    connection: Connection, version: str, most_mib: int, films: Path | None, workers: int
) -> dict[str, str]:
    """What the app reads, and a fair share of the cores for each process."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    own = {
        "MLFLOW_TRACKING_URI": connection.uri,
        MODEL: f"models:/{version}",
        MOST: str(most_mib << 20),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_LOGGING_LEVEL": "WARNING",
    }
    if films is not None:
        own[ROOT] = str(films.resolve())
    kept = {name: value for name, value in os.environ.items() if name not in ("MLFLOW_REGISTRY_URI", ROOT)}
    return {"OMP_NUM_THREADS": str(max(cores // workers, 1))} | kept | own
