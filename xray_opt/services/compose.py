"""Talks to ``docker compose``: finds the compose file, runs commands, turns what goes wrong into one line."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, Any

from xray_opt.config import Workspace
from xray_opt.errors import ServiceError
from xray_opt.services.environment import environment_path, masked

#: Oldest compose that knows dependencies which need not be there.
OLDEST = (2, 20)
PROFILES = ("worker", "s3", "backup")
PROJECT = "xray-opt"
#: How often containers are listed again where one vanished in between: compose lists them and then looks at each.
VANISHING = 10


def compose_file() -> Path:
    """``docker-compose.yml`` of the checkout that this package runs from.

    Raises:
        ServiceError: the package was installed without its source.
    """
    path = Path(__file__).parent.parent.parent / "docker-compose.yml"
    if path.is_file() and (path.parent / "docker").is_dir():
        return path
    raise ServiceError(
        "the service is started from the source of xray-opt, which holds docker-compose.yml and docker/: "
        "get a checkout and run xray-opt up (or make up) there; clients need no checkout"
    )


@dataclass(frozen=True)
class Compose:
    """``docker compose`` with this service's file, its settings and some profiles.

    Attributes:
        values: the settings of ``.env``; they win over the shell's, as the databases were made with them.
        gpu: whether workers get the GPUs, by ``docker-compose.gpu.yml`` beside the file.
    """

    workspace: Workspace
    file: Path
    values: Mapping[str, str] = field(repr=False)
    profiles: tuple[str, ...] = ()
    gpu: bool = False

    def command(self, *arguments: str) -> list[str]:
        """The whole command line of ``docker compose ARGUMENTS``."""
        path = environment_path(self.workspace)
        head = ["docker", "compose", "--project-directory", str(self.file.parent), "-f", str(self.file)]
        head += ["-f", str(self.file.with_name("docker-compose.gpu.yml"))] if self.gpu else []
        head += ["--env-file", str(path)] if path.is_file() else []
        return [*head, *(part for name in self.profiles for part in ("--profile", name)), *arguments]

    def environment(self) -> dict[str, str]:
        """The shell's variables with those of ``.env`` over them."""
        return os.environ | dict(self.values)

    def run(self, *arguments: str, codes: tuple[int, ...] = (0,)) -> subprocess.CompletedProcess[str]:
        """Run it to its end.

        Raises:
            ServiceError: it ended with a code that is not among ``codes``; the line says why.
        """
        done = _run(self.command(*arguments), self.environment())
        if done.returncode not in codes:
            raise self.failure(done.stderr + done.stdout, arguments[0])
        return done

    def start(self, log: IO[str], *arguments: str) -> subprocess.Popen[bytes]:
        """Start it; what it prints goes to ``log``, a file: a pipe that nobody reads would stop it."""
        return subprocess.Popen(
            self.command(*arguments), env=self.environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )

    def containers(self) -> list[dict[str, Any]]:
        """Every container of the service, stopped ones as well, as ``docker compose ps`` tells them."""
        for left in reversed(range(VANISHING)):
            done = _run(self.command("ps", "--all", "--format", "json"), self.environment())
            if done.returncode == 0:
                break
            if not left or "No such container" not in done.stderr:
                raise self.failure(done.stderr, "ps")
        text = done.stdout.strip()
        if text.startswith("["):
            listed: list[dict[str, Any]] = json.loads(text)
            return listed
        return [json.loads(line) for line in text.splitlines() if line.startswith("{")]

    @cached_property
    def asked(self) -> frozenset[str]:
        """The services of the profiles that are asked for, and of none."""
        return frozenset(self.run("config", "--services").stdout.split())

    def last_lines(self, service: str, count: int = 8) -> str:
        """The end of a service's log on one line, without secrets."""
        done = self.run("logs", "--no-color", "--no-log-prefix", "--tail", str(count), service, codes=(0, 1))
        return masked(" | ".join(line.strip() for line in done.stdout.splitlines() if line.strip()), self.values)[
            -1200:
        ]

    def failure(self, output: str, action: str) -> ServiceError:
        """What ``docker`` printed, as one line that says what to do."""
        return ServiceError(explained(masked(output, self.values), action))


def require_engine() -> None:
    """Look for a Docker engine and a compose that is new enough.

    Raises:
        ServiceError: there is none; the line says what to do.
    """
    done = _run(["docker", "compose", "version", "--short"], dict(os.environ))
    if done.returncode:
        raise ServiceError(explained(done.stderr + done.stdout, "version"))
    found = re.search(r"(\d+)\.(\d+)", done.stdout)
    if found is None or (int(found[1]), int(found[2])) < OLDEST:
        raise ServiceError(
            f"docker compose is {done.stdout.strip() or 'of an unknown version'}; the service needs "
            f"{'.'.join(map(str, OLDEST))} or newer: install docker-compose-plugin from Docker or your distribution"
        )
    engine = _run(["docker", "version", "--format", "{{.Server.Version}}"], dict(os.environ))
    if engine.returncode:
        raise ServiceError(explained(engine.stderr + engine.stdout, "version"))


def explained(output: str, action: str) -> str:
    """One line for what ``docker`` printed."""
    text = " ".join(output.split())
    if "permission denied" in text and "socket" in text:
        return "this user may not talk to Docker: add it to the group docker and log in again, or use sudo"
    if "Cannot connect to the Docker daemon" in text or "error during connect" in text:
        where = os.environ.get("DOCKER_HOST", "its usual socket")
        return f"no Docker engine answers at {where}: start it (systemctl start docker), or set DOCKER_HOST"
    if "is not a docker command" in text or "unknown command" in text or "unknown shorthand flag" in text:
        return (
            "docker has no compose: install the compose plugin (docker-compose-plugin, or docker-compose of Debian 13)"
        )
    if "address already in use" in text or "port is already allocated" in text:
        return f"a port of the service is taken: set another one in .env (XRAY_OPT_…_PORT): {_end(output)}"
    return f"docker compose {action} failed: {_end(output) or 'it printed nothing'}"


def _end(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return " | ".join(lines[-4:])[-800:]


def _run(command: list[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, env=dict(environment), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
    except FileNotFoundError as error:
        raise ServiceError(
            "there is no docker command: install Docker Engine with its compose plugin (docs/service.md)"
        ) from error
