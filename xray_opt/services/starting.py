"""Starts and stops the service: settings, ports, images, schemas, then everything, until it is healthy."""

from __future__ import annotations

import dataclasses
import os
import secrets
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

from xray_opt.config import Workspace
from xray_opt.errors import ServiceError
from xray_opt.services.compose import PROFILES, PROJECT, Compose, compose_file, require_engine
from xray_opt.services.environment import PORTS, ensure_environment, environment_path, read_environment

Say = Callable[[str], None]
#: Seconds until all must be healthy, images not counted.
PATIENCE = 600.0
#: Code of docker/service/schema.py: tables of an older version, and no fresh backup.
OLDER = 3


def service(workspace: Workspace, profiles: Sequence[str] = ()) -> Compose:
    """The service of a workspace, for everything but starting it.

    Raises:
        ServiceError: no engine, no source, or it was never started from here.
    """
    file = compose_file()
    require_engine()
    values = read_environment(workspace)
    if not values.get("POSTGRES_PASSWORD"):
        raise ServiceError(
            f"no service was started from {workspace.root} (its .env has no POSTGRES_PASSWORD): run xray-opt up, "
            "or set XRAY_OPT_HOME to the workspace that it was started from"
        )
    return Compose(workspace, file, values, tuple(profiles))


def up(
    workspace: Workspace, profiles: Sequence[str], build: bool, workers: int | None, progress: Say, gpu: bool = False
) -> Compose:
    """Start everything and wait until it is healthy; safe to repeat.

    Args:
        build: build the images even where they are there.
        workers: how many worker containers; none leaves compose its one.
        progress: told what is waited for, again and again.
        gpu: workers get the GPUs that ``XRAY_OPT_GPUS`` names.

    Raises:
        ServiceError: one line; what runs is left as it is, so that it can be looked at.
    """
    file = compose_file()
    require_engine()
    _require_own_volumes(workspace)
    values = ensure_environment(workspace, _s3_settings(workspace) if "s3" in profiles else {})
    compose = Compose(workspace, file, values, tuple(profiles), gpu)
    compose.run("config", "--quiet")
    require_free_ports(compose)
    _build(compose, build, progress)
    _upgrade(compose, progress)
    scale = ("--scale", f"worker={workers}") if workers is not None else ()
    _start(compose, scale, progress)
    return compose


def _require_own_volumes(workspace: Workspace) -> None:
    """Raise ServiceError where a database is there whose passwords are not: new ones would not open it."""
    volume = f"{os.environ.get('COMPOSE_PROJECT_NAME') or PROJECT}_postgres"
    if not read_environment(workspace).get("POSTGRES_PASSWORD") and _is_there("volume", volume):
        raise ServiceError(
            f"the volume {volume} holds a service whose passwords {environment_path(workspace)} has not: put its .env "
            f"back, or set XRAY_OPT_HOME to its workspace; to begin anew, docker volume rm {volume} loses all of it"
        )


def down(workspace: Workspace) -> None:
    """Stop and remove all containers; the volumes stay.

    Raises:
        ServiceError: no engine, or it failed.
    """
    service(workspace, (*PROFILES, "restore")).run("down", "--remove-orphans")


def _s3_settings(workspace: Workspace) -> dict[str, str]:
    """Settings of the profile s3; refused where artifacts lie on the volume already, as MLflow would not find them."""
    held = read_environment(workspace)
    if held.get("POSTGRES_PASSWORD") and not held.get("XRAY_OPT_ARTIFACTS"):
        raise ServiceError(
            f"this service keeps its artifacts on its volume: the profile s3 is chosen at the first start. "
            f"docs/service.md tells how to move them; then set XRAY_OPT_ARTIFACTS in {environment_path(workspace)}"
        )
    return {
        "XRAY_OPT_ARTIFACTS": "s3://mlflow",
        "MLFLOW_S3_ENDPOINT_URL": "http://s3:9000",
        "AWS_ACCESS_KEY_ID": secrets.token_hex(10),
        "AWS_SECRET_ACCESS_KEY": secrets.token_hex(20),
        "AWS_DEFAULT_REGION": "us-east-1",
    }


def require_free_ports(compose: Compose) -> None:
    """Raise ServiceError where something else listens on a port of the service; its own containers may."""
    own = {
        publisher.get("PublishedPort")
        for container in compose.containers()
        for publisher in container.get("Publishers") or ()
    }
    bind = compose.values.get("XRAY_OPT_BIND") or "127.0.0.1"
    for name in PORTS:
        port = int(compose.values[name])
        if port in own:
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((bind, port))
            except OSError as error:
                path = environment_path(compose.workspace)
                raise ServiceError(f"port {port} is taken ({error.strerror}): set another {name} in {path}") from error


