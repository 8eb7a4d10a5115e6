"""Feeds a reader seeded cases in a child process that may not hang or grow, and judges what comes of each.

A *reader* is a function of one case that returns when the product accepted it **rightly** (it asserts what must hold
then), and lets the product's error out when it was refused. A case is judged a fault where the reader raises anything
but an XrayError, where the refusal is no clear line, where it takes too long, too much memory, or ends the process.

``FUZZ_SECONDS`` (of the whole run; unset: a fixed number of cases), ``FUZZ_SEED`` and ``FUZZ_CASE`` (this one case of
every fuzzer) are read from the environment. The same seed and number always give the same case.
"""

from __future__ import annotations

import os
import pickle
import random
import re
import select
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

HERE = Path(__file__).parent
#: Characters of a refusal, not counting what it repeats of the case's own place and names.
MOST_LINE = 300
#: Seconds for the child to import what the reader needs, on a machine with other work.
PATIENCE = 300.0
#: Seconds on the clock for one of the processor: the machine may have other work, and a case may wait for nothing.
CLOCK = 10


@dataclass(frozen=True)
class Case:
    """One input.

    Attributes:
        kind: which mutations made it, for the report.
        given: what the reader gets.
        names: a refusal must name one of these (a file, a field); empty where it need not.
        hidden: texts that a refusal must not show.
        places: texts that may stand in a refusal without counting towards its length.
    """

    kind: str
    given: Any
    names: tuple[str, ...] = ()
    places: tuple[str, ...] = ()
    hidden: str = ""


@dataclass(frozen=True)
class Limits:
    """What one case may take: seconds of the processor, and MiB beside those of the imported libraries."""

    seconds: float = 20.0
    megabytes: int = 1024


@dataclass
class Tally:
    """What came of the cases of one fuzzer."""

    fuzzer: str
    accepted: int = 0
    refused: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def cases(self) -> int:
        return self.accepted + self.refused + len(self.faults)

    def told(self) -> str:
        """The faults, one below the other; FUZZ_SEED and FUZZ_CASE repeat one."""
        return "\n".join(self.faults)

    def row(self) -> dict[str, Any]:
        """What the report at the end shows."""
        return {
            "fuzzer": self.fuzzer,
            "cases": self.cases,
            "accepted": self.accepted,
            "refused": self.refused,
            "faults": len(self.faults),
            "seconds": round(self.seconds, 1),
            "kinds": dict(self.kinds),
        }


class Child:
    """A process that reads cases one after the other; killed and started anew when one takes too long."""

    def __init__(self, reader: str, limits: Limits) -> None:
        self._reader, self._limits = reader, limits
        self._process: subprocess.Popen[bytes] | None = None

    def judge(self, given: Any) -> tuple[str, str]:
        """``accepted``, ``refused`` or ``fault``, and the line that says why."""
        process = self._process or self._start()
        body = pickle.dumps(given)
        process.stdin.write(struct.pack("<Q", len(body)) + body)
        process.stdin.flush()
        verdict = self._answer(process, CLOCK * self._limits.seconds)
        if verdict is None:
            try:
                line = f"the process ended with {process.wait(1)}"
            except subprocess.TimeoutExpired:
                line = "a hang"
            self.close()
            return "fault", line
        return verdict

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _start(self) -> subprocess.Popen[bytes]:
        command = [
            sys.executable,
            str(HERE / "child.py"),
            self._reader,
            str(self._limits.megabytes),
            str(self._limits.seconds),
        ]
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env)
        assert self._answer(self._process, PATIENCE) == ("ready", ""), f"{self._reader} cannot be imported"
        return self._process

    @staticmethod
    def _answer(process: subprocess.Popen[bytes], seconds: float) -> tuple[str, str] | None:
        ready, _, _ = select.select([process.stdout], [], [], seconds)
        return receive(process.stdout) if ready else None


def receive(stream: BinaryIO) -> Any:
    """One message, None at the end."""
    head = stream.read(8)
    return pickle.loads(stream.read(struct.unpack("<Q", head)[0])) if len(head) == 8 else None


def seed() -> int:
    return int(os.environ.get("FUZZ_SEED") or 0)


def fuzz(
    name: str,
    reader: str,
    make: Callable[[random.Random, int], Case],
    brief: int,
    share: float,
    least: int = 0,
    limits: Limits = Limits(),
) -> Tally:
    """Run a fuzzer.

    Args:
        reader: ``module:function`` of this folder.
        make: a case from random numbers and its number.
        brief: cases where no ``FUZZ_SECONDS`` is set.
        share: of ``FUZZ_SECONDS``.
        least: cases that a long run makes at least, however slow the machine.
    """
    tally, child, start = Tally(name), Child(reader, limits), time.monotonic()
    seconds = float(os.environ.get("FUZZ_SECONDS") or 0) * share
    only = os.environ.get("FUZZ_CASE")
    number = int(only or 0)
    try:
        while number < (least if seconds else brief) or (seconds and time.monotonic() - start < seconds):
            _one(tally, child, make(random.Random(f"{seed()}/{name}/{number}"), number), number)
            number += 1
            if only or len(tally.faults) >= 25:
                break
    finally:
        child.close()
    tally.seconds = time.monotonic() - start
    return tally


def _one(tally: Tally, child: Child, case: Case, number: int) -> None:
    outcome, line = child.judge(case.given)
    if outcome == "refused":
        if fault := unclear(line, case):
            outcome, line = "fault", f"{fault}: {line[:800]!r}"
        else:
            tally.refused += 1
            tally.reasons[re.sub(r"['\"(].*|\d+", "", line)[-60:]] += 1
    tally.accepted += outcome == "accepted"
    tally.kinds[case.kind] += 1
    if outcome == "fault":
        tally.faults.append(
            f"FUZZ_SEED={seed()} FUZZ_CASE={number} ({case.kind}): {line[-1000:]}\n  {case.given!r:.300}"
        )


def unclear(line: str, case: Case) -> str:
    """Why a refusal is no clear line, empty where it is one."""
    if not line.strip():
        return "says nothing"
    if not line.isprintable():
        return "not one printable line"
    rest = line
    for place in sorted(case.places, key=len, reverse=True):
        rest = rest.replace(place, "…")
    if len(rest) > MOST_LINE:
        return f"{len(rest)} characters are no clear line"
    if case.names and not any(name in line for name in case.names):
        return f"names none of {case.names}"
    if case.hidden and case.hidden in line:
        return "shows a secret"
    return ""
