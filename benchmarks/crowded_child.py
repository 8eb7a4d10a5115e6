"""Child of ``crowded.py``: milliseconds of one training step on the CPU."""

from __future__ import annotations

import time
from typing import Any

import torch
from measure import Values, serve
from memory_child import steps


def run(job: dict[str, Any]) -> Values:
    """The mean over as many steps as the seconds allow, one at least; two before them do not count."""
    told = {"variant": "folded", "way": "eager", "rank": 8, "size": job["size"]}
    stepper = steps(told, torch.device("cpu"), job["batch"])
    images = torch.randn(job["batch"], 3, job["size"], job["size"]).contiguous(memory_format=torch.channels_last)
    labels = (torch.arange(job["batch"]) % 2).float()
    began, done = time.perf_counter(), 0
    while not done or time.perf_counter() - began < job["seconds"]:
        stepper.step(images, labels)
        done += 1
    return {"ms": 1000 * (time.perf_counter() - began) / done}


if __name__ == "__main__":
    serve(run)
