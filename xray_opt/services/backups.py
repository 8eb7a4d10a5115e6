"""Backs the service up and puts a backup back, by the scripts that the nightly backup uses."""

from __future__ import annotations

import dataclasses

from xray_opt.config import Workspace
from xray_opt.errors import ServiceError
from xray_opt.services.compose import Compose
from xray_opt.services.starting import Say, service, up
from xray_opt.services.status import STAMP, backups


def backup(workspace: Workspace) -> str:
    """Dump both databases and copy the artifacts now, while all goes on; the name of the backup.

    Raises:
        ServiceError: it failed; former backups are untouched.
    """
    compose = service(workspace, ("backup",))
    compose.run("run", "--rm", "-T", "backup", "once")
    return backups(compose)[0]


def restore(workspace: Workspace, stamp: str, progress: Say) -> None:
    """Replace databases and artifacts by a backup's, with nothing running on them, and start all again.

    Raises:
        ServiceError: no such backup, or it is damaged: nothing is stopped then.
    """
    if not STAMP.fullmatch(stamp):
        raise ServiceError(f"{stamp!r} is no backup's name such as 20260131T020000Z: xray-opt status lists them")
    everything = service(workspace, ("restore", "worker", "backup", "s3"))
    alone = dataclasses.replace(everything, profiles=("restore",))
    alone.run("run", "--rm", "-T", "restore", stamp, "check")
    profiles = running_profiles(everything)
    progress("stopping what uses the databases")
    everything.run("stop", "worker", "backup", "s3", "gateway", "mlflow", "optuna-dashboard")
    progress(f"restoring {stamp}")
    try:
        alone.run("run", "--rm", "-T", "restore", stamp)
    finally:
        up(workspace, profiles, build=False, workers=None, progress=progress)


def running_profiles(compose: Compose) -> tuple[str, ...]:
    """Profiles whose service runs now; workers are not among them: their studies are others after a restore."""
    running = {str(c["Service"]) for c in compose.containers() if c.get("State") == "running"}
    return tuple(name for name in ("s3", "backup") if name in running)
