"""Compares what comes out with what was recorded, value by value. Pure numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from xray_opt.intervals import json_ready
from xray_opt.reproduce.recording import Recording

#: How far a learning rate may be off, as a share: it is computed from settings alone, so another one is another
#: training, however small both are.
SAME_RATE = 1e-9
#: Values without a scale of their own, by the end of their names: they are held against the largest recorded one.
OWN_SCALE = ("loss", "temperature")
#: The only device on which the same machine promises the same bits.
EXACT = "cpu"


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
        first: first difference of any size; ``beyond`` the first one above what is allowed.
        largest: largest difference of a number, measured by what is allowed.
    """

    def __init__(self, recording: Recording, tolerance: float) -> None:
        self.recording = recording
        self.tolerance = tolerance
        self.epochs = 0
        self.first: Difference | None = None
        self.beyond: Difference | None = None
        self.largest: Difference | None = None

    def allowed(self, name: str) -> float:
        """How far a value may be off: a score by the tolerance, a loss by that share of the largest recorded one."""
        if name == "learning_rate":
            return SAME_RATE * self._largest_recorded(name)
        return self.tolerance * (self._largest_recorded(name) if name.endswith(OWN_SCALE) else 1)

    def _largest_recorded(self, name: str) -> float:
        every = (*self.recording.epochs.values(), self.recording.best)
        return max((abs(one[name]) for one in every if math.isfinite(one.get(name, math.nan))), default=0.0)

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
        if self.beyond is None and (not numeric or found.size > self.allowed(found.name)):
            self.beyond = found
        if numeric and (self.largest is None or self._share(found) > self._share(self.largest)):
            self.largest = found

    def _share(self, found: Difference) -> float:
        allowed = self.allowed(found.name)
        return found.size / allowed if allowed else math.inf


@dataclass(frozen=True)
class Reproduction:
    """How a rerun came out.

    Attributes:
        verdict: ``equal`` (bit for bit); ``within`` the tolerance, on another environment or a GPU; ``unequal``: within
            it too, though all that is recorded of the environment is the same, so that the bits should be; or
            ``different``.
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

    @property
    def reproduced(self) -> bool:
        """Whether the run came out as it should where this was asked."""
        return self.verdict in ("equal", "within")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        plain: dict[str, Any] = json_ready(asdict(self))
        return plain


def reproduction(judge: Judge, environment: tuple[tuple[str, str, str], ...]) -> Reproduction:
    """The verdict."""
    recording = judge.recording
    exact = not environment and recording.tags.get("xray_opt.device") == EXACT
    small = "unequal" if exact else "within"
    verdict = "different" if judge.beyond else small if judge.first else "equal"
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
