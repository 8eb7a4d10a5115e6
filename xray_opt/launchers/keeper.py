"""What an actor of ``on_ray`` does on its node: it is the parent of one slot's process, as a call is on one machine.

So a slot is the same everywhere: it hands its trial back when it is told to stop or when its actor dies, and nothing
that torch or CUDA do can harm the actor. Imports neither torch nor Ray.
"""

from __future__ import annotations

import os
import queue
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

from xray_opt.config import StudyConfig
from xray_opt.errors import XrayError
from xray_opt.launchers.gpus import memory_fraction, require_room, visible_gpus
from xray_opt.launchers.member import Event, Member, News
from xray_opt.launchers.slots import Slot
from xray_opt.launchers.wire import Job, error_event

#: Seconds that a question for news waits for some.
LOOK = 0.5


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
        self._own: list[Event] = []
        self._member: Member | None = None
        self._failed: int | None = None

    def host(self) -> str:
        """The name of the node that this is on."""
        return socket.gethostname()

    def start(self, line: bytes, slot: Slot, share: Share, variables: Mapping[str, str]) -> None:
        """Start the slot's process with the job of ``line`` and these variables."""
        os.environ.update(variables)
        job, self._failed = Job.read(line), None
        try:
            self._member = Member(self._placed(slot, share, job.study), self._news)
            self._member.start(job)
        except XrayError as error:
            self._own.append(error_event(error))
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
            if text := require_room(whole, share.per_gpu, study.config.image.size, batch):
                self._own.append({"event": "say", "line": text})
        # Ray has set CUDA_VISIBLE_DEVICES already.
        return replace(
            slot, gpu=os.environ["CUDA_VISIBLE_DEVICES"], memory_fraction=memory_fraction(whole, share.per_gpu)
        )

    def news(self) -> tuple[list[Event], int | None]:
        """What the slot told since the last question, and the exit code of its process once that is over."""
        events, self._own = self._own, []
        with suppress(queue.Empty):
            events.append(self._news.get(timeout=LOOK)[1])
        code = self._failed
        if code is None and self._member is not None and self._member.ended():
            code = self._member.code
        with suppress(queue.Empty):
            while True:
                events.append(self._news.get_nowait()[1])
        return events, code

    def stop(self) -> None:
        """Let the slot hand its trial back and end."""
        if self._member is not None:
            self._member.stop()
