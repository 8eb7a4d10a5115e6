"""What an actor of ``on_ray`` does on its node: it is the parent of one slot's process, as a call is on one machine.

So a slot is the same everywhere: it hands its trial back when it is told to stop, and nothing that torch or CUDA do can
harm the actor. Where the actor is killed Ray kills the slot as well, and its trial is found lost. Imports neither torch
nor Ray.
"""

from __future__ import annotations

import os
import queue
import signal
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

from xray_opt.config import StudyConfig
from xray_opt.errors import XrayError
from xray_opt.interrupts import INTERRUPTED
from xray_opt.launchers.gpus import memory_fraction, require_room, visible_gpus
from xray_opt.launchers.member import Event, Member, News
from xray_opt.launchers.slots import Slot
from xray_opt.launchers.wire import Job, error_event

#: Seconds that a question for news waits for some.
LOOK = 0.5
#: Exit code of a slot whose actor, node or cluster is gone.
LOST = -signal.SIGHUP


@dataclass(frozen=True)
class Share:
    """What Ray reserves for a slot: cores, and GPUs (a fraction where several slots share one)."""

    cpus: float
    gpus: float = 0.0
    per_gpu: int = 1


class Keeper:
    """The actor; all its answers are plain, so that no exception has to find its way through Ray."""

    def __init__(self) -> None:
        self._news: News = queue.Queue()
        self._told: list[Event] = []
        self._seen = 0
        self._member: Member | None = None
        self._failed: int | None = None
        self._started = -1
        self._stopped = False

    def host(self) -> str:
        """The name of the node that this is on."""
        return socket.gethostname()

    def start(
        self, number: int, line: bytes, slot: Slot, share: Share, variables: Mapping[str, str], folder: str
    ) -> None:
        """Start the slot's process with the job of ``line`` and these variables; relative paths begin at ``folder``.

        Each process of the slot has a ``number``, from 0. One that was asked for already, as by a call whose answer was
        lost or that was underway for long, is not started again, nor is one of a slot that was told to stop.
        """
        if number <= self._started:
            return
        self._started = number
        if self._stopped:
            self._failed = INTERRUPTED
            return
        os.environ.update(variables)
        with suppress(OSError):  # no such folder on this node: what is missing in it will be said by its name
            os.chdir(folder)
        job, self._failed = Job.read(line), None
        try:
            self._member = Member(self._placed(slot, share, job.study), self._news)
            self._member.start(job)
        except XrayError as error:
            self._told.append(error_event(error))
            self._failed = error.exit_code

    def _placed(self, slot: Slot, share: Share, study: StudyConfig) -> Slot:
        """The slot on the GPU that Ray gave it, with its part of that memory; nobody else is on it by then."""
        if not share.gpus:
            return slot
        (gpu,) = visible_gpus()[:1]
        whole = replace(gpu, free=gpu.total)
        if share.per_gpu > 1:
            training = study.config.training
            batch = training.micro_batch or training.batch_size
            if text := require_room(whole, share.per_gpu, max(study.image_sizes), batch):
                self._told.append({"event": "say", "line": text})
        # Ray has set CUDA_VISIBLE_DEVICES already.
        return replace(
            slot, gpu=os.environ["CUDA_VISIBLE_DEVICES"], memory_fraction=memory_fraction(whole, share.per_gpu)
        )

    def news(self, seen: int) -> tuple[list[Event], int | None]:
        """What the slot told after its first ``seen`` events, and the exit code of its process once that is over.

        The events of all processes of this actor count, in one row. Asked twice, as where an answer was lost, it gives
        the same again: only what was seen is forgotten.
        """
        del self._told[: max(seen - self._seen, 0)]
        self._seen = max(seen, self._seen)
        if not self._told:
            with suppress(queue.Empty):
                self._told.append(self._news.get(timeout=LOOK)[1])
        code, member = self._failed, self._member
        if code is None and member is not None and (member.ended() or not member.runs):
            code = member.code
        with suppress(queue.Empty):
            while True:
                self._told.append(self._news.get_nowait()[1])
        return list(self._told), code

    def stop(self) -> None:
        """Let the slot hand its trial back and end; none is started from now on."""
        self._stopped = True
        if self._member is not None:
            self._member.stop()
