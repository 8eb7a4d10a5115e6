"""Trials an hour on one device when K processes share it (G5), on CUDA also under NVIDIA's MPS where it is installed.

    python benchmarks/per_gpu.py --device cuda --processes 1 2 4 --out results/per-gpu.json

Every process trains a whole trial (epochs, validation after each, as the Trainer does it; no tracking, no search, no
pruning) on films that it holds on the device, all begin together once each is ready. Nothing is extrapolated: the
figures are those of the trial's size that the table names. Where a set is larger than the films made for it, films
repeat.
Runs from a bare checkout with torch, torchvision, peft, safetensors, numpy, pillow, scikit-learn and pyyaml.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import workload
from measure import HERE, Absent, Column, Thunk, Values, child, finish, interleave, parser

#: Seconds until a process has to be ready: imports, films, base weights.
PATIENCE = 900


def main() -> None:
    """Measure, print, write."""
    arguments = parser(__doc__)
    workload.add_arguments(arguments, films=4200, size=384, batch=16)
    arguments.add_argument("--val-films", type=int, default=500, help="validation films (default: 500)")
    arguments.add_argument("--epochs", type=int, default=10, help="epochs of a trial (default: 10)")
    arguments.add_argument("--trials", type=int, default=1, help="trials a process, one behind the other (default: 1)")
    arguments.add_argument("--processes", nargs="+", type=int, default=(1, 2, 4), metavar="K")
    arguments.add_argument("--graphs", action="store_true", help="training.cuda_graphs=true")
    arguments.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto")
    args = arguments.parse_args()
    if args.toy:
        args.films, args.val_films, args.size, args.batch, args.epochs, args.rounds = 16, 8, 32, 8, 1, 1
        args.trials, args.processes = 1, (1, 2)
    if args.device != "cuda":
        args.graphs = False
    size = f"a trial: {args.epochs} epochs of {args.films} films at {args.size} px, batch {args.batch}"
    with tempfile.TemporaryDirectory(prefix="xray-bench-") as folder:
        manifest = workload.make_films(Path(folder) / "films", min(args.films, 256))
        job = workload.job_of(Path(folder), args, args.epochs, manifest, None)
        kept = ("films", "val_films", "trials", "graphs", "precision")
        job |= {name: getattr(args, name) for name in kept}
        rounds = interleave(contenders(args, job, Path(folder)), args.rounds, {})
    columns = [
        Column("trials_hour", f"trials an hour; {size}", 1),
        Column("img_s", "training films a second, all told"),
    ]
    finish(args, {"per device": rounds}, {"per device": [*columns, Column("mib", "peak MiB of one process", 0)]})


def contenders(args: argparse.Namespace, job: dict[str, Any], folder: Path) -> dict[str, Thunk]:
    """K processes, and on CUDA more than one of them under MPS."""
    found: dict[str, Thunk] = {
        f"{count} at once": partial(together, job, count, folder, {}) for count in args.processes
    }
    if args.device == "cuda":
        for count in args.processes:
            if count > 1:
                found[f"{count} at once, MPS"] = partial(under_mps, job, count, folder)
    return found


def together(job: dict[str, Any], count: int, folder: Path, environment: Mapping[str, str]) -> Values:
    """So many processes, which begin at once; from the first one's begin to the last one's end."""
    with tempfile.TemporaryDirectory(dir=folder) as meeting, ThreadPoolExecutor(count) as threads:
        jobs = [job | {"meeting": meeting, "number": number} for number in range(count)]
        running = [threads.submit(child, HERE / "per_gpu_child.py", own, environment) for own in jobs]
        give_way(Path(meeting), count, running)
        values = [one.result() for one in running]
    seconds = max(one["ended"] for one in values) - min(one["began"] for one in values)
    films, trials = (sum(one[name] for one in values) for name in ("films", "trials"))
    peak = {"mib": max(one["mib"] for one in values)} if "mib" in values[0] else {}
    return {"img_s": films / seconds, "trials_hour": 3600 * trials / seconds, "seconds": seconds} | peak


def give_way(meeting: Path, count: int, running: list[Any]) -> None:
    """Let all begin once all are ready; if one ends before, the others need not wait."""
    last = time.monotonic() + PATIENCE
    while len(list(meeting.glob("ready-*"))) < count:
        if any(one.done() for one in running) or time.monotonic() > last:
            break
        time.sleep(0.02)
    (meeting / "go").touch()


def under_mps(job: dict[str, Any], count: int, folder: Path) -> Values:
    """The same, with the kernels of all processes in one context."""
    with mps(folder) as environment:
        return together(job, count, folder, environment)


@contextmanager
def mps(folder: Path) -> Iterator[dict[str, str]]:
    """NVIDIA's multi-process service, with a pipe of its own; what its clients need in their environment."""
    control = shutil.which("nvidia-cuda-mps-control")
    if control is None:
        raise Absent("nvidia-cuda-mps-control is not there")
    with tempfile.TemporaryDirectory(dir=folder) as place:
        environment = {"CUDA_MPS_PIPE_DIRECTORY": place, "CUDA_MPS_LOG_DIRECTORY": place}
        started = subprocess.run([control, "-d"], env=os.environ | environment, capture_output=True, text=True)
        if started.returncode:
            raise Absent(f"MPS does not start: {(started.stderr or started.stdout).strip()[:40]}")
        try:
            yield environment
        finally:
            subprocess.run([control], env=os.environ | environment, input="quit\n", capture_output=True, text=True)


if __name__ == "__main__":
    main()
