"""Real Ray clusters for the tests that need one: `ray start` processes on this machine.

A node may be a machine of its own as far as Linux can make it one (``far``): its own address, name, process numbers and
folders. It is killed as a machine is lost: everything on it at once, without a word.
"""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

WHY = "no Ray here: install the extra ray"
#: Bytes of shared memory of a node.
STORE = 80 * 2**20
#: Seconds that a node may take to start on a loaded machine.
LONG = 240
# Nobody else may use these clusters; and without a token of ours Ray writes one into the user's home.
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Node:
    """A node and all of its processes."""

    def __init__(self, arguments, address="127.0.0.1", around=(), *, log):
        ray = [
            str(Path(sys.executable).with_name("ray")),
            "start",
            "--block",
            "--disable-usage-stats",
            "--include-log-monitor=false",
        ]
        own = ["--num-cpus=1", f"--object-store-memory={STORE}", f"--node-ip-address={address}"]
        ports = ["--min-worker-port=0", "--max-worker-port=0", f"--dashboard-agent-listen-port={free_port()}"]
        with log.open("w") as out:
            self.process = subprocess.Popen(
                [*around, *ray, *own, *ports, *arguments],
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            self._wait(log)
        except BaseException:
            self.kill()
            raise

    def _wait(self, log):
        deadline = time.monotonic() + LONG
        while "Ray runtime started" not in log.read_text():
            assert self.process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)

    def stop(self):
        """Let it leave the cluster."""
        self.process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(30)
        self.kill()

    def kill(self):
        """Lose it. Where it has process numbers of its own, all that have one die with their first."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Cluster:
    """A head of one core; nodes join and go."""

    def __init__(self, folder):
        self.folder, self.port, self.nodes = folder, free_port(), []
        self.address = f"127.0.0.1:{self.port}"
        self.start()

    def start(self):
        """The head; started again it is a new one at the same address."""
        number = len(self.nodes)
        head = [
            "--head",
            f"--port={self.port}",
            "--include-dashboard=false",
            "--no-monitor",
            f"--temp-dir={self.folder / f'ray-{number}'}",
            f"--ray-client-server-port={free_port()}",
        ]
        self.nodes.append(Node(head, log=self.folder / f"head-{number}.log"))

    def near(self):
        """One more node on this machine, of one core."""
        return self._add(f"near-{len(self.nodes)}")

    def far(self, name, folders):
        """A node of one core that is a machine of its own.

        Args:
            folders: what lies there at some paths: folder by path.
        """
        if reason := without_namespaces():
            pytest.skip(reason)
        mounts = [f"mount --bind '{folder}' '{path}'" for path, folder in folders.items()]
        script = " && ".join([f"hostname {name}", *mounts, '"$@"; exit $?'])
        return self._add(name, f"127.0.0.{len(self.nodes) + 1}", (*APART, "sh", "-c", script, name))

    def _add(self, name, address="127.0.0.1", around=()):
        node = Node([f"--address={self.address}"], address, around, log=self.folder / f"{name}.log")
        self.nodes.append(node)
        return node

    def stop(self):
        for node in reversed(self.nodes):
            node.stop()


#: Begins a command in namespaces of its own, which end with it.
APART = ("unshare", "--mount", "--pid", "--uts", "--fork", "--kill-child", "--mount-proc") + (
    () if os.geteuid() == 0 else ("--map-root-user",)
)


def without_namespaces():
    """Why a node cannot be a machine of its own here; none where it can."""
    if shutil.which("unshare") is None:
        return "a node cannot be a machine of its own here: no unshare"
    done = subprocess.run([*APART, "hostname", "other"], capture_output=True, text=True, check=False)
    return f"a node cannot be a machine of its own here: {done.stderr.strip()}" if done.returncode else None


@contextmanager
def running_cluster():
    """A cluster inside the block. Its folder has a short name: the names of sockets must not be long."""
    folder = Path(tempfile.mkdtemp(prefix="xray-opt-ray-", dir="/tmp"))
    cluster = None
    try:
        cluster = Cluster(folder)
        yield cluster
    finally:
        if cluster is not None:
            cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)
