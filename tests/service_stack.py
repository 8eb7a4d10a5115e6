"""The real service on a real engine, in a workspace of its own: what the tests of the service share."""

import base64
import http.client
import json
import os
import secrets
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from conftest import Place

ROOT = Path(__file__).parent.parent
#: Generous: a loaded machine is no fault of the service.
PATIENCE = 300


def without_client() -> str | None:
    """Why no compose file can be checked here; none where it can."""
    if shutil.which("docker") is None:
        return "no docker command here"
    done = subprocess.run(["docker", "compose", "version"], capture_output=True, text=True)
    return None if done.returncode == 0 else "docker has no compose here"


def without_engine() -> str | None:
    """Why the service cannot run here; none where it can."""
    if reason := without_client():
        return reason
    done = subprocess.run(["docker", "version"], capture_output=True, text=True)
    return None if done.returncode == 0 else "no Docker engine answers here"


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str] = field(repr=False)
    body: str = field(repr=False)


@dataclass
class Stack:
    """The service of one workspace."""

    place: Place
    project: str = field(default_factory=lambda: f"xray-opt-test-{secrets.token_hex(3)}")
    more: dict[str, str] = field(default_factory=dict)

    @property
    def file(self) -> Path:
        return self.place.workspace.root / ".env"

    def values(self) -> dict[str, str]:
        if not self.file.exists():
            return {}
        lines = self.file.read_text().splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))

    def environment(self) -> dict[str, str]:
        docker = {name: value for name, value in os.environ.items() if name.startswith("DOCKER_")}
        retries = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3", "MLFLOW_HTTP_REQUEST_TIMEOUT": "120"}
        return self.place.environment() | docker | retries | {"COMPOSE_PROJECT_NAME": self.project} | self.more

    def client(self) -> dict[str, str]:
        """As a client that has read .env."""
        names = ("MLFLOW_", "XRAY_OPT_STORAGE")
        return self.environment() | {name: value for name, value in self.values().items() if name.startswith(names)}

    def run(self, *arguments: str, code: int = 0, env: dict[str, str] | None = None) -> subprocess.CompletedProcess:
        done = subprocess.run(
            self.place.command(*arguments),
            cwd=self.place.workspace.root,
            env=env or self.environment(),
            capture_output=True,
            text=True,
            timeout=1200,
        )
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done

    def tune(self, *arguments: str) -> dict:
        return json.loads(self.run("tune", *arguments, "--json", env=self.client()).stdout)

    def compose(self, *arguments: str, code: int | None = 0, profiles: tuple[str, ...] = (), **env: str):
        command = ["docker", "compose", "--project-directory", str(ROOT), "-f", str(ROOT / "docker-compose.yml")]
        command += ["--env-file", str(self.file)] + [part for name in profiles for part in ("--profile", name)]
        done = subprocess.run(
            [*command, *arguments], env=self.environment() | env, capture_output=True, text=True, timeout=1200
        )
        assert code is None or done.returncode == code, done.stdout + done.stderr
        return done

    def sql(self, database: str, query: str) -> list[str]:
        """Rows as the superuser sees them, one line each."""
        command = ("exec", "-T", "postgres", "psql", "-qAtX", "-U", "postgres", "-d", database, "-c", query)
        return self.compose(*command).stdout.splitlines()

    def containers(self) -> list[dict]:
        names = self.compose("ps", "--all", "--quiet", profiles=("worker", "s3", "backup")).stdout.split()
        done = subprocess.run(["docker", "inspect", *names], env=self.environment(), capture_output=True, text=True)
        return json.loads(done.stdout)

    def port(self, name: str) -> int:
        return int(self.values()[f"XRAY_OPT_{name}_PORT"])

    def login(self, user: str | None = None, password: str | None = None) -> dict[str, str]:
        held = self.values()
        pair = f"{user or held['MLFLOW_TRACKING_USERNAME']}:{password or held['MLFLOW_TRACKING_PASSWORD']}"
        return {"Authorization": "Basic " + base64.b64encode(pair.encode()).decode()}

    def ask(
        self,
        name: str,
        path: str,
        method: str = "GET",
        headers: dict[str, str] | None = None,
        body: object = None,
        tls: ssl.SSLContext | None = None,
    ) -> Answer:
        """One request exactly as written: no client library tidies the path up. ``name``: MLFLOW or DASHBOARD."""
        kind = http.client.HTTPSConnection if tls else http.client.HTTPConnection
        connection = kind("127.0.0.1", self.port(name), timeout=PATIENCE, **({"context": tls} if tls else {}))
        try:
            data = None if body is None else json.dumps(body).encode()
            typed = {"Content-Type": "application/json"} if data else {}
            connection.request(method, path, body=data, headers=typed | (headers or {}))
            answer = connection.getresponse()
            return Answer(
                answer.status,
                {name.lower(): value for name, value in answer.getheaders()},
                answer.read().decode(errors="replace"),
            )
        finally:
            connection.close()

    def wipe(self) -> None:
        """Containers and volumes; the images stay."""
        if self.file.exists():
            self.compose(
                "down", "--volumes", "--remove-orphans", profiles=("worker", "s3", "backup", "restore"), code=None
            )


def wait_until(true: Callable[[], object], what: str, seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(1)


@contextmanager
def running_stack(place: Place, *arguments: str) -> Iterator[Stack]:
    """The service on ports of its own; its containers and volumes are removed at the end."""
    one = Stack(place)
    names = ("XRAY_OPT_MLFLOW_PORT", "XRAY_OPT_DASHBOARD_PORT", "XRAY_OPT_POSTGRES_PORT")
    one.more |= {name: str(port) for name, port in zip(names, free_ports(3), strict=True)}
    try:
        one.run("up", "--build", *arguments)
        yield one
    finally:
        one.wipe()
