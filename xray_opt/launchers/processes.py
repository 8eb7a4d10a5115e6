"""The launcher of one process a slot: starts them, shows what they do, starts again what was killed, ends them all."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

from xray_opt.errors import DeviceFault, StudyError, XrayError
from xray_opt.interrupts import INTERRUPTED
from xray_opt.launchers.member import Event, Member, News
from xray_opt.launchers.slots import Slot
from xray_opt.launchers.wire import Job, error_of
from xray_opt.trainer import Epoch
from xray_opt.tuning import IDENTITY, Crew, Tally, TrialRecord
from xray_opt.workers import Work

#: A slot that is killed is started again so many times in a call.
MOST_RESTARTS = 3
#: Seconds that the slots have to end when the call is stopped; Kubernetes and Slurm give it 30.
GRACE = 20.0
#: Seconds in which a slot that is out of sight has ended, or is missed: Ray's nodes give a lost head a minute.
OUT_OF_SIGHT = 150.0
#: Seconds between two looks at who still runs.
LOOK = 0.2


@dataclass(frozen=True)
class Processes:
    """The launcher of one process a slot."""

    slots: tuple[Slot, ...]

    def __call__(self, work: Work, total: int, timeout: float | None) -> Tally:
        """Run trials in all slots; see ``workers.Launcher``.

        Raises:
            XrayError: no slot could work; the line is that of the first that said why.
            KeyboardInterrupt: after the slots have ended.
        """
        return run_team(lambda news: [Member(slot, news) for slot in self.slots], work, total, timeout)


def run_team(
    hired: Callable[[News], Sequence[Member]], work: Work, total: int, timeout: float | None, **changes: Any
) -> Tally:
    """Bring a study to its number with the members that ``hired`` makes, who tell what they do on the given queue.

    Args:
        changes: of the study as the members get it.

    Raises:
        XrayError: no member could work; the line is that of the first that said why.
        KeyboardInterrupt: after the members have ended.
    """
    crew = work.opened.begin(total, work.watcher.say)
    if timeout == 0 or work.opened.read().counted >= total:
        return work.run(total, timeout, crew)
    job = Job(
        study=replace(work.opened.config, **changes),
        root=work.opened.workspace.root,
        identity=str(work.opened.notes[IDENTITY]),
        total=total,
        timeout=timeout,
        crew=crew,
        memory_fraction=None,
    )
    team = _Team(hired, job, work)
    team.run()
    _outlive(work, crew)
    # Nothing is started here: what a slot left behind that died at the very end is taken in, and all is counted.
    tally = work.run(total, 0.0, crew)
    enough = tally.complete + tally.pruned >= total
    if not enough:
        team.require_one_that_worked()
    return replace(tally, started_now=team.started, stopped="done" if enough else "timeout")


def _outlive(work: Work, crew: Crew) -> None:
    """Wait until no trial of this call is run any more: a slot that is lost with its network or its cluster goes on
    until it notices, or until it is missed.
    """
    deadline = time.monotonic() + OUT_OF_SIGHT
    while work.opened.is_at_work(crew=crew) and time.monotonic() < deadline:
        time.sleep(1.0)


class _Team:
    """The slots of one call."""

    def __init__(self, hired: Callable[[News], Sequence[Member]], job: Job, work: Work) -> None:
        self.started = 0
        self._job, self._watcher = job, work.watcher
        self._deadline = None if job.timeout is None else time.monotonic() + job.timeout
        self._news: News = queue.Queue()
        self._members = list(hired(self._news))
        self._said: dict[str, Member] = {}
        self._shared: list[XrayError] = []

    def run(self) -> None:
        """Start all slots and stay until the last has ended."""
        with self._stopping():
            for member in self._members:
                self._start(member)
            while self._running():
                for member in self._over():
                    self._after(member)

    def require_one_that_worked(self) -> None:
        """Raise what kept the slots from working, unless one of them came to its own end."""
        if any(member.code == 0 for member in self._members):
            return
        for member in self._members:
            if member.error is not None:
                raise member.error
        raise StudyError(
            f"no slot of study {self._job.study.name} is left and nothing lost: see the lines above, use fewer if "
            "memory ran out, and run the same command again"
        )

    def _start(self, member: Member) -> None:
        """Start a slot; one that cannot be is given up, as long as it is not the call's first.

        Raises:
            StudyError: not even that one can be started.
        """
        left = None if self._deadline is None else max(self._deadline - time.monotonic(), 0.0)
        try:
            member.start(replace(self._job, timeout=left))
        except XrayError as error:
            if member.code is None and not self._running():
                raise
            member.error = error
            self._watcher.say(f"{member.slot.name} is given up: {error}")

    def _running(self) -> list[Member]:
        return [member for member in self._members if member.runs]

    def _over(self) -> list[Member]:
        """Take in what the slots tell for a moment; those that have ended meanwhile."""
        with suppress(queue.Empty):
            self._hear(*self._news.get(timeout=LOOK))
        over = [member for member in self._running() if member.ended()]
        with suppress(queue.Empty):
            while True:
                self._hear(*self._news.get_nowait())
        return over

    def _hear(self, member: Member, event: Event) -> None:
        watcher, kind = self._watcher, event["event"]
        if kind == "say":
            self._say(member, event["line"])
        elif kind == "started":
            member.trial = event["trial"]
            self.started += 1
            watcher.placed(event["trial"], member.slot.name)
            watcher.trial_started(event["trial"], self._job.study, event["params"])
        elif kind == "epoch":
            watcher.epoch(event["trial"], Epoch.from_plain(event["epoch"]))
        elif kind == "ended":
            member.trial = None
            watcher.trial_ended(TrialRecord.from_dict(event["record"]))
        elif kind == "stopped":
            member.stopped_by = f" ({event['by']})"
        elif kind == "error":
            member.error = error_of(event)

    def _say(self, member: Member, line: str) -> None:
        """What several slots say alike is said once."""
        if self._said.setdefault(line, member) is member:
            self._watcher.say(f"{member.slot.name}: {line}")

    def _after(self, member: Member) -> None:
        """A slot has ended: start it again, or let it be and free its place for one that was lost."""
        if member.trial is not None:
            self._watcher.placed(member.trial, None)
            member.trial = None
        name, how = member.slot.name, member.how()
        if member.code == 0:
            line = None
        elif member.error is not None and not self._may_help(member):
            line = None if member.error in self._shared else f"{name} stopped: {member.error}"
            self._shared.append(member.error)  # what ends all of them at once is one error
        elif member.code == INTERRUPTED:
            line = f"{name} was told to stop{member.stopped_by}; its trial is handed to the other slots"
        elif member.restarts < MOST_RESTARTS:
            member.restarts += 1
            how = f"stopped ({member.error})" if member.error else how
            member.error = None
            self._watcher.say(f"{name} {how} and is started again ({member.restarts} of {MOST_RESTARTS} times)")
            self._start(member)
            return
        else:
            line = f"{name} {how} once more and is given up"
        member.kill()
        if line:
            self._watcher.say(line)

    @staticmethod
    def _may_help(member: Member) -> bool:
        """Whether a new process may do what this one cannot: its GPU failed under it."""
        return isinstance(member.error, DeviceFault) and member.restarts < MOST_RESTARTS

    @contextmanager
    def _stopping(self) -> Iterator[None]:
        """End the slots with the block: they hand their trials back, and are killed if they take too long."""
        try:
            yield
        except BaseException:
            try:
                self._stop()
            finally:
                for member in self._running():
                    member.kill()
            raise

    def _stop(self) -> None:
        """The slots have their time whatever fails here: whoever is told may be what failed."""
        for member in self._running():
            member.stop()
        deadline = time.monotonic() + GRACE
        with suppress(Exception):
            self._watcher.say(f"the slots have {GRACE:.0f} s to hand their trials back; Ctrl-C again kills them")
        while self._running() and time.monotonic() < deadline:
            with suppress(Exception):
                self._over()
