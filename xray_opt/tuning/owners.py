"""Who runs a trial, and whether that worker can be known to be gone.

Nothing here looks at the wall clock: a clock that is set must not make a living worker look dead. Linux gives the
boot an id and counts a process's start from the boot; elsewhere psutil's start time has to do. What cannot be known
here is judged by signs of life (``leases``).
"""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

#: Workers of this process that are at work; a trial of this process that belongs to none of them was left behind.
AT_WORK: set[str] = set()


@contextmanager
def at_work() -> Iterator[str]:
    """The name of one worker of this process, living until the block is left."""
    name = uuid.uuid4().hex
    AT_WORK.add(name)
    try:
        yield name
    finally:
        AT_WORK.discard(name)


def this_worker(name: str) -> dict[str, Any]:
    """What tells a worker from every other one, also across reboots and reused process numbers (JSON-ready)."""
    pid = os.getpid()
    return {"host": socket.gethostname(), "sight": _sight(), "pid": pid, "started": started(pid), "worker": name}


def is_elsewhere(owner: dict[str, Any]) -> bool:
    """Whether the owner runs where processes cannot be looked at from here: another host, boot or container."""
    return bool(owner.get("sight") != _sight())


def is_dead(owner: dict[str, Any] | None) -> bool:
    """Whether the owner can be known to be gone; one that cannot be looked at may live."""
    if owner is None:
        return True
    if is_elsewhere(owner):
        return False
    if owner["started"] != started(owner["pid"]):
        return not _is_hidden(owner["pid"])
    return owner["pid"] == os.getpid() and owner["worker"] not in AT_WORK


def _sight() -> str:
    """Names the set of processes that can be seen from here.

    Linux: the boot and the namespace of process numbers, as host names are shared by containers and by machines made
    from one image. Elsewhere the host's name has to do.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def started(pid: int) -> str | None:
    """When a process started, as the system counts it; none if it is over (a zombie is)."""
    try:
        # The name, in brackets, may itself hold blanks and brackets; state and start are fields 3 and 22.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return None if fields[0] in "ZX" else f"tick {fields[19]}"
    except OSError:
        return _started_by_psutil(pid)


def _is_hidden(pid: int) -> bool:
    """Whether a process lives that only its own user may look at (``/proc`` mounted with ``hidepid``)."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return not Path(f"/proc/{pid}").exists()
    except OSError:
        return False
    return False


def _started_by_psutil(pid: int) -> str | None:
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time():.0f}"
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return None
