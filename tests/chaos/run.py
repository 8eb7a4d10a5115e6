"""A study under fire: workers are killed and stopped, its stores crash, and nothing may be lost.

    make chaos                                  (200 trials, 8 workers, 6 minutes of faults)
    make chaos CHAOS="--minutes 60 --trials 2000 --seed 7"

Two calls of ``xray-opt tune`` with four workers each share a study on a real PostgreSQL and log to a real MLflow server
on the same PostgreSQL. Every trial trains a real, tiny adapter. What goes wrong is drawn from ``--seed``; when it
strikes depends on the machine as well. At the end both stores are read with their own clients and held against each
other. Exit code 1 where something does not hold; the folder is kept then.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from chaos.check import breaches, left_behind, seconds_lost, waits
from chaos.crew import Crew
from chaos.killer import Done, Killer, counts, plan, stores_back
from chaos.seen import Seen, kept, look
from chaos.stores import Database, Tracking, stores

from xray_opt.phantom import make_phantoms

STUDY = """
name: chaos
config:
  data: {train_films: 8, val_films: 12}
  image: {size: 32}
  model: {base: random, batch_norm: train}
  lora: {rank: 4, stages: late}
  training: {epochs: 3, batch_size: 4, device: cpu}
  tracking: {system_interval: 0.0}
space:
  optimizer.learning_rate: {type: float, low: 1.0e-4, high: 1.0e-2, log: true}
  lora.rank: {type: categorical, choices: [2, 4]}
sampler: {name: tpe, startup_trials: 10}
pruner: {name: median, startup_trials: 5, warmup_epochs: 1}
"""
MODEL = "xray-pneumonia"


def main() -> int:
    """Run it, print the report, keep it."""
    args = options()
    root = Path(tempfile.mkdtemp(prefix="xray-chaos-"))
    print(f"{args.trials} trials, {args.calls} calls with {args.workers} workers each, seed {args.seed}; in {root}")
    with stores(root) as (database, tracking):
        report = fire(args, root, database, tracking)
    print("\n".join(lines(report)))
    args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if report["breaches"]:
        print(f"what was left lies in {root}")
        return 1
    shutil.rmtree(root)
    return 0


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=6.0, help="of faults; the study then comes to its end")
    parser.add_argument("--every", type=float, default=10.0, help="seconds between two faults, on the average")
    parser.add_argument("--patience", type=float, default=10.0, help="minutes that the end may take after the faults")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--calls", type=int, default=2)
    parser.add_argument("--workers", type=int, default=4, help="of each call")
    parser.add_argument("--out", type=Path, default=Path("chaos-report.json"))
    return parser.parse_args()


def fire(args: argparse.Namespace, root: Path, database: Database, tracking: Tracking) -> dict[str, Any]:
    """The whole of it between two ready stores and two that are read."""
    home = root / "home"
    (home / "studies").mkdir(parents=True)
    (home / "studies" / "chaos.yaml").write_text(STUDY)
    make_phantoms(home / "films", 60, 1)
    left_out = ("MLFLOW_", "XRAY_OPT_", "PYTHONPATH")
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(left_out)}
    env = inherited | {
        "XRAY_OPT_HOME": str(home),
        "XRAY_OPT_STORAGE": database.optuna,
        "MLFLOW_TRACKING_URI": tracking.uri,
    }
    env |= {"OMP_NUM_THREADS": "1"}
    command(env, home, "data", "prepare", "films")
    crew = Crew(
        ["--study", "chaos", "--trials", str(args.trials), "--workers", str(args.workers)], args.calls, env, home
    )
    killer = Killer(plan(args.seed, args.minutes * 60, args.every), crew, database, tracking)
    begun = time.monotonic()
    killer.start()
    try:
        ended = crew.run(60 * (args.minutes + args.patience))
    finally:
        killer.over.set()
        killer.join()
    seconds, spent = time.monotonic() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    tracking.wait()
    before = look("chaos", database.optuna, tracking.uri, MODEL, series=False)
    waiting = kept(home / "mlruns" / "spool", before)
    faults = left_behind(before, waiting, args.trials)
    faults += waits(before, waiting, seconds - stores_back(killer.done))
    mended = [line for line in breaches(before, args.trials) if f"when tune ended: {line}" not in faults]
    synced = command(env, home, "sync")
    seen = look("chaos", database.optuna, tracking.uri, MODEL)
    faults += breaches(seen, args.trials)
    if not ended:
        faults.insert(0, f"the study did not come to its end within {args.patience:g} minutes after the last fault")
    if killer.failed is not None:
        faults.insert(0, f"the killer itself failed: {killer.failed!r}")
    faults += [f"{call.name} printed a traceback" for call in crew.members if "Traceback" in call.text]
    return reported(args, seen, killer.done, faults, seconds) | {
        "cpu_seconds": round(spent.ru_utime + spent.ru_stime, 1),
        "ends": {call.name: call.ends for call in crew.members},
        "sync": {"writes": waiting.writes, "postponed": before.postponed, "mended": mended, "said": synced},
    }


def command(env: dict[str, str], home: Path, *arguments: str) -> str:
    """What a command prints; it must end well."""
    whole = [sys.executable, "-m", "xray_opt", *arguments]
    done = subprocess.run(whole, cwd=home, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{arguments} ended with {done.returncode}: {done.stderr}"
    return done.stdout


def reported(
    args: argparse.Namespace, seen: Seen, done: list[Done], faults: list[str], seconds: float
) -> dict[str, Any]:
    """The report as plain data."""
    states = [trial.state for trial in seen.trials]
    return {
        "settings": {name: getattr(args, name) for name in ("trials", "minutes", "every", "seed", "calls", "workers")},
        "seconds": round(seconds, 1),
        "trials": {state: states.count(state) for state in sorted(set(states))},
        "resumed": sum(trial.retry_of is not None and trial.state != "WAITING" for trial in seen.trials),
        "seconds_lost": round(seconds_lost(seen), 1),
        "faults": [fault.to_dict() for fault in done],
        "injected": {what: {"times": times, "seconds": round(lasted, 1)} for what, times, lasted in counts(done)},
        "breaches": faults,
    }


def lines(report: dict[str, Any]) -> list[str]:
    """The report as a table."""
    rows = [f"{'fault':<26}{'times':>6}{'seconds':>9}"]
    rows += [f"{what:<26}{row['times']:>6}{row['seconds']:>9.0f}" for what, row in report["injected"].items()]
    injected = sum(row["times"] for row in report["injected"].values())
    states = ", ".join(f"{count} {state}" for state, count in report["trials"].items())
    rows.append(f"{injected} faults in {report['seconds']:.0f} s; {states}; {report['resumed']} trials resumed another")
    workers = report["settings"]["calls"] * report["settings"]["workers"]
    share = report["seconds_lost"] / (workers * report["seconds"])
    rows.append(f"{report['seconds_lost']:.0f} seconds of {workers} workers lost ({share:.1%})")
    rows.append(left_for_sync(report["sync"]))
    rows += [f"DOES NOT HOLD: {line}" for line in report["breaches"]] or ["survived: all promises hold"]
    return rows


def left_for_sync(sync: dict[str, Any]) -> str:
    """What the calls of tune left, as MLflow was away."""
    left = [f"{count} {kind}" for kind, count in sync["writes"].items()]
    left += ["the settling of the study"] if sync["postponed"] else []
    if not left:
        return "nothing was left for xray-opt sync"
    return f"left for xray-opt sync: {', '.join(left)}; lines of the judge that it mended: {len(sync['mended'])}"


if __name__ == "__main__":
    sys.exit(main())
