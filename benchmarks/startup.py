"""What a user waits for: --help, imports, the first training step cold and warm, the second trial (G6, G7).

    python benchmarks/startup.py --out results/startup.json

Every sample is a new process. Cold: a new workspace, so index, cache, study and MLflow store are made. Warm: the same
workspace again, one more trial. The parts of both add up to the time from the start of the process to the end of the
first training step.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import workload
from measure import HERE, ROOT, Column, Rounds, Thunk, Values, child, finish, interleave, parser

IMPORTS = ("torch", "peft", "mlflow", "optuna", "xray_opt.trainer", "xray_opt.workers")
PARTS = ("interpreter", "import", "data", "base", "storage", "MLflow", "attach", "first step", "rest")
#: As in startup_child.py: what a child reports beside its parts.
TOTAL = "first step done"
SECOND = ("2nd trial: start to first step", "1st trial's end to that")


def main() -> None:
    """Measure, print, write."""
    arguments = parser(__doc__)
    workload.add_arguments(arguments, films=48, size=128, batch=16)
    args = arguments.parse_args()
    imports = IMPORTS
    if args.toy:
        args.films, args.size, args.batch, args.rounds, imports = 16, 32, 8, 1, ("torch",)
    commands: dict[str, Thunk] = {"xray-opt --help": partial(command, "-m", "xray_opt", "--help")}
    commands |= {f"import {name}": partial(command, "-c", f"import {name}") for name in imports}
    sections = {"commands": interleave(commands, args.rounds, warm_up={} if args.toy else None)}
    with tempfile.TemporaryDirectory(prefix="xray-bench-") as folder:
        manifest = workload.make_films(Path(folder) / "films", args.films)
        job = {"root": manifest.root, "size": args.size, "batch": args.batch, "batch_norm": args.batch_norm}
        job |= {"device": args.device, "precision": "auto", "epochs": 1}
        cold, warm = Rounds(), Rounds()
        for number in range(args.rounds):
            workspace = str(Path(folder) / f"workspace-{number}")
            keep(cold, child(HERE / "startup_child.py", job | {"workspace": workspace, "trials": 2}))
            keep(warm, child(HERE / "startup_child.py", job | {"workspace": workspace, "trials": 3}))
    sections |= {"cold": cold, "warm": warm}
    columns = {
        "commands": [Column("s", "seconds of a new process (ratios to --help)")],
        "cold": [Column("s", "cold `tune`, seconds (ratios to the whole)")],
        "warm": [Column("s", "warm `tune` of the same study, seconds (ratios to the whole)")],
    }
    finish(args, sections, columns)


def command(*words: str) -> Values:
    """Seconds of a Python process, from its start to its end."""
    began = time.perf_counter()
    subprocess.run([sys.executable, *words], cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
    return {"s": time.perf_counter() - began}


def keep(rounds: Rounds, values: dict[str, Any]) -> None:
    """One sample a part, the whole first."""
    for name in (TOTAL, *PARTS, *SECOND):
        if name in values:
            rounds.samples.setdefault(name, []).append({"s": values[name]})


if __name__ == "__main__":
    main()
