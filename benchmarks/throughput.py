"""How much of N workers' time is left for training: by storage and number of workers.

    python benchmarks/throughput.py --out results/throughput.json

Workers are processes with the product's own loop: claim, draw, report three values, signs of life, tell. The objective
sleeps ten seconds, so workers do not fight for this machine's cores. Efficiency is the time that the trials sleep over
the time that the workers take: ``whole`` from a common start, when all have joined the study, to the end of the last
trial; ``steady`` from each worker's first trial to its last one. On PostgreSQL it counts transactions a trial and
connections. Then the loop's own cost at trial 50, at trial 1,000, and beside 1,000 trials that run elsewhere; from all
these the last lines work out what many GPUs would need.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from measure import HERE, ROOT, Absent, Column, Rounds, Thunk, Values, finish, interleave, parser
from overhead import Ours, sqlite
from postgres import server

CHILD = HERE / "throughput_child.py"
#: Gpus, and the minutes that one trial takes on each, of the estimate.
MANY, MINUTES = 1000, (1, 5, 30)
#: Trials of a sample of the loop, and such samples.
SAMPLE, LOOPS = 5, 3


def main() -> None:
    """Measure, print, write."""
    arguments = parser(__doc__)
    arguments.set_defaults(rounds=1)
    arguments.add_argument("--workers", type=int, nargs="*", default=[16, 4, 1], help="(default: 16 4 1)")
    arguments.add_argument("--trials", type=int, default=5, help="trials a worker (default: 5)")
    arguments.add_argument("--seconds", type=float, default=10.0, help="that a trial sleeps (default: 10)")
    arguments.add_argument("--at", type=int, nargs="*", default=[50, 1000], help="sizes of a study (default: 50 1000)")
    arguments.add_argument("--running", type=int, default=MANY, help="trials that run elsewhere (default: 1000)")
    arguments.add_argument("--storages", nargs="+", default=["PostgreSQL", "gRPC", "SQLite"], help="(default: all)")
    arguments.add_argument("--mlflow", metavar="URI", help="log every trial there too (default: no MLflow)")
    args = arguments.parse_args()
    if args.toy:
        args.workers, args.trials, args.seconds, args.at, args.running = [2], 2, 0.3, [12, 16], 6
    with ExitStack() as stack:
        absent, storages = opened(stack, args.storages)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="xray-bench-")))
        sections = {"workers": workers(args, storages, folder), "loop": loop(args, storages, folder)}
    for rounds in sections.values():
        rounds.absent |= absent
    columns = {
        "workers": [
            Column("whole", "efficiency from the common start to the end of the last trial", 3),
            Column("steady", "efficiency between each worker's first and last trial", 3),
            Column("overhead_s", "seconds a trial and worker beyond the sleep, steady", 3),
            Column("transactions", "transactions a trial (database)", 0),
            Column("connections", "most connections at once (database)", 0),
        ],
        "loop": [
            Column("s", "seconds a trial with an objective of microseconds (ratios to the first)", 4),
            Column("turn_s", "… of these between the end of one objective and the next", 4),
        ],
    }
    finish(args, {name: rounds for name, rounds in sections.items() if rounds.samples}, columns)
    lines = [*growth(sections["loop"], args.at), *estimate(sections["workers"], sections["loop"], args.running)]
    print("\n".join(lines))


def opened(stack: ExitStack, wanted: list[str]) -> tuple[dict[str, str], dict[str, tuple[str, str]]]:
    """Storage → why it is absent, and storage → its URL for workers and that of the database behind it."""
    absent: dict[str, str] = {}
    found: dict[str, tuple[str, str]] = {}
    for name in wanted:
        try:
            url = stack.enter_context(sqlite() if name == "SQLite" else server())
            found[name] = (stack.enter_context(proxy(url)) if name == "gRPC" else url, url)
        except Absent as error:
            absent[name] = str(error)
    return absent, found


@contextmanager
def proxy(database: str) -> Iterator[str]:
    """URL of ``xray-opt storage serve`` in front of a database.

    Raises:
        Absent: it does not start, with its line.
    """
    command = [sys.executable, "-m", "xray_opt", "storage", "serve", "--storage", database, "--port", "0"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        lines = process.stderr or ()
        line = next((line for line in lines if "grpc://" in line or "error" in line), "it ended")
        if "grpc://" not in line:
            raise Absent(line.strip())
        threading.Thread(target=lambda: [*lines], daemon=True).start()
        yield line.split(" at ")[1].partition(";")[0]
    finally:
        process.terminate()
        process.wait()


def workers(args: argparse.Namespace, storages: dict[str, tuple[str, str]], folder: Path) -> Rounds:
    """Every number of workers on every storage, a study each."""
    thunks: dict[str, Thunk] = {}
    for count in args.workers:
        for name, (url, database) in storages.items():
            thunks[f"{name}, {count} workers"] = partial(crew, args, url, database, count, folder)
    return interleave(thunks, args.rounds, warm_up={})


def crew(args: argparse.Namespace, url: str, database: str, count: int, folder: Path) -> Values:
    """One study by ``count`` processes."""
    name = f"crew-{count}-{time.monotonic_ns()}"
    job = folder / f"{name}.json"
    total = count * args.trials
    told = {"name": name, "url": url, "root": str(folder), "count": count, "total": total, "seconds": args.seconds}
    job.write_text(json.dumps(told | {"mlflow": args.mlflow}), encoding="utf-8")
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, str(CHILD), str(job)], cwd=HERE, stdin=pipe, stdout=pipe, text=True) as crew:
        try:
            if not crew.stdout or crew.stdout.readline() != "READY\n":
                raise RuntimeError(f"a worker of {name} ended before it began")
            with watched(database) as seen:
                began = time.monotonic()
                output, _ = crew.communicate("go\n")
                counted = seen(total)
        finally:
            crew.kill()
    return efficiency([sorted(part) for part in json.loads(output)], args.seconds, began, total) | counted


def efficiency(spans: list[list[list[float]]], seconds: float, began: float, total: int) -> Values:
    """How much of the workers' time their trials slept.

    Args:
        spans: for each worker, when each of its trials began and ended.
        began: when they were told to begin.
    """
    done = sum(len(part) for part in spans)
    if done != total:
        raise RuntimeError(f"the workers ran {done} trials instead of {total}")
    took = [part[-1][1] - part[0][0] for part in spans if part]
    whole = max(part[-1][1] for part in spans if part) - began
    slept = done * seconds
    values = {"whole": slept / len(spans) / whole, "steady": slept / sum(took), "seconds": whole}
    return values | {"overhead_s": (sum(took) - slept) / done}


@contextmanager
def watched(database: str) -> Iterator[Any]:
    """Counts what a PostgreSQL does inside the block; call what it gives, with the number of trials, after it."""
    if not database.startswith("postgresql"):
        yield lambda trials: {}
        return
    engine, over, most, own = sqlalchemy.create_engine(database, poolclass=sqlalchemy.NullPool), threading.Event(), 0, 0

    def ask(query: str) -> int:
        nonlocal own
        own += 1
        with engine.connect() as connection:
            return int(connection.execute(sqlalchemy.text(query)).scalar() or 0)

    def look() -> None:
        nonlocal most
        while not over.wait(0.5):
            with suppress(sqlalchemy.exc.SQLAlchemyError):
                most = max(most, ask("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()") - 1)

    def counted(trials: int) -> Values:
        return {"transactions": (ask(query) - before - own + 1) / trials, "connections": float(most)}

    query = "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()"
    before = ask(query)
    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield counted
    finally:
        over.set()
        thread.join()


def loop(args: argparse.Namespace, storages: dict[str, tuple[str, str]], folder: Path) -> Rounds:
    """The loop's own cost in small and large studies, and beside many running trials; one worker."""
    thunks: dict[str, Thunk] = {}
    for name, (url, database) in storages.items():
        for at in args.at:
            thunks[f"{name}, trial {at:,}"] = Ours(url, at, folder, SAMPLE, database)
        if args.at and name != "SQLite":
            thunks[beside(name, args.running)] = Ours(url, args.at[0], folder, SAMPLE, database, args.running)
    return interleave(thunks, 1 if args.toy else LOOPS, warm_up={})


