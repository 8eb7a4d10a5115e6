"""How much training a search needs to come near the best F1: TPE and pruning against random search (long).

    python benchmarks/search.py --data data/chest_xray --record results/table.json --out results/search.json

First a table is recorded: every setting of a small grid trained once for real, F1 of each epoch. Every setting is
written as it ends; started again, the script trains what is missing. Then searches are replayed on the table, which
takes a minute: the product's sampler and pruner, each without the other, and random search, over many seeds.

What a search costs is epochs, all of the same films. The strongest random search is the first line: it never draws a
setting twice, which no search of a real, endless space could promise; the others pay for a setting again. Settings are
known to the samplers by their place in the grid. Near means: an epoch within 0.005 (0.02) of the best of the table.
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import workload
from measure import Column, Rounds, Values, finish, machine, parser, write_whole

from xray_opt.backbone import random_base
from xray_opt.cache import Images
from xray_opt.config import Config, PrunerConfig, SamplerConfig, flatten, override
from xray_opt.trainer import Trainer
from xray_opt.tuning.pruners import pruner_for
from xray_opt.tuning.samplers import sampler_for

#: The grid; lists in order, so that a sampler may know neighbours.
GRID: dict[str, list[float]] = {
    "optimizer.learning_rate": [1e-4, 3e-4, 1e-3, 3e-3, 1e-2],
    "lora.rank": [2, 8, 32],
    "loss.alpha": [0.25, 0.5, 0.75],
}
#: How near the best a search has to come: value's name → distance.
NEAR = {"epochs": 0.005, "epochs_rough": 0.02}
#: A search that has not come near the best after so many passes over the table counts with what it spent.
PATIENCE = 4
#: Name → sampler and pruner; the first is what the others are held against, the last is the product's.
SEARCHES = {
    "random, never twice": ("shuffled", "none"),
    "random": ("random", "none"),
    "random + median pruner": ("random", "median"),
    "TPE": ("tpe", "none"),
    "TPE + median pruner": ("tpe", "median"),
}
COLUMNS = [Column(name, f"epochs until within {distance} of the best F1", 0) for name, distance in NEAR.items()]

Row = dict[str, Any]
Places = tuple[int, ...]


def main() -> None:
    """Record what is missing, replay, print, write."""
    args = options()
    grid = GRID
    if args.toy:
        args.films, args.size, args.batch, args.epochs, args.seeds = 16, 32, 8, 2, 3
        grid = {name: values[:2] for name, values in GRID.items() if name != "loss.alpha"}
    kept = record(args, grid)
    table, args.table = kept["table"], kept["settings"]
    best = max(max(row["f1"]) for row in table)
    rounds = Rounds(
        {name: [search(table, *kind, seed) for seed in range(args.seeds)] for name, kind in SEARCHES.items()}
    )
    print(f"\n{len(table)} settings of {len(table[0]['f1'])} epochs, best F1 {best:.4f}; {args.seeds} seeds")
    for distance in NEAR.values():
        near = sum(max(row["f1"]) >= best - distance for row in table)
        print(f"within {distance} of it: {near} settings")
    args.data = args.data and args.data.name
    finish(args, {"search": rounds}, {"search": COLUMNS})
    print(f"\nmedians over {args.seeds} seeds, and how many times fewer, with 95 % bootstrap intervals")
    for key in NEAR:
        print("\n".join(compared(rounds, key)))


def options() -> Namespace:
    """The command line."""
    made = parser(__doc__)
    workload.add_arguments(made, films=400, size=64, batch=16)
    made.add_argument("--data", type=Path, metavar="FOLDER", help="real films; without it phantoms")
    made.add_argument("--record", type=Path, default=Path("search-table.json"), help="the table; kept")
    made.add_argument("--epochs", type=int, default=6, help="of every setting (default: 6)")
    made.add_argument("--seeds", type=int, default=20, help="searches of each kind (default: 20)")
    return made.parse_args()


def record(args: Namespace, grid: dict[str, list[float]]) -> Row:
    """The table of a file with all settings of the grid; those that it lacks are trained and written one by one."""
    if args.record.exists():
        kept: Row = json.loads(args.record.read_text(encoding="utf-8"))
        if len(kept["table"]) == len(list(places_of(grid))):
            print(f"the table of {args.record}, as it was recorded", file=sys.stderr)
            return kept
    with tempfile.TemporaryDirectory(prefix="xray-bench-") as folder:
        images, config = work(args, Path(folder))
        made = opened(args.record, facts(args, images, config, grid))
        done = {tuple(row["places"].values()) for row in made["table"]}
        for places in places_of(grid):
            if places not in done:
                made["table"].append(trained(places, grid, images, config))
                write_whole(args.record, made)
                print(f"{len(made['table'])} settings: {made['table'][-1]}", file=sys.stderr, flush=True)
    return made


def places_of(grid: dict[str, list[float]]) -> Iterator[Places]:
    """Every setting by its places in the grid's lists."""
    return itertools.product(*(range(len(values)) for values in grid.values()))


