"""What a call and its slots tell each other: one JSON object a line, either way; nothing is pickled.

A slot gets its ``Job`` as the first line of its standard input and answers with events on a file descriptor of its own,
so that nothing which a library prints can be taken for an answer.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xray_opt.config import Config, Parameter, PrunerConfig, SamplerConfig, StudyConfig, override
from xray_opt.config.dotted import flatten
from xray_opt.config.environment_file import redacted
from xray_opt.errors import TooManyFailures, XrayError
from xray_opt.tuning import Crew

if TYPE_CHECKING:
    from xray_opt.workers import StudyWatcher


@dataclass(frozen=True)
class Job:
    """What a slot is to do.

    Attributes:
        study: the study as the call has it open.
        root: folder of the workspace.
        identity: the study's own id.
        total: trials of the study, over all workers and calls.
        timeout: seconds from now after which no new trial starts.
        crew: the call that the slot is part of.
        memory_fraction: share of its GPU's memory that the slot may take; none means all.
    """

    study: StudyConfig
    root: Path
    identity: str
    total: int
    timeout: float | None
    crew: Crew
    memory_fraction: float | None

    def line(self) -> bytes:
        """The job as one line."""
        study = asdict(self.study) | {"config": flatten(self.study.config)}
        crew = {"name": self.crew.name, "before": sorted(self.crew.before)}
        plain = dict(vars(self)) | {"study": study, "root": str(self.root), "crew": crew}
        return json.dumps(plain).encode() + b"\n"

    @classmethod
    def read(cls, line: bytes) -> Job:
        """The job of a line that ``line`` gave."""
        plain = json.loads(line)
        crew = Crew(plain["crew"]["name"], frozenset(plain["crew"]["before"]))
        return cls(**{**plain, "study": _study(plain["study"]), "root": Path(plain["root"]), "crew": crew})


def _study(plain: Mapping[str, Any]) -> StudyConfig:
    space = [Parameter(**{**parameter, "choices": tuple(parameter["choices"])}) for parameter in plain["space"]]
    parts = {
        "config": override(Config(), plain["config"]),
        "space": tuple(space),
        "sampler": SamplerConfig(**plain["sampler"]),
        "pruner": PrunerConfig(**plain["pruner"]),
        "enqueue": tuple(plain["enqueue"]),
        "objectives": tuple(plain["objectives"]),
    }
    return StudyConfig(**{**plain, **parts})


class Teller:
    """Writes a slot's events; where nobody listens any more they are lost, which is no error."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lock = threading.Lock()

    def tell(self, event: str, **what: Any) -> None:
        """Send one event. It begins with a line break: the one before may have been cut short by a signal."""
        line = b"\n" + json.dumps({"event": event} | what).encode() + b"\n"
        with self._lock:
            try:
                while line:
                    line = line[os.write(self._descriptor, line) :]
            except OSError:
                return

    def watcher(self) -> StudyWatcher:
        """A watcher that sends on what it sees."""
        from xray_opt.workers import StudyWatcher

        return StudyWatcher(
            say=lambda line: self.tell("say", line=line),
            trial_started=lambda number, study, params: self.tell("started", trial=number, params=dict(params)),
            epoch=lambda number, epoch: self.tell("epoch", trial=number, epoch=epoch.plain()),
            trial_ended=lambda record: self.tell("ended", record=record.to_dict()),
        )

    def error(self, error: XrayError) -> None:
        """Send the line and the exit code of what ended the slot."""
        self.tell(**error_event(error))


def error_event(error: XrayError) -> dict[str, Any]:
    """The event that tells of what ended a slot: its line and exit code."""
    return {"event": "error", "line": redacted(" ".join(str(error).split())), "code": error.exit_code}


def read_event(line: bytes) -> dict[str, Any] | None:
    """One event, none for a line that holds none."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and isinstance(event.get("event"), str) else None


def error_of(event: Mapping[str, Any]) -> XrayError:
    """The error of an ``error_event``, of the class that has its exit code."""
    kinds: dict[int, type[XrayError]] = {TooManyFailures.exit_code: TooManyFailures}
    kinds |= {kind.exit_code: kind for kind in XrayError.__subclasses__() if kind.__module__ == XrayError.__module__}
    return kinds.get(event["code"], XrayError)(event["line"])
