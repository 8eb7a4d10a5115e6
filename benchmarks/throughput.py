"""How much of N workers' time is left for training: by storage and number of workers (issue of many workers).

    python benchmarks/throughput.py --out results/throughput.json

Workers are processes with the product's own loop: join, claim, draw, report three values, signs of life, tell. The
objective sleeps ten seconds, so workers do not fight for this machine's cores. Efficiency is the time that the trials
sleep over the time that the workers take: ``whole`` from the start of all (imports are done) until the last has ended,
``steady`` from each worker's first trial to its last one. On PostgreSQL it counts transactions a trial and connections,
from which the last lines work out what many GPUs would need. Then the loop's own cost at trial 50 and trial 1,000.
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


def main() -> None:
    """Measure, print, write."""
    arguments = parser(__doc__)
    arguments.add_argument("--workers", type=int, nargs="*", default=[16, 4, 1], help="(default: 16 4 1)")
    arguments.add_argument("--trials", type=int, default=5, help="trials a worker (default: 5)")
    arguments.add_argument("--seconds", type=float, default=10.0, help="that a trial sleeps (default: 10)")
    arguments.add_argument("--at", type=int, nargs="*", default=[50, 1000], help="sizes of a study (default: 50 1000)")
    arguments.add_argument("--storages", nargs="+", default=["PostgreSQL", "gRPC", "SQLite"], help="(default: all)")
    arguments.add_argument("--mlflow", metavar="URI", help="log every trial there too (default: no MLflow)")
    args = arguments.parse_args()
    if args.toy:
        args.workers, args.trials, args.seconds, args.at, args.rounds = [2], 2, 0.3, [12, 16], 1
    with ExitStack() as stack:
        absent, storages = opened(stack, args.storages)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="xray-bench-")))
        sections = {"workers": workers(args, storages, folder), "loop": loop(args, storages, folder)}
    for rounds in sections.values():
        rounds.absent |= absent
    columns = {
        "workers": [
            Column("whole", "efficiency from the start of all workers to the end of the last", 3),
            Column("steady", "efficiency between each worker's first and last trial", 3),
            Column("overhead_s", "seconds a trial and worker beyond the sleep, steady", 3),
            Column("transactions", "transactions a trial (database)", 0),
            Column("connections", "most connections at once (database)", 0),
        ],
        "loop": [Column("s", "seconds a trial with an objective of microseconds (ratios to the first)", 4)],
    }
    finish(args, {name: rounds for name, rounds in sections.items() if rounds.samples}, columns)
    print("\n".join([*growth(sections["loop"], args.at), *estimate(sections["workers"])]))


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
    told = {"name": name, "url": url, "root": str(folder), "total": total, "seconds": args.seconds}
    job.write_text(json.dumps(told | {"mlflow": args.mlflow}), encoding="utf-8")
    command = [sys.executable, str(CHILD), str(job)]
    pipe = subprocess.PIPE
    crew = [subprocess.Popen(command, cwd=HERE, stdin=pipe, stdout=pipe, text=True) for _ in range(count)]
    try:
        for process in crew:
            if not process.stdout or process.stdout.readline() != "READY\n":
                raise RuntimeError(f"a worker of {name} ended before it began")
        with watched(database) as seen:
            began = time.monotonic()
            for process in crew:
                if process.stdin:
                    process.stdin.write("go\n")
                    process.stdin.flush()
            outputs = [process.communicate()[0] for process in crew]
            ended = time.monotonic()
    finally:
        for process in crew:
            process.kill()
    spans = [sorted(json.loads(output)) for output in outputs]
    done = sum(len(part) for part in spans)
    if done != total:
        raise RuntimeError(f"{name} ran {done} trials instead of {total}")
    slept = [len(part) * args.seconds for part in spans if part]
    took = [part[-1][1] - part[0][0] for part in spans if part]
    values = {"whole": sum(slept) / count / (ended - began), "steady": sum(slept) / sum(took)}
    return values | {"seconds": ended - began, "overhead_s": (sum(took) - sum(slept)) / done} | seen(total)


@contextmanager
def watched(database: str) -> Iterator[Any]:
    """Counts what a PostgreSQL does inside the block; call what it gives, with the number of trials, after it."""
    if not database.startswith("postgresql"):
        yield lambda trials: {}
        return
    engine, over, most = sqlalchemy.create_engine(database, poolclass=sqlalchemy.NullPool), threading.Event(), [0]

    def ask(query: str) -> int:
        with engine.connect() as connection:
            return int(connection.execute(sqlalchemy.text(query)).scalar() or 0)

    def look() -> None:
        while not over.wait(0.5):
            with suppress(sqlalchemy.exc.SQLAlchemyError):
                found = ask("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")
                most[0] = max(most[0], found - 1)

    query = "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()"
    before = ask(query)
    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    yield lambda trials: {"transactions": (ask(query) - before) / trials, "connections": float(most[0])}
    over.set()
    thread.join()


def loop(args: argparse.Namespace, storages: dict[str, tuple[str, str]], folder: Path) -> Rounds:
    """The loop's own cost in small and large studies, one worker."""
    thunks: dict[str, Thunk] = {}
    for name, (url, database) in storages.items():
        for at in args.at:
            thunks[f"{name}, trial {at:,}"] = Ours(url, at, folder, 5, database)
    return interleave(thunks, args.rounds, warm_up={})


def growth(rounds: Rounds, at: list[int]) -> list[str]:
    """How much dearer a trial of the largest study is than one of the smallest."""
    if not at:
        return []
    lines = ["", f"cost of trial {at[-1]:,} over that of trial {at[0]:,}"]
    for name in [name.partition(",")[0] for name in rounds.samples if name.endswith(f"trial {at[0]:,}")]:
        small, large = (statistics.median(rounds.of(f"{name}, trial {size:,}", "s")) for size in (at[0], at[-1]))
        lines.append(f"{name:<34}{large / small:>11.2f}")
    return lines


def estimate(rounds: Rounds) -> list[str]:
    """What ``MANY`` GPUs would ask of a PostgreSQL, from the transactions and connections of the largest crew."""
    lines = ["", f"{MANY:,} GPUs would ask of PostgreSQL", f"{'':<34}" + "".join(f"{m:>7} min" for m in MINUTES)]
    for name in rounds.samples:
        transactions, connections = (rounds.of(name, key) for key in ("transactions", "connections"))
        if not transactions or not connections:
            continue
        rates = [statistics.median(transactions) * MANY / (60 * minutes) for minutes in MINUTES]
        lines.append(f"{name:<34}" + "".join(f"{rate:>11.0f}" for rate in rates) + " transactions/s")
    return lines


if __name__ == "__main__":
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    main()
