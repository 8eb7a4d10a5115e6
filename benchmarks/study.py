"""Wall time of a whole study against the script that a user would write, at equal trials (long).

    python benchmarks/study.py --trials 20 --rounds 3 --out results/study.json

From the start of the process to its end: imports, cache, base weights, storage, every trial, and on our side MLflow,
saved and scored adapters and the registered model as well, which the plain script does without. Ours chooses its
precision itself; the plain script's bf16 is measured where the device has arithmetic for it, as emulated it is slower.
"""

from __future__ import annotations

import os
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import workload
from measure import HERE, Column, Thunk, best_precision, child, finish, interleave, parser, write_samples

PEERS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain script, fp32": ("plain.py", {"precision": "fp32"}),
    "plain script, bf16": ("plain.py", {"precision": "bf16"}),
    "xray-opt tune": ("ours.py", {"precision": "auto", "what": "study"}),
}
COLUMNS = [
    Column("wall_s", "seconds from the start of the process to its end", 1),
    Column("epochs", "epochs trained over all trials", 0),
    Column("trial_s", "seconds a trial (median)"),
]


def main() -> None:
    """Measure, print, write."""
    arguments = parser(__doc__)
    workload.add_arguments(arguments, films=96, size=128, batch=16)
    arguments.add_argument("--epochs", type=int, default=4)
    arguments.add_argument("--trials", type=int, default=20)
    arguments.add_argument("--pruner", choices=("none", "median"), default="none", help="none: equal work for all")
    arguments.add_argument("--workers", type=int, default=min(os.cpu_count() or 1, 16), help="of the DataLoader")
    args = arguments.parse_args()
    if args.toy:
        args.films, args.size, args.batch, args.epochs, args.trials, args.rounds, args.workers = 16, 32, 8, 1, 2, 1, 0
    with tempfile.TemporaryDirectory(prefix="xray-bench-") as folder:
        manifest = workload.make_films(Path(folder) / "films", args.films)
        # `tune` takes the manifest's split, so everyone gets all of it.
        job = workload.job_of(Path(folder), args, args.epochs, manifest, None)
        job |= {"workers": args.workers, "trials": args.trials, "pruner": args.pruner}
        thunks: dict[str, Thunk] = {
            name: partial(child, HERE / "peers" / file, job | more)
            for name, (file, more) in PEERS.items()
            if more["precision"] != "bf16" or best_precision(args.device) == "bf16"
        }
        # A round takes half an hour: each is written, so that a run that is stopped has those before.
        keep = (lambda found: write_samples(args, {"study": found})) if args.out else lambda found: None
        rounds = interleave(thunks, args.rounds, warm_up={}, after=keep)
    print(f"\n{args.trials} trials of {args.epochs} epochs, {len(job['train'])} films, pruner {args.pruner}")
    finish(args, {"study": rounds}, {"study": COLUMNS})


if __name__ == "__main__":
    main()
