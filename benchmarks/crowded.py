"""What a training step takes where others have the cores, by how long OpenMP's waiting threads spin.

    python benchmarks/crowded.py --out results/crowded.json

One step of the product (LoRA folded, BatchNorm trained, bf16) in processes of their own: alone, and beside as many
busy processes as there are cores. As torch does it by itself; with the turns of ``xray_opt/threads.py``, which every
command sets; with threads that never spin; with one thread.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from measure import HERE, Column, Thunk, Values, child, finish, interleave, parser

from xray_opt.threads import TURNS

#: Way → its variables.
WAYS = {
    "torch by itself": {},
    f"{TURNS} turns (ours)": {"GOMP_SPINCOUNT": str(TURNS)},
    "no turns": {"OMP_WAIT_POLICY": "passive"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def main() -> None:
    """Measure, print, write."""
    arguments = parser(__doc__)
    arguments.add_argument("--size", type=int, default=128, help="side in pixels (default: 128)")
    arguments.add_argument("--batch", type=int, default=16, help="films a step (default: 16)")
    arguments.add_argument("--seconds", type=float, default=10.0, help="of steps a sample (default: 10)")
    args = arguments.parse_args()
    ways = list(WAYS)
    if args.toy:
        args.size, args.batch, args.seconds, args.rounds, ways = 32, 4, 0.1, 1, ways[3:]
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        os.environ.pop(name, None)
    sections = {}
    for name, others in (("alone", 0), (f"beside {CORES} busy processes", CORES)):
        thunks: dict[str, Thunk] = {way: partial(sample, args, way, others) for way in ways}
        sections[name] = interleave(thunks, args.rounds, warm_up={})
    finish(args, sections, {name: [Column("ms", f"milliseconds a step, {name}", 0)] for name in sections})


def sample(args: argparse.Namespace, way: str, others: int) -> Values:
    """A process of its own, beside so many others."""
    job = {"size": args.size, "batch": args.batch, "seconds": args.seconds}
    with busy(others):
        return child(HERE / "crowded_child.py", job, WAYS[way])


@contextmanager
def busy(count: int) -> Iterator[None]:
    """So many processes that want a core each."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


if __name__ == "__main__":
    main()
