"""How far a score may be off: 95 % intervals over patients, and paired gains."""

from xray_opt.intervals.patients import Patients, resampled
from xray_opt.intervals.records import LEAST, ROUGH, Floats, Gain, Interval, Z, bounded, json_ready, sigmoid, with_nan
from xray_opt.intervals.scoring import ends, gain, gains, having, interval, scored
from xray_opt.intervals.shares import Tally, share, share_difference, share_gain, tallies, tally, together

__all__ = [
    "LEAST",
    "ROUGH",
    "Floats",
    "Gain",
    "Interval",
    "Patients",
    "Tally",
    "Z",
    "bounded",
    "ends",
    "gain",
    "gains",
    "having",
    "interval",
    "json_ready",
    "resampled",
    "scored",
    "share",
    "share_difference",
    "share_gain",
    "sigmoid",
    "tallies",
    "tally",
    "together",
    "with_nan",
]
