"""Starts the two user interfaces, MLflow's and optuna-dashboard, on the embedded stores of a workspace."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from xray_opt.config import TrackingConfig, Workspace
from xray_opt.errors import ConfigError, XrayError
from xray_opt.mlflow_client import connect
from xray_opt.tuning import is_proxy, list_studies, storage_url

HOST = "127.0.0.1"
#: Seconds that a server may take to answer; MLflow imports much.
PATIENCE = 120


def serve_interfaces(
    workspace: Workspace,
    mlflow_port: int,
    dashboard_port: int,
    say: Callable[[str], None],
    storage: str | None = None,
    uri: str | None = None,
) -> None:
    """Run both until Ctrl-C or until one of them ends; both are ended then.

    Args:
        storage: URL of the Optuna storage; none means the default.
        uri: tracking URI of MLflow; none means the default.

    Raises:
        ConfigError: the storage is a proxy.
        XrayError: a port is taken, or a server ended or did not answer; the line says which.
    """
    if mlflow_port == dashboard_port:
        raise XrayError(f"both interfaces cannot use port {mlflow_port}: each owns / and /api; give two ports")
    if is_proxy(storage_url(workspace, storage)):
        raise ConfigError("optuna-dashboard cannot read through a proxy: name the database behind it with --storage")
    require_free(mlflow_port, "--mlflow-port")
    require_free(dashboard_port, "--dashboard-port")
    connection = connect(TrackingConfig(uri=uri), workspace)
    list_studies(workspace, storage)
    commands = {
        "optuna-dashboard": dashboard_command(dashboard_port),
        "MLflow": mlflow_command(connection.uri, workspace, mlflow_port),
    }
    told = {"optuna-dashboard": dashboard_settings(storage_url(workspace, storage))}
    if not connection.local:
        commands.pop("MLflow")
        say(f"MLflow: {connection.shown} (a server of its own)")
    servers = {name: _start(command, told.get(name, b"")) for name, command in commands.items()}
    try:
        for name, port in (("MLflow", mlflow_port), ("optuna-dashboard", dashboard_port)):
            if name in servers:
                hint = " ".join(map(str, commands[name]))
                wait_until_up(name, servers[name], f"http://{HOST}:{port}/", hint, PATIENCE)
                say(f"{name}: http://{HOST}:{port}")
        say("Ctrl-C ends both")
        _watch(servers)
    finally:
        for server in servers.values():
            end(server)


def require_free(port: int, option: str, host: str = HOST) -> None:
    """Raise XrayError if something listens on the port already, or the machine has no such address."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise XrayError(f"port {port} of {host} cannot be had ({why}); choose another with {option}") from error


def address_of(host: str, port: int) -> str:
    """``host:port`` as it stands in a URL: addresses of IPv6 have brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def mlflow_command(uri: str, workspace: Workspace, port: int) -> list[str]:
    """Command of MLflow's server on a database; artifacts are read from where they lie."""
    artifacts = (workspace.mlruns / "artifacts").as_uri()
    server = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri]
    server += ["--default-artifact-root", artifacts]
    return [*server, "--no-serve-artifacts", "--host", HOST, "--port", str(port), "--workers", "1"]


def dashboard_command(port: int) -> list[str]:
    """Command of optuna-dashboard, which stands beside the interpreter; its settings come on its standard input."""
    program = str(Path(sys.executable).parent / "optuna-dashboard")
    return [program, "--from-config", "/dev/stdin", "--host", HOST, "--port", str(port)]


def dashboard_settings(storage: str) -> bytes:
    """What optuna-dashboard reads: the storage's URL may hold a password, which a command line would show to all."""
    return f"[optuna_dashboard]\nstorage = {json.dumps(storage)}\n".encode()


def _start(command: list[str], told: bytes) -> subprocess.Popen[bytes]:
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    server = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | quiet,
        start_new_session=True,
    )
    if server.stdin is not None:
        with suppress(BrokenPipeError), server.stdin:  # it ended at once: that is seen when it is waited for
            server.stdin.write(told)
    return server


def wait_until_up(name: str, server: subprocess.Popen[bytes], url: str, hint: str, patience: float) -> None:
    """Wait until a server answers at ``url``.

    Args:
        hint: where to look if it ends at once.
        patience: seconds.

    Raises:
        XrayError: it ended, or did not answer.
    """
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise XrayError(f"{name} ended at once (exit code {server.returncode}): {hint}")
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    raise XrayError(f"{name} did not answer at {url} within {patience:g} s")


def _watch(servers: dict[str, subprocess.Popen[bytes]]) -> None:
    while True:
        for name, server in servers.items():
            if server.poll() is not None:
                raise XrayError(f"{name} ended (exit code {server.returncode}); start again with: xray-opt ui")
        time.sleep(0.5)


def end(server: subprocess.Popen[bytes]) -> None:
    """End a server and its children: they run in a session of their own."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        if server.poll() is not None:
            return
        os.killpg(server.pid, sign)
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            continue
