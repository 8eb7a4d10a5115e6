"""A real PostgreSQL for the tests that need one; they are skipped where its programs or psycopg are missing."""

import os
import pwd
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
from mlflow_stores import free_port

BIN = max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name), default=None)


class Server:
    """A PostgreSQL of its own on a socket in a short folder; started as another user where we are root."""

    def __init__(self, listen=""):
        self.listen, self.port = listen, free_port() if listen else 5432
        self.folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
        self.user = {"user": "postgres", "group": "postgres"} if os.geteuid() == 0 else {}
        if self.user:
            shutil.chown(self.folder, **self.user)
        self._run("initdb", "--no-sync", "-A", "trust", "-U", "postgres", "-D", self.folder / "data")
        self.control("start")

    def control(self, *what):
        options = f"-c listen_addresses={self.listen} -c port={self.port} -c unix_socket_directories={self.folder}"
        options += " -c fsync=off"
        self._run("pg_ctl", "-w", "-D", self.folder / "data", "-l", self.folder / "log", "-o", options, *what)

    def database(self, name):
        subprocess.run([BIN / "createdb", "-h", self.folder, "-p", str(self.port), "-U", "postgres", name], check=True)
        if self.listen:
            return f"postgresql+psycopg://postgres@{self.listen}:{self.port}/{name}"
        return f"postgresql+psycopg://postgres@/{name}?host={self.folder}"

    @property
    def pid(self):
        return int((self.folder / "data" / "postmaster.pid").read_text().split()[0])

    def _run(self, name, *arguments):
        subprocess.run([BIN / name, *arguments], check=True, cwd=self.folder, stdout=subprocess.DEVNULL, **self.user)


@contextmanager
def postgres(listen=""):
    """A server inside the block; ``listen`` is an address for TCP in place of a socket."""
    pytest.importorskip("psycopg")
    if BIN is None or (os.geteuid() == 0 and all(user.pw_name != "postgres" for user in pwd.getpwall())):
        pytest.skip("no PostgreSQL here")
    server = Server(listen)
    try:
        yield server
    finally:
        server.control("stop", "-m", "immediate")
        shutil.rmtree(server.folder)
