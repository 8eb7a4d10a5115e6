"""A real ``xray-opt storage serve`` in a process of its own, for the tests that need one."""

import os
import re
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest


class Proxy:
    """A proxy in front of a storage; started again it keeps its port."""

    def __init__(self, storage, folder, lease=None):
        self.storage, self.folder, self.lease = storage, folder, lease
        self.port, self.lines, self.process = 0, [], None
        self.start()

    def start(self):
        code = "from xray_opt.cli import main; main()"
        if self.lease:
            code = (
                "import sys; from xray_opt.tuning import Lease, serving\n"
                f"serving.serve(sys.argv[4], port=int(sys.argv[6]), say=lambda line: print(line, file=sys.stderr), "
                f"lease=Lease{self.lease})"
            )
        command = [sys.executable, "-c", code, "storage", "serve", "--storage", self.storage, "--port", str(self.port)]
        env = os.environ | {"XRAY_OPT_HOME": str(self.folder)}
        self.process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        threading.Thread(target=self._read, args=(self.process,), daemon=True).start()
        self.port = int(self.wait_for(r"is served at grpc://127\.0\.0\.1:(\d+)")[1])

    def _read(self, process):
        for line in process.stderr:
            self.lines.append(line.rstrip("\n"))

    def wait_for(self, pattern, seconds=120):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for line in list(self.lines):
                if found := re.search(pattern, line):
                    return found
            assert self.process.poll() is None, self.lines
            time.sleep(0.02)
        raise AssertionError(self.lines)

    @property
    def url(self):
        return f"grpc://127.0.0.1:{self.port}"

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.lines.clear()

    def stop(self):
        """Exit code."""
        self.process.terminate()
        return self.process.wait(60)


@contextmanager
def proxy(storage, folder, lease=None):
    """A proxy inside the block."""
    pytest.importorskip("grpc", reason="no grpcio here: install the extra grpc")
    server = Proxy(storage, folder, lease)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.stop()