def _build(compose: Compose, build: bool, progress: Say) -> None:
    """Missing images are built; minutes the first time."""
    if not build and not _missing_images(compose):
        return
    with tempfile.TemporaryFile("w+") as log:
        command = [*compose.command("build", "--progress", "plain")]
        process = subprocess.Popen(command, env=compose.environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        _watch(process, lambda seconds: progress(f"building the images, {seconds:.0f} s"))
        if process.returncode:
            log.seek(0)
            raise compose.failure(log.read(), "build")


def _missing_images(compose: Compose) -> list[str]:
    wanted = set(compose.run("config", "--images").stdout.split())
    return [name for name in sorted(wanted) if not _is_there("image", name)]


def _is_there(kind: str, name: str) -> bool:
    done = subprocess.run(["docker", kind, "inspect", name], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return done.returncode == 0


def _upgrade(compose: Compose, progress: Say) -> None:
    """Older tables are upgraded after a backup, with nothing running on them; new and current ones need nothing."""
    progress("waiting for postgres and its tables")
    if _migrate(compose, (0, OLDER)).returncode == 0:
        return
    progress("tables of an older version: backing up, then upgrading")
    dataclasses.replace(compose, profiles=("worker",)).run("stop", "worker", "gateway", "mlflow", "optuna-dashboard")
    dataclasses.replace(compose, profiles=("backup",)).run("run", "--rm", "backup", "once")
    _migrate(compose, (0,))


def _migrate(compose: Compose, codes: tuple[int, ...]) -> subprocess.CompletedProcess[str]:
    """Postgres comes with it; what it says goes before what the database's log says."""
    done = compose.run("run", "--rm", "-T", "migrate", codes=tuple(range(256)))
    if done.returncode in codes:
        return done
    if "dependency failed to start" in done.stderr:
        raise _broken(compose, done.stderr)
    raise compose.failure(done.stderr, "run migrate")


def _start(compose: Compose, scale: Sequence[str], progress: Say) -> None:
    deadline = time.monotonic() + PATIENCE
    with tempfile.TemporaryFile("w+") as log:
        process = compose.start(log, "up", "--detach", "--remove-orphans", *scale)
        while True:
            ended = process.poll() is not None  # looked at first: what is not up afterwards was not brought up
            waiting = unready(compose)
            if ended and process.returncode:
                log.seek(0)
                raise _broken(compose, log.read())
            if ended and not waiting:
                return
            hopeless = ("unhealthy", "exited", "restarting")
            if time.monotonic() > deadline or (ended and any(state in hopeless for state in waiting.values())):
                raise _broken(compose, "")
            states = ", ".join(f"{name} ({state})" for name, state in waiting.items())
            progress("waiting for " + (states or "containers"))
            time.sleep(1.0)


def unready(compose: Compose) -> dict[str, str]:
    """Service → state of every container that is not as it should be yet; of several workers the last such one's.

    Those of a profile that is not asked for may have ended as they like.
    """
    found = ((str(c["Service"]), _state(c)) for c in compose.containers() if c["Service"] in compose.asked)
    return {name: state for name, state in found if state not in ("healthy", "done")}


def _state(container: dict[str, Any]) -> str:
    """``healthy``, ``done`` (ended as it should), or what is the matter."""
    state, health = str(container.get("State", "")), str(container.get("Health", ""))
    if state == "exited":
        return "done" if container.get("ExitCode") == 0 and container["Service"] in ("migrate", "worker") else "exited"
    if (container["Service"], state, health) == ("backup", "running", "starting"):
        return "done"  # it is healthy once its first backup is whole, which may take hours
    return health if state == "running" and health else state


def _broken(compose: Compose, output: str) -> ServiceError:
    """The first service that is not well, with the end of its log; what docker printed where there is none."""
    bad = {name: state for name, state in unready(compose).items() if state != "created"}
    for name in sorted(bad, key=lambda name: bad[name] not in ("exited", "restarting", "unhealthy")):
        lines = compose.last_lines(name)
        return ServiceError(f"{name} is {bad[name]}; its log ends: {lines or '(empty)'}")
    return compose.failure(output, "up")


def _watch(process: subprocess.Popen[bytes], tell: Callable[[float], None]) -> None:
    begun = time.monotonic()
    while process.poll() is None:
        tell(time.monotonic() - begun)
        try:
            process.wait(1.0)
        except subprocess.TimeoutExpired:
            continue
