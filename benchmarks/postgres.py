"""A PostgreSQL of one's own in a temporary folder, from the binaries that Debian installs; on a socket, not a port."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from measure import Absent


@contextmanager
def server() -> Iterator[str]:
    """The URL of its database; it is stopped and removed at the end.

    Raises:
        Absent: no binaries, or no driver for Python.
    """
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    which = shutil.which("initdb")
    if not found and not which:
        raise Absent("no PostgreSQL here")
    driver = next((name for name in ("psycopg", "psycopg2") if importlib.util.find_spec(name)), None)
    if driver is None:
        raise Absent("not installed: psycopg")
    binaries = found[-1].parent if found else Path(str(which)).parent
    folder = Path(tempfile.mkdtemp(prefix="xray-pg-"))  # short: a socket's path has at most 107 characters
    user = _other_user()
    if user:
        shutil.chown(folder, user)
    data = folder / "data"
    try:
        _run([binaries / "initdb", "-D", data, "-U", "bench", "-A", "trust"], folder, user)
        options = f"-c listen_addresses='' -k {folder}"
        _run([binaries / "pg_ctl", "-D", data, "-w", "-l", folder / "log", "-o", options, "start"], folder, user)
        try:
            yield f"postgresql+{driver}://bench@/postgres?host={folder}"
        finally:
            _run([binaries / "pg_ctl", "-D", data, "-w", "-m", "fast", "stop"], folder, user)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _other_user() -> str | None:
    """PostgreSQL refuses to run as root: somebody else, where this is root."""
    if os.geteuid():
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in ("postgres", "nobody") if name in names)


def _run(command: list[str | Path], folder: Path, user: str | None) -> None:
    # Output goes to a file: the server inherits it, and a pipe would never end.
    with (folder.parent / f"{folder.name}.out").open("w+") as out:
        try:
            done = subprocess.run(command, cwd=folder, user=user, stdout=out, stderr=out, check=False)
            out.seek(0)
            if done.returncode:
                raise RuntimeError(f"{Path(command[0]).name} failed: {out.read()[-800:]}")
        finally:
            Path(out.name).unlink()
