"""What goes wrong, when, and to whom: drawn from a seed before anything starts, then done to whatever runs then."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import psutil
from chaos.crew import Crew
from chaos.stores import Database, Tracking

#: What may happen, as often as it stands here in a round; one round after the other is shuffled.
ROUND = (
    *("kill a worker",) * 4,
    *("stop a worker",) * 2,
    "stop a worker for long",
    "kill a call",
    "terminate a call",
    "restart PostgreSQL",
    "crash PostgreSQL",
    "stop PostgreSQL",
    *("kill MLflow",) * 2,
    "stop MLflow",
)
#: Seconds that each lasts, from and to; beyond a minute of silence a worker is taken for dead by the others.
LASTS = {
    "stop a worker": (1, 12),
    "stop a worker for long": (65, 80),
    "restart PostgreSQL": (0, 3),
    "crash PostgreSQL": (0, 8),
    "stop PostgreSQL": (3, 20),
    "kill MLflow": (0, 25),
    "stop MLflow": (5, 20),
}


@dataclass(frozen=True)
class Planned:
    """A fault: seconds after the start, what, for how long, and a number in [0, 1) that chooses the victim."""

    at: float
    what: str
    lasts: float
    whom: float


@dataclass(frozen=True)
class Done:
    """A fault as it came: when (seconds after the start), what, to whom (none: nobody was there)."""

    at: float
    what: str
    lasts: float
    victim: str | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def plan(seed: int, seconds: float, every: float) -> list[Planned]:
    """The faults of a run: one every ``every`` seconds on the average, none in the last half minute."""
    chance = random.Random(seed)
    kinds, planned, at = iter(()), [], 0.0
    while (at := at + chance.uniform(0.4, 1.6) * every) < seconds - 30:
        if (what := next(kinds, None)) is None:
            kinds = iter(chance.sample(ROUND, len(ROUND)))
            what = next(kinds)
        lasts = chance.uniform(*LASTS.get(what, (0, 0)))
        planned.append(Planned(round(at, 2), what, round(lasts, 2), chance.random()))
    return planned


class Killer(threading.Thread):
    """Does what is planned; ``over`` ends it early, but never with a store away or a worker stopped."""

    def __init__(self, planned: list[Planned], crew: Crew, database: Database, tracking: Tracking) -> None:
        super().__init__(name="killer")
        self.done: list[Done] = []
        self.failed: BaseException | None = None
        self.over = threading.Event()
        self._planned, self._crew, self._database, self._tracking = planned, crew, database, tracking
        self._later: list[threading.Thread] = []

    def run(self) -> None:
        begun = time.monotonic()
        try:
            for fault in self._planned:
                if self.over.wait(max(fault.at - (time.monotonic() - begun), 0.0)):
                    break
                at = round(time.monotonic() - begun, 1)
                self.done.append(Done(at, fault.what, fault.lasts, self._strike(fault)))
        except BaseException as error:
            self.failed = error
        for thread in self._later:
            thread.join()

    def _strike(self, fault: Planned) -> str | None:
        if fault.what == "stop PostgreSQL":
            self._database.hang(fault.lasts)
            return "PostgreSQL"
        if fault.what.endswith("PostgreSQL"):
            self._database.stop("fast" if fault.what.startswith("restart") else "immediate")
            time.sleep(fault.lasts)
            self._database.start()
            return "PostgreSQL"
        if fault.what == "kill MLflow":
            self._tracking.kill()
            self._afterwards(fault.lasts, self._tracking.start)
            return "MLflow"
        if fault.what == "stop MLflow":
            self._tracking.signal(signal.SIGSTOP)
            time.sleep(fault.lasts)
            self._tracking.signal(signal.SIGCONT)
            return "MLflow"
        return self._strike_process(fault)

    def _strike_process(self, fault: Planned) -> str | None:
        there = self._crew.calls() if fault.what.endswith("call") else self._crew.workers()
        if not there:
            return None
        name, process = there[int(fault.whom * len(there))]
        sent = {"kill": process.kill, "terminate": process.terminate, "stop": process.suspend}[fault.what.split()[0]]
        if not _sent(sent):
            return None
        if fault.lasts:
            self._afterwards(fault.lasts, lambda: _sent(process.resume))
        return name

    def _afterwards(self, seconds: float, action: Callable[[], object]) -> None:
        """Do it later, whatever else happens meanwhile; the run's end waits for it."""

        def wait() -> None:
            self.over.wait(seconds)
            action()

        thread = threading.Thread(target=wait)
        self._later.append(thread)
        thread.start()


def _sent(send: Callable[[], None]) -> bool:
    try:
        send()
    except psutil.NoSuchProcess:
        return False
    return True


def stores_back(done: list[Done]) -> float:
    """When the last fault of a store was over, in seconds after the start; 0 where there was none."""
    return max((fault.at + fault.lasts for fault in done if fault.what.endswith(("PostgreSQL", "MLflow"))), default=0.0)


def counts(done: list[Done]) -> Iterator[tuple[str, int, float]]:
    """Each kind of fault with how often it met somebody, and its seconds in all."""
    for what in dict.fromkeys(ROUND):
        met = [fault for fault in done if fault.what == what and fault.victim is not None]
        yield what, len(met), sum(fault.lasts for fault in met)
