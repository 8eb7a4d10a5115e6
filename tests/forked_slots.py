"""Slots of a forked ``tune`` as forked processes, too: their own pid, pipes, session and signals, without the imports.

A tune that has opened its stores bears no fork. So a *nursery* is forked at the tune's start, as clean as the tune is
then, and forks each slot for it. The slot becomes the tune's own child, which may wait for it as for any other: what
stood between them ends at once, and the tune takes in what its descendants leave behind.
"""

import ctypes
import inspect
import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from typing import NoReturn

import torch
from conftest import apply_environment

#: The name of a slot's process, by which tests find it.
NAME = "xray-opt-slot"
PROGRAM = ["-m", "xray_opt.launchers.slot"]
_SET_NAME, _SET_CHILD_SUBREAPER = 15, 36
_MOST = 1 << 20


def install() -> None:
    """From now on this process's slots are forked."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for side in (ours, theirs):
        side.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _MOST)
    ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    if os.fork() == 0:
        ours.close()
        _nursery(theirs)
    theirs.close()
    Started.nursery = ours
    subprocess.Popen = Started  # type: ignore[misc]


class Started(subprocess.Popen):
    """``subprocess.Popen`` but for a slot's command: that is forked by the nursery."""

    nursery: socket.socket

    def _execute_child(self, *given):  # the part of Popen between its pipes and its wait
        start = super()._execute_child
        told = inspect.signature(start).bind(*given).arguments
        if told["args"][-3:-1] != PROGRAM:
            start(*given)
            return
        (descriptor,) = told["pass_fds"]
        job = {"descriptor": descriptor, "environment": dict(told["env"])}
        streams = [told["p2cread"], told["c2pwrite"], descriptor]
        socket.send_fds(self.nursery, [json.dumps(job).encode()], streams)
        self.pid = int(self.nursery.recv(_MOST))
        self._child_created = True
        self._close_pipe_fds(*(told[name] for name in _PIPES))


_PIPES = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")


def _nursery(channel: socket.socket) -> NoReturn:
    """Forks a slot at each request, until the tune is gone."""
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # its end is that of the tune
        while True:
            said, streams, _, _ = socket.recv_fds(channel, _MOST, 3)
            if not said:
                break
            read, write = os.pipe()
            if (between := os.fork()) == 0:
                if (pid := os.fork()) == 0:
                    os.read(read, 1)  # until it is the tune's child
                    _slot(channel, json.loads(said), streams)
                channel.send(str(pid).encode())
                os._exit(0)
            os.waitpid(between, 0)
            os.write(write, b"1")
            for descriptor in (read, write, *streams):
                os.close(descriptor)
    finally:
        os._exit(0)


def _slot(channel: socket.socket, job: dict, streams: list[int]) -> NoReturn:
    """The life of a slot, as ``python -m xray_opt.launchers.slot DESCRIPTOR`` has it."""
    code = 70
    try:
        channel.close()
        os.setsid()
        ctypes.CDLL(None).prctl(_SET_NAME, NAME.encode(), 0, 0, 0)
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        code = _run(job, streams)
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        with suppress(ValueError, OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _run(job: dict, streams: list[int]) -> int:
    from xray_opt.launchers import slot

    for stream, numbers in zip(streams, ((0,), (1, 2), (job["descriptor"],)), strict=True):
        for number in numbers:
            os.dup2(stream, number)
    wanted = job["environment"]
    apply_environment({key: wanted.get(key) for key in wanted.keys() | os.environ.keys()})
    torch.set_num_threads(int(wanted.get("OMP_NUM_THREADS", "1")))
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    sys.argv = ["xray_opt.launchers.slot", str(job["descriptor"])]
    return slot.main(job["descriptor"])
