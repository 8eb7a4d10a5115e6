"""Compares what comes out with what was recorded, value by value. Pure numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from xray_opt.intervals import json_ready
from xray_opt.reproduce.recording import Recording


@dataclass(frozen=True)
class Difference:
    """One value that is not as recorded; ``epoch`` is none for what was recorded once a run."""

    epoch: int | None
    name: str
    recorded: float | str | None
    now: float | str | None

    @property
    def size(self) -> float:
        """How far the two are apart; infinite where one is no number."""
        if isinstance(self.recorded, int | float) and isinstance(self.now, int | float):
            apart = abs(self.recorded - self.now)
            return math.inf if math.isnan(apart) else apart
        return math.inf

    def text(self) -> str:
        """``epoch 2, val.f1: recorded 0.91, now 0.87``."""
        place = "" if self.epoch is None else f"epoch {self.epoch}, "
        return f"{place}{self.name}: recorded {_shown(self.recorded)}, now {_shown(self.now)}"


def _shown(value: float | str | None) -> str:
    return "none" if value is None else value[:12] if isinstance(value, str) else repr(value)


class Judge:
    """Holds values against a recording as they come.

    Attributes:
        first: first difference of any size; ``beyond`` the first one above the tolerance.
        largest: largest difference of a number.
    """

    def __init__(self, recording: Recording, tolerance: float) -> None:
        self.recording = recording
        self.tolerance = tolerance
        self.epochs = 0
        self.first: Difference | None = None
        self.beyond: Difference | None = None
        self.largest: Difference | None = None

    def epoch(self, number: int, values: Mapping[str, float]) -> None:
        """The values of an epoch; one that was not recorded is a difference."""
        self.epochs = number
        recorded = self.recording.epochs.get(number)
        if recorded is None:
            self._note(Difference(None, "number of epochs", self.recording.last, number), numeric=False)
            return
        self._compare(number, recorded, values)

    def end(self, values: Mapping[str, float], files: Mapping[str, str]) -> None:
        """The scores of the saved adapter, and the digests of its files, of a finished run."""
        if self.epochs != self.recording.last:
            found = Difference(None, "number of epochs", self.recording.last, self.epochs)
            self._note(found, numeric=False)
        self._compare(None, self.recording.best, values)
        for name in sorted(self.recording.files.keys() | files.keys()):
            old, new = self.recording.files.get(name), files.get(name)
            if old != new and self.first is None:  # what the weights give is compared above, within the tolerance
                self.first = Difference(None, f"adapter file {name}", old, new)

    def _compare(self, epoch: int | None, recorded: Mapping[str, float], values: Mapping[str, float]) -> None:
        for name in [*recorded, *(values.keys() - recorded.keys())]:
            old, new = recorded.get(name), values.get(name)
            both_nan = old is not None and new is not None and math.isnan(old) and math.isnan(new)
            if old != new and not both_nan:
                self._note(Difference(epoch, name, old, new))

    def _note(self, found: Difference, numeric: bool = True) -> None:
        self.first = self.first or found
        if self.beyond is None and (not numeric or found.size > self.tolerance):
            self.beyond = found
        if numeric and (self.largest is None or found.size > self.largest.size):
            self.largest = found


@dataclass(frozen=True)
class Reproduction:
    """How a rerun came out.

    Attributes:
        verdict: ``equal`` (bit for bit), ``within`` the tolerance, or ``different``.
        epochs: how many were compared; the rerun ends behind a difference beyond the tolerance.
        environment: what differs of versions and machine, recorded and here.
        first, beyond, largest: see :class:`Judge`.
    """

    run: str
    state: str
    verdict: str
    epochs: int
    recorded_epochs: int
    tolerance: float
    environment: tuple[tuple[str, str, str], ...]
    first: Difference | None
    beyond: Difference | None
    largest: Difference | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        plain: dict[str, Any] = json_ready(asdict(self))
        return plain


def reproduction(judge: Judge, environment: tuple[tuple[str, str, str], ...]) -> Reproduction:
    """The verdict."""
    verdict = "different" if judge.beyond else "within" if judge.first else "equal"
    recording = judge.recording
    return Reproduction(
        recording.run_id,
        recording.state,
        verdict,
        judge.epochs,
        recording.last,
        judge.tolerance,
        environment,
        judge.first,
        judge.beyond,
        judge.largest,
    )
