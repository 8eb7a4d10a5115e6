"""What an interval and a paired gain are, and where there is none."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

#: Share of resamples without a value (a class was not drawn) above which there is no interval.
MOST_UNDEFINED = 0.05
#: Patients below which there is no interval: of each class that a score needs.
LEAST = 10
Z = 1.959964
#: What is to be said of an interval that is ``rough``, as measured (docs/statistics.md).
ROUGH = "a rough interval: it holds about 92 of 100 times, not 95"


@dataclass(frozen=True)
class Interval:
    """A score and its 95 % interval; ``why`` says why there is none.

    Attributes:
        value: the score itself, NaN where it is not defined.
        low, high: none where an interval is not to be had.
        rough: whether it covers less than it promises; see ``ROUGH``.
    """

    value: float
    low: float | None = None
    high: float | None = None
    why: str | None = None
    rough: bool = False


@dataclass(frozen=True)
class Gain:
    """How much one model is better than another on the same films, paired; ``p`` is of no difference, two-sided."""

    value: float
    low: float | None = None
    high: float | None = None
    p: float | None = None
    why: str | None = None


def bounded(one: Gain) -> Gain:
    """A gain of scores in [0, 1], which is at most 1 either way, whatever a normal interval says."""
    if one.low is None or one.high is None:
        return one
    return replace(one, low=max(one.low, -1.0), high=min(one.high, 1.0))


def why_none(value: float, having: Sequence[int], known: float = 1.0) -> str | None:
    """Why a score or a gain has no interval, if it has none.

    Args:
        having: patients of each class that the score needs.
        known: share of resamples that have a value.
    """
    if math.isnan(value):
        return "a class is missing that it needs"
    if min(having) < LEAST:
        return f"too few patients for an interval: {min(having)}, at least {LEAST} are needed"
    return "a class is missing in too many resamples" if known < 1 - MOST_UNDEFINED else None


def sigmoid(x: float) -> float:
    """The share whose logit is ``x``, without overflow."""
    return 0.5 * (1 + math.tanh(x / 2))


def json_ready(value: Any) -> Any:
    """Nested dicts and lists with none in place of NaN, which JSON has not."""
    if isinstance(value, Mapping):
        return {name: json_ready(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_ready(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def with_nan(values: Mapping[str, Any]) -> dict[str, Any]:
    """A score's fields as JSON keeps them, with NaN where it has none."""
    return {**values, "value": float("nan") if values["value"] is None else values["value"]}
