"""How many epochs of training a search needs to come within 0.005 of the best F1 (long).

    python benchmarks/search.py --record results/table.json --seeds 20 --out results/search.json

First a table is recorded, if the file is not there: every setting of a small grid trained for real on tiny phantoms, F1
of each epoch. Then searches are replayed on it, which takes seconds: the product's TPE and median pruner against random
search without pruning, over many seeds. An epoch of a setting that was tried before is counted again.
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import workload
from measure import Column, Rounds, Values, finish, parser

from xray_opt.backbone import random_base
from xray_opt.config import PrunerConfig, SamplerConfig, override
from xray_opt.dataset import Manifest
from xray_opt.trainer import Trainer
from xray_opt.tuning.pruners import pruner_for
from xray_opt.tuning.samplers import sampler_for

#: The grid; lists in order, so that a sampler may know neighbours.
GRID: dict[str, list[float]] = {
    "optimizer.learning_rate": [1e-4, 3e-4, 1e-3, 3e-3, 1e-2],
    "lora.rank": [2, 8, 32],
    "loss.alpha": [0.25, 0.5, 0.75],
}
NEAR = 0.005
#: A search that has not come near the best after so many passes over the table counts with what it spent.
PATIENCE = 4
SEARCHES = {"random, no pruning": ("random", "none"), "TPE + median pruner": ("tpe", "median")}

Table = list[dict[str, Any]]


def main() -> None:
    """Record what is missing, replay, print, write."""
    arguments = parser(__doc__)
    workload.add_arguments(arguments, films=96, size=48, batch=16)
    arguments.add_argument("--record", type=Path, default=Path("search-table.json"), help="the table; kept")
    arguments.add_argument("--epochs", type=int, default=8)
    arguments.add_argument("--seeds", type=int, default=20, help="searches of each kind (default: 20)")
    args = arguments.parse_args()
    grid = GRID
    if args.toy:
        args.films, args.size, args.batch, args.epochs, args.seeds = 16, 32, 8, 2, 3
        grid = {name: values[:2] for name, values in GRID.items() if name != "loss.alpha"}
    table = record(args, grid)
    best = max(max(row["f1"]) for row in table)
    rounds = Rounds(
        {name: [search(table, kind, seed) for seed in range(args.seeds)] for name, kind in SEARCHES.items()}
    )
    print(f"\n{len(table)} settings of {len(table[0]['f1'])} epochs, best F1 {best:.4f}; {args.seeds} seeds")
    finish(args, {"search": rounds}, {"search": [Column("epochs", f"epochs until within {NEAR} of the best F1", 0)]})
    print(f"\nmedians and 95 % bootstrap intervals over {args.seeds} seeds")
    for name in SEARCHES:
        low, middle, high = bootstrap(rounds.of(name, "epochs"))
        found = sum(rounds.of(name, "found"))
        print(f"{name:<34}{middle:>8.0f} [{low:.0f}, {high:.0f}] epochs; found by {found:.0f} of {args.seeds}")


def record(args: Any, grid: dict[str, list[float]]) -> Table:
    """The table of a file, or the one made and written there."""
    if args.record.exists():
        table: Table = json.loads(args.record.read_text(encoding="utf-8"))["table"]
        return table
    table = []
    with tempfile.TemporaryDirectory(prefix="xray-bench-") as folder:
        manifest = workload.make_films(Path(folder) / "films", args.films)
        for row in trained(args, grid, manifest, Path(folder)):
            table.append(row)
            print(f"{len(table)} settings trained: {row}", file=sys.stderr, flush=True)
    args.record.parent.mkdir(parents=True, exist_ok=True)
    args.record.write_text(json.dumps({"films": args.films, "size": args.size, "table": table}, indent=1) + "\n")
    return table


def trained(args: Any, grid: dict[str, list[float]], manifest: Manifest, folder: Path) -> Iterator[dict[str, Any]]:
    """Every setting of the grid with its validation F1 after each epoch."""
    paths = ([path for path, _ in workload.some(manifest, split, args.films)] for split in ("train", "val"))
    images = workload.images_of(manifest, args.size, folder / "workspace", *paths)
    base = random_base(workload.SEED)
    job = {"size": args.size, "batch": args.batch, "batch_norm": args.batch_norm, "device": args.device}
    config = workload.settings(job | {"epochs": args.epochs, "precision": "fp32"})
    for places in itertools.product(*(range(len(values)) for values in grid.values())):
        chosen = {name: grid[name][place] for name, place in zip(grid, places, strict=True)}
        epochs = Trainer(override(config, chosen), images, base).epochs()
        yield {"places": dict(zip(grid, places, strict=True)), "f1": [epoch.val.f1 for epoch in epochs]}


def search(table: Table, kind: tuple[str, str], seed: int) -> Values:
    """Epochs that one search trains until one of them is near the best of the table."""
    curves = {tuple(row["places"].values()): row["f1"] for row in table}
    names = list(table[0]["places"])
    tops = {name: max(row["places"][name] for row in table) for name in names}
    epochs = len(table[0]["f1"])
    goal = max(map(max, curves.values())) - NEAR
    sampler = SamplerConfig(kind[0])
    study = optuna.create_study(direction="maximize", pruner=pruner_for(PrunerConfig(kind[1]), epochs))
    spent = 0
    while spent < PATIENCE * epochs * len(table):
        study.sampler = sampler_for(sampler, seed, len(study.trials))
        trial = study.ask()
        curve = curves[tuple(trial.suggest_int(name, 0, tops[name]) for name in names)]
        state = optuna.trial.TrialState.COMPLETE
        for epoch, value in enumerate(curve, start=1):
            spent += 1
            if value >= goal:
                return {"epochs": float(spent), "trials": float(trial.number + 1), "found": 1.0}
            trial.report(value, epoch)
            if epoch < epochs and trial.should_prune():
                state = optuna.trial.TrialState.PRUNED
                break
        study.tell(trial, max(curve) if state == optuna.trial.TrialState.COMPLETE else None, state=state)
    return {"epochs": float(spent), "trials": float(len(study.trials)), "found": 0.0}


def bootstrap(values: list[float]) -> tuple[float, float, float]:
    """Median with the 2.5 % and 97.5 % quantiles of medians of 10,000 resamples: (low, median, high)."""
    drawn = np.random.default_rng(0).choice(values, size=(10_000, len(values)))
    low, high = np.quantile(np.median(drawn, axis=1), (0.025, 0.975))
    return float(low), statistics.median(values), float(high)


if __name__ == "__main__":
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    main()
