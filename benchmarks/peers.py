"""Films a second and seconds a trial, ours beside what a user would write instead; every one in its own process.

    python benchmarks/peers.py --batch-norm train --out results/peers-train.json

A round starts each peer once, in turn, on the same films and settings (EfficientNetV2-S of random weights, LoRA of
rank 8 on 79 convolutions). Training passes alone count as films a second, once with and once without those in which
data workers start; the time from the start of the process to the first training step is shown apart.
"""

from __future__ import annotations

import os
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import workload
from measure import HERE, Column, Thunk, advantage, child, finish, interleave, parser

PEERS = HERE / "peers"
#: Name in the table → script and precision; ratios are to the first.
TRAININGS = {
    "plain fp32": ("plain.py", "fp32"),
    "plain bf16": ("plain.py", "bf16"),
    "Lightning + Optuna, bf16": ("lightning_tune.py", "bf16"),
    "HF Trainer search, bf16": ("hf_trainer.py", "bf16"),
    "ours, bf16": ("ours.py", "bf16"),
}
SCHEDULERS = {
    "Optuna in memory": ("loops.py", "optuna"),
    "Ray Tune + OptunaSearch": ("ray_tune.py", "ray"),
    "ours, SQLite": ("loops.py", "ours"),
}
#: Width and height of the JPEG files: the median of the public paediatric set's as its hospital gave them out.
CLINICAL = (1272, 868)
COLUMNS = {
    "training": [
        Column("img_s", "training films a second behind a trial's first two passes (higher is better)"),
        Column("img_s_all", "… and with them"),
        Column("trial_s", "seconds a trial: network, training, validation"),
        Column("start_s", "seconds from the start of the process to the first training step"),
        Column("peak_mib", "peak memory of the process, MiB (without its data workers)", 0),
    ],
    "scheduler": [Column("trial_s", "seconds a trial of an objective that takes microseconds", 4)],
}


def main() -> None:
    """Measure, print, write."""
    arguments = parser(__doc__)
    workload.add_arguments(arguments, films=64, size=128, batch=16)
    arguments.add_argument("--epochs", type=int, default=4)
    arguments.add_argument("--trials", type=int, default=1, help="trials a process (default: 1)")
    arguments.add_argument("--scheduler-trials", type=int, default=5, help="0: leave the schedulers out")
    arguments.add_argument("--workers", type=int, default=min(os.cpu_count() or 1, 16), help="of the peers' DataLoader")
    args = arguments.parse_args()
    if args.toy:
        args.films, args.size, args.batch, args.epochs, args.trials = 16, 32, 8, 1, 1
        args.rounds, args.workers, args.scheduler_trials = 1, 0, 3
    with tempfile.TemporaryDirectory(prefix="xray-bench-") as folder:
        manifest = workload.make_films(Path(folder) / "films", args.films, CLINICAL)
        job = workload.job_of(Path(folder), args, args.epochs, manifest, args.films)
        job |= {"workers": args.workers, "trials": args.trials}
        brief = job | {"epochs": 1, "trials": 1, "train": job["train"][:: max(1, args.films // 16)]}
        trainings = interleave(thunks(job), args.rounds, warm_up={} if args.toy else thunks(brief))
        sections = {"training": trainings}
        if args.scheduler_trials:
            quick = {"seed": job["seed"], "trials": args.scheduler_trials}
            schedulers: dict[str, Thunk] = {
                name: partial(child, PEERS / file, quick | {"loop": loop}) for name, (file, loop) in SCHEDULERS.items()
            }
            sections["scheduler"] = interleave(schedulers, args.rounds, warm_up={})
    print(f"\n{args.size} px, {len(job['train'])} films, batch {args.batch}, BatchNorm {args.batch_norm}")
    finish(args, sections, COLUMNS)
    print("\n".join(advantage(trainings, "img_s", "ours, bf16")))


def thunks(job: dict[str, Any]) -> dict[str, Thunk]:
    """One process a peer."""
    return {name: partial(child, PEERS / file, job | {"precision": kind}) for name, (file, kind) in TRAININGS.items()}


if __name__ == "__main__":
    main()
