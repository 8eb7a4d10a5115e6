"""What runs, of which version, how large the volumes are, when the last backup was made."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from xray_opt.config import Workspace
from xray_opt.services.compose import PROFILES, Compose
from xray_opt.services.starting import service

STAMP = re.compile(r"2\d{7}T\d{6}Z")
#: Service → command that prints its version.
VERSIONS = {
    "postgres": ("postgres", "--version"),
    "mlflow": ("python3", "-c", "from importlib.metadata import version; print('mlflow', version('mlflow'))"),
    "optuna-dashboard": (
        "python3",
        "-c",
        "from importlib.metadata import version as v; print('optuna', v('optuna'), 'dashboard', v('optuna-dashboard'))",
    ),
    "gateway": ("sh", "-c", "nginx -v 2>&1"),
}


@dataclass(frozen=True)
class ServiceState:
    """One container: ``health`` is empty where none is checked, ``version`` where it does not run."""

    service: str
    container: str
    state: str
    health: str
    version: str
    ports: str


@dataclass(frozen=True)
class Status:
    """The whole service.

    Attributes:
        volumes: name → size as Docker tells it, ``?`` where it does not.
        backups: times of the backups, newest first, as ``20260131T020000Z``.
    """

    services: tuple[ServiceState, ...]
    volumes: dict[str, str]
    backups: tuple[str, ...]
    addresses: dict[str, str]

    @property
    def healthy(self) -> bool:
        """Whether the four services that always run do, and are well."""
        well = {s.service for s in self.services if s.state == "running" and s.health == "healthy"}
        return {"postgres", "mlflow", "optuna-dashboard", "gateway"} <= well

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "healthy": self.healthy,
            "addresses": self.addresses,
            "services": [asdict(service) for service in self.services],
            "volumes": self.volumes,
            "backups": list(self.backups),
        }


def status(workspace: Workspace) -> Status:
    """Look at everything; nothing is started or changed.

    Raises:
        ServiceError: no engine, or no service was started from this workspace.
    """
    compose = service(workspace, PROFILES)
    containers = [c for c in compose.containers() if c["Service"] != "migrate"]
    running = {str(c["Service"]) for c in containers if c.get("State") == "running"}
    names = {"MLflow": "MLFLOW_TRACKING_URI", "optuna-dashboard": "XRAY_OPT_DASHBOARD_URL"}
    return Status(
        tuple(_state(compose, c, running) for c in sorted(containers, key=lambda c: str(c["Name"]))),
        _volumes(compose),
        backups(compose) if "postgres" in running else (),
        {name: compose.values.get(variable, "") for name, variable in names.items()},
    )


def backups(compose: Compose) -> tuple[str, ...]:
    """Names of the backups, newest first; postgres must run, as it has their volume mounted."""
    listed = compose.run("exec", "-T", "postgres", "ls", "/backups").stdout.split()
    return tuple(sorted((name for name in listed if STAMP.fullmatch(name)), reverse=True))


def when(stamp: str) -> datetime:
    """The time in a backup's name."""
    return datetime.strptime(stamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)


def _state(compose: Compose, container: dict[str, Any], running: set[str]) -> ServiceState:
    name = str(container["Service"])
    published = {
        f"{p['URL']}:{p['PublishedPort']}" for p in container.get("Publishers") or () if p.get("PublishedPort")
    }
    return ServiceState(
        name,
        str(container["Name"]),
        str(container.get("State", "")),
        str(container.get("Health", "")),
        _version(compose, name) if name in running and name in VERSIONS else "",
        ", ".join(sorted(published)),
    )


def _version(compose: Compose, name: str) -> str:
    shown = compose.run("exec", "-T", name, *VERSIONS[name], codes=(0, 1, 137)).stdout.strip()
    return shown.replace("nginx version: nginx/", "nginx ").replace("postgres (PostgreSQL) ", "PostgreSQL ")


def _volumes(compose: Compose) -> dict[str, str]:
    """Short name → size of the volumes of this project."""
    project = json.loads(compose.run("config", "--format", "json").stdout)["name"]
    done = subprocess.run(
        ["docker", "system", "df", "-v", "--format", "{{json .Volumes}}"], capture_output=True, text=True, check=False
    )
    listed = json.loads(done.stdout) if done.returncode == 0 and done.stdout.strip() else []
    prefix = f"{project}_"
    return {v["Name"].removeprefix(prefix): v["Size"] for v in listed if v["Name"].startswith(prefix)}
