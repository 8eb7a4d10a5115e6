"""The goals of PERFORMANCE for a GPU, a row each: what was measured, met or not. Reads what ``make bench-gpu`` wrote.

    python benchmarks/goals.py --results docs/performance

G2: input pipeline over its ceiling. G3: films a second of the step. G4: over the plain script. G5: trials an hour of
ten epochs of the full set. G10: peak memory. A goal whose file is missing is not measured. G3 to G5 are of an H200.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: What, measured, met (none: the size was another).
Row = tuple[str, str, bool | None]
#: The trial of G5: ten epochs of the training films of the full set.
TRIAL = ("10", "4200")


def main() -> None:
    """Print the table."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--results", type=Path, default=Path("docs/performance"))
    folder = arguments.parse_args().results
    goals: list[tuple[str, str, Callable[[Any], list[Row]]]] = [
        ("G2", "ceiling-gpu.json", pipeline),
        ("G3", "step-gpu.json", step),
        ("G4", "ceiling-gpu.json", against_plain),
        ("G5", "per-gpu.json", trials),
        ("G10", "memory-gpu.json", memory),
    ]
    print(f"\n{'goal':<6}{'what':<40}{'measured':<22}verdict")
    for goal, name, rows in goals:
        for what, measured, verdict in found(folder / name, rows):
            print(f"{goal:<6}{what:<40}{measured:<22}{verdict}")


def found(file: Path, rows: Callable[[Any], list[Row]]) -> list[tuple[str, str, str]]:
    """The rows of a goal, or that it was not measured."""
    if not file.is_file():
        return [(f"{file.name} is missing", "–", "not measured")]
    verdicts = {True: "met", False: "not met", None: "not measured"}
    return [(what, measured, verdicts[met]) for what, measured, met in rows(json.loads(file.read_text()))] or [
        (f"nothing on CUDA in {file.name}", "–", "not measured")
    ]


def ratios(section: Any, over: str, under: str) -> float | None:
    """Median of each round's ratio of two contenders."""
    one, other = (section["samples"].get(name, []) for name in (over, under))
    pairs = [a["img_s"] / b["img_s"] for a, b in zip(one, other, strict=False)]
    return statistics.median(pairs) if pairs else None


def pipeline(document: Any) -> list[Row]:
    """At least 95 % of the ceiling, with CUDA graphs and without."""
    rows: list[Row] = []
    for name, section in sizes(document):
        for suffix in ("", ", CUDA graphs"):
            share = ratios(section, f"Trainer, real films{suffix}", f"ceiling: one batch{suffix}")
            if share is not None:
                rows.append((f"pipeline, {name}{suffix}, >= 95 %", f"{share:.1%}", share >= 0.95))
    return rows


def against_plain(document: Any) -> list[Row]:
    """At least three times the plain script."""
    rows: list[Row] = []
    for name, section in sizes(document):
        for suffix in ("", ", CUDA graphs"):
            times = ratios(section, f"Trainer, real films{suffix}", "plain: DataLoader, PIL, peft")
            if times is not None:
                rows.append((f"over the plain script, {name}{suffix}, >= 3", f"{times:.2f}x", times >= 3))
    return rows


def sizes(document: Any) -> list[tuple[str, Any]]:
    """The sections of a size and batch, on CUDA."""
    if not document["arguments"]["device"].startswith("cuda"):
        return []
    return [(name, section) for name, section in document["sections"].items() if "/" in name]


def step(timings: Any) -> list[Row]:
    """1,500 films a second at batch 16, 2,000 at 64, by the fastest way."""
    rows: list[Row] = []
    for batch, wanted in ((16, 1500), (64, 2000)):
        ours = [one for one in timings if one["variant"].startswith("folded, BatchNorm frozen")]
        ours = [one for one in ours if (one["size"], one["batch"]) == (384, batch) and one["peak_mib"] is not None]
        if ours:
            best = max(ours, key=lambda one: one["images_per_second"])
            speed = best["images_per_second"]
            rows.append((f"384/{batch}, {best['way']}, >= {wanted} img/s", f"{speed:.0f} img/s", speed >= wanted))
    return rows


def trials(document: Any) -> list[Row]:
    """120 an hour, where a trial was as large as the goal's."""
    arguments = document["arguments"]
    if arguments["device"] != "cuda":
        return []
    full = (str(arguments["epochs"]), str(arguments["films"])) == TRIAL
    rows: list[Row] = []
    for name, samples in document["sections"]["per device"]["samples"].items():
        if samples:
            hourly = statistics.median(values["trials_hour"] for values in samples)
            rows.append((f"{name}, >= 120 trials an hour", f"{hourly:.0f}", hourly >= 120 if full else None))
    return rows


def memory(document: Any) -> list[Row]:
    """At most 4 GB at batch 16, all that the process reserved."""
    rows: list[Row] = []
    for name, samples in document["sections"]["peak"]["samples"].items():
        for values in samples:
            if "reserved16" in values and "peft" not in name:
                gigabytes = values["reserved16"] * 2**20 / 1e9
                rows.append((f"{name}, <= 4 GB", f"{gigabytes:.2f} GB", gigabytes <= 4))
    return rows


if __name__ == "__main__":
    main()