def work(args: Namespace, folder: Path) -> tuple[Images, Config]:
    """Films and settings of the table: so many of train, and at most as many of val, evenly over their split."""
    manifest = workload.films_of(args.data, folder, args.films)
    paths = ([path for path, _ in workload.some(manifest, split, args.films)] for split in ("train", "val"))
    job = {"size": args.size, "batch": args.batch, "batch_norm": args.batch_norm, "device": args.device}
    config = workload.settings(job | {"epochs": args.epochs, "precision": "auto"})
    # Light regularisation, as in studies/laptop.yaml: so few steps on random weights need none.
    light = {"augment.scale_min": 0.9, "augment.ratio_min": 0.95, "augment.ratio_max": 1.05, "augment.rotation": 5.0}
    config = override(config, light | {"model.stochastic_depth": 0.0})
    return workload.images_of(manifest, args.size, folder / "workspace", *paths), config


def facts(args: Namespace, images: Images, config: Config, grid: dict[str, list[float]]) -> Row:
    """What a table was recorded from."""
    films = {split.name: [len(split), int(split.labels.sum())] for split in (images.train, images.val)}
    kind = "phantoms" if args.data is None else "films"
    shared = {"data": kind, "manifest": images.manifest.sha256, "films, positive": films, "grid": grid}
    return shared | {name: value for name, value in flatten(config).items() if not name.startswith(("data.", "track"))}


def opened(file: Path, shared: Row) -> Row:
    """The record in ``file``, or a new one; one of other settings is refused."""
    if not file.exists():
        return {"settings": shared, "machine": machine(), "table": []}
    found: Row = json.loads(file.read_text(encoding="utf-8"))
    if other := [name for name in shared if found["settings"].get(name) != shared[name]]:
        raise SystemExit(f"{file} was begun with another {other[0]}; remove it or name another --record")
    return found


def trained(places: Places, grid: dict[str, list[float]], images: Images, config: Config) -> Row:
    """One setting with its validation F1 after each epoch."""
    chosen = {name: values[place] for (name, values), place in zip(grid.items(), places, strict=True)}
    epochs = Trainer(override(config, chosen), images, random_base(workload.SEED)).epochs()
    return {"places": dict(zip(grid, places, strict=True)), "f1": [epoch.val.f1 for epoch in epochs]}


def search(table: list[Row], sampler: str, pruner: str, seed: int) -> Values:
    """Epochs that one search trains until one of them is near the best of the table, for each nearness."""
    curves = {tuple(row["places"].values()): row["f1"] for row in table}
    epochs = len(table[0]["f1"])
    best = max(map(max, curves.values()))
    study = optuna.create_study(direction="maximize", pruner=pruner_for(PrunerConfig(pruner), epochs))
    draw = drawer(table, study, sampler, seed)
    spent, found = 0, dict[str, float]()
    while spent < PATIENCE * epochs * len(table) and len(found) < len(NEAR):
        trial, places = draw()
        values = run(trial, curves[places])
        for value in values:
            spent += 1
            found |= {name: float(spent) for name, near in NEAR.items() if name not in found and value >= best - near}
        whole = len(values) == epochs
        state = optuna.trial.TrialState.COMPLETE if whole else optuna.trial.TrialState.PRUNED
        study.tell(trial, max(values) if whole else None, state=state)
    never = dict.fromkeys(NEAR, float(spent))
    return never | found | {"trials": float(len(study.trials)), "found": float("epochs" in found)}


def drawer(table: list[Row], study: Any, sampler: str, seed: int) -> Any:
    """What gives a new trial and its places at every call."""
    names = list(table[0]["places"])
    tops = [max(row["places"][name] for row in table) for name in names]
    shuffled = iter(np.random.default_rng(seed).permutation(len(table)))

    def draw() -> tuple[Any, Places]:
        if sampler == "shuffled":
            return study.ask(), tuple(table[next(shuffled)]["places"].values())
        study.sampler = sampler_for(SamplerConfig(sampler), seed, len(study.trials))
        trial = study.ask()
        return trial, tuple(trial.suggest_int(name, 0, top) for name, top in zip(names, tops, strict=True))

    return draw


def run(trial: Any, curve: list[float]) -> list[float]:
    """The part of a curve that a trial trains, until it is pruned."""
    for epoch, value in enumerate(curve[:-1], start=1):
        trial.report(value, epoch)
        if trial.should_prune():
            return curve[:epoch]
    return curve


def compared(rounds: Rounds, key: str) -> list[str]:
    """Median and interval of each search, and of the first one's median over its own."""
    first, *_ = SEARCHES
    lines = ["", f"epochs until within {NEAR[key]} of the best"]
    for name in SEARCHES:
        own = rounds.of(name, key)
        low, high = spread(lambda draw, own=own: draw(own))
        least, most = spread(lambda draw, own=own: draw(rounds.of(first, key)) / draw(own))
        times = statistics.median(rounds.of(first, key)) / statistics.median(own)
        line = f"{name:<24}{statistics.median(own):>6.0f} [{low:.0f}, {high:.0f}]"
        lines.append(f"{line:<46}" + ("" if name == first else f"{times:.2f} times fewer [{least:.2f}, {most:.2f}]"))
    return lines


def spread(statistic: Any) -> tuple[float, float]:
    """2.5 % and 97.5 % quantiles of 5,000 bootstrap values of a statistic of medians.

    Args:
        statistic: gets what gives the median of a resample of its argument, every argument resampled on its own.
    """
    chance = np.random.default_rng(0)
    values = [statistic(lambda own: float(np.median(chance.choice(own, len(own))))) for _ in range(5000)]
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)


if __name__ == "__main__":
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    main()
