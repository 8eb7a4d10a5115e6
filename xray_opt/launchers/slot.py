"""A slot's process: ``python -m xray_opt.launchers.slot DESCRIPTOR``, started by ``processes``.

It reads its job from standard input and ends when that is closed, as it is when its parent dies, however it dies.
SIGTERM and SIGINT end it as Ctrl-C does a tune: the trial is handed back, its checkpoint kept.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from types import FrameType

from xray_opt.errors import XrayError, disk_refusals
from xray_opt.interrupts import INTERRUPTED, insist
from xray_opt.threads import sleep_soon

#: Seconds that a slot without parent has to hand its trial back.
GRACE = 20.0
_PARENT_GONE = threading.Event()


class _Once:
    """Raises KeyboardInterrupt at the first signal; the later ones must not disturb the clean end."""

    def __init__(self) -> None:
        self.came = False
        self.number: int = signal.SIGINT

    def hear(self) -> None:
        """From now on this is what SIGTERM and SIGINT do."""
        signal.signal(signal.SIGTERM, self)
        signal.signal(signal.SIGINT, self)
        insist(self._forget)

    def _forget(self) -> None:
        self.came = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if not self.came:
            self.came, self.number = True, number
            raise KeyboardInterrupt


def main(descriptor: int) -> int:
    """Do the job of standard input, tell of it on ``descriptor``; returns the exit code."""
    once = _Once()
    try:
        once.hear()
        sleep_soon()
        os.set_inheritable(descriptor, False)
        line = _first_line()
        began = time.monotonic()
        if not line.endswith(b"\n"):
            return INTERRUPTED
        threading.Thread(target=_end_with_parent, name="xray-opt-parent", daemon=True).start()
        return _work(line, descriptor, began)
    except KeyboardInterrupt:
        return _stopped(descriptor, once)


def _stopped(descriptor: int, once: _Once) -> int:
    from xray_opt.launchers.wire import Teller

    by = "its parent's end" if _PARENT_GONE.is_set() else signal.Signals(once.number).name
    Teller(descriptor).tell("stopped", by=by)
    return INTERRUPTED


def _work(line: bytes, descriptor: int, began: float) -> int:
    from xray_opt.config import Workspace
    from xray_opt.launchers.wire import Job, Teller
    from xray_opt.workers import join

    job, teller = Job.read(line), Teller(descriptor)
    try:
        _limit_memory(job.memory_fraction)
        with disk_refusals(), join(job.study, Workspace(job.root), job.identity, teller.watcher()) as work:
            left = None if job.timeout is None else max(job.timeout - (time.monotonic() - began), 0.0)
            work.run(job.total, left, job.crew)
    except XrayError as error:
        teller.error(error)
        return error.exit_code
    return 0


def _limit_memory(fraction: float | None) -> None:
    """Leave the other slots of the GPU their part: what does not fit into this one halves the batch here."""
    if fraction is None:
        return
    import torch

    from xray_opt.backbone import resolve_device

    torch.cuda.set_per_process_memory_fraction(fraction, resolve_device("cuda"))


def _first_line() -> bytes:
    """Read without a buffer: a lock of Python's own would be held by the thread that waits for the end."""
    line = b""
    while not line.endswith(b"\n") and (more := os.read(0, 65536)):
        line += more
    return line


def _end_with_parent() -> None:
    while os.read(0, 65536):
        pass
    _PARENT_GONE.set()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