def beside(storage: str, running: int) -> str:
    """How the table calls a trial beside many running ones."""
    return f"{storage}, {running:,} running"


def growth(rounds: Rounds, at: list[int]) -> list[str]:
    """How much dearer a trial of the largest study is than one of the smallest."""
    if not at:
        return []
    lines = ["", f"cost of trial {at[-1]:,} over that of trial {at[0]:,}"]
    for name in [name.partition(",")[0] for name in rounds.samples if name.endswith(f"trial {at[0]:,}")]:
        small, large = (statistics.median(rounds.of(f"{name}, trial {size:,}", "s")) for size in (at[0], at[-1]))
        lines.append(f"{name:<34}{large / small:>11.2f}")
    return lines


def estimate(crews: Rounds, loops: Rounds, running: int) -> list[str]:
    """What ``running`` GPUs would ask of a PostgreSQL: transactions as the crews made them, and how long trials must be
    if what a trial does between two objectives, beside so many running ones, is done by one worker after the other.
    """
    head = f"{'with trials of':<34}" + "".join(f"{minutes:>7} min" for minutes in MINUTES)
    lines = ["", f"{running:,} GPUs: transactions a second of PostgreSQL", head]
    for name in crews.samples:
        transactions = crews.of(name, "transactions")
        if transactions:
            rates = [statistics.median(transactions) * running / (60 * minutes) for minutes in MINUTES]
            lines.append(f"{name:<34}" + "".join(f"{rate:>11.0f}" for rate in rates))
    for name in crews.samples:
        crowded = beside(storage := name.partition(",")[0], running)
        if costs := loops.of(crowded, "turn_s"):
            minutes = statistics.median(costs) * running / 60
            lines.append(f"{storage}: one study is enough for trials of {minutes:.1f} min and more")
    return list(dict.fromkeys(lines))


if __name__ == "__main__":
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    main()
