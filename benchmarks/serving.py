"""How fast `xray-opt serve` answers: p50, p95, p99 and requests a second, by clients at once and films a request.

    python benchmarks/serving.py --out results/serving.json
    python benchmarks/serving.py --url http://127.0.0.1:5001/invocations --films FOLDER     # a server that runs already

Without `--url` a server of its own is started, as a user starts it, on a registered model of random weights: what a
network computes does not depend on what it has learned. Its films are phantoms as JPEG of 1272×868, so a request costs
its JSON, base64, decoding and network. Clients run in this process, each on a connection of its own.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import workload
from measure import ROOT, Column, Thunk, Values, finish, interleave, parser

from xray_opt import registry
from xray_opt.adapter import attach, make_bundle, save_bundle
from xray_opt.backbone import random_base
from xray_opt.config import TrackingConfig, Workspace
from xray_opt.mlflow_client import connect
from xray_opt.scoring import film_files
from xray_opt.settling import example_film
from xray_opt.tracking import Tracking

NAME = "load"
PIXELS = (1272, 868)
HEADERS = {"Content-Type": "application/json"}


def main() -> None:
    """Measure, print, write."""
    arguments = parser(__doc__)
    arguments.add_argument("--url", help="of a server that runs already (default: one of its own)")
    arguments.add_argument("--films", type=Path, help="folder of films to send (default: phantoms)")
    arguments.add_argument("--size", type=int, default=384, help="side of the network's input (default: 384)")
    arguments.add_argument("--seconds", type=float, default=15, help="of each load in a round (default: 15)")
    arguments.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16], help="at once (default: 1 4 16)")
    arguments.add_argument("--batch", type=int, default=16, help="films of a large request (default: 16)")
    arguments.add_argument("--workers", type=int, default=1, help="processes of the server (default: 1)")
    args = arguments.parse_args()
    if args.toy:
        args.size, args.seconds, args.clients, args.batch, args.rounds = 32, 0.5, [1, 2], 4, 1
    with tempfile.TemporaryDirectory(prefix="xray-bench-") as folder, served(args, Path(folder)) as url:
        bodies = requests(args, Path(folder))
        loads: dict[str, Thunk] = {
            f"{_many(clients, 'client')}, 1 film": partial(load, url, bodies[1], clients, args.seconds, 1)
            for clients in args.clients
        }
        last = args.clients[-1]
        name = f"{_many(last, 'client')}, {_many(args.batch, 'film')}"
        loads[name] = partial(load, url, bodies[args.batch], last, args.seconds, args.batch)
        rounds = interleave(loads, args.rounds)
    columns = [
        Column("requests_s", "requests a second"),
        Column("films_s", "films a second"),
        *(Column(f"p{share}_ms", f"milliseconds until the answer, p{share}", 1) for share in (50, 95, 99)),
    ]
    finish(args, {"serving": rounds}, {"serving": columns})


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def load(url: str, bodies: list[bytes], clients: int, seconds: float, films: int) -> Values:
    """Latencies and rates of ``clients`` that send one request after the other for ``seconds``."""
    waits: list[list[float]] = [[] for _ in range(clients)]
    faults: list[str] = []
    start = threading.Barrier(clients + 1)

    def client(number: int) -> None:
        parts = urlsplit(url)
        connection = http.client.HTTPConnection(str(parts.hostname), parts.port or 80, timeout=300)
        start.wait()
        turn, end = number, time.perf_counter() + seconds
        while time.perf_counter() < end:
            began = time.perf_counter()
            connection.request("POST", parts.path, bodies[turn % len(bodies)], HEADERS)
            answer = connection.getresponse()
            content = answer.read()
            waits[number].append(time.perf_counter() - began)
            if answer.status != 200:
                faults.append(f"{answer.status} {content[:200]!r}")
                return
            turn += 1

    threads = [threading.Thread(target=client, args=(number,), daemon=True) for number in range(clients)]
    for thread in threads:
        thread.start()
    start.wait()
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - began
    if faults:
        raise RuntimeError(f"the server refused a request: {faults[0]}")
    every = 1000 * np.array([wait for own in waits for wait in own])
    shares = {f"p{share}_ms": float(np.percentile(every, share)) for share in (50, 95, 99)}
    return {"requests": len(every), "requests_s": len(every) / took, "films_s": films * len(every) / took} | shares


def requests(args: argparse.Namespace, folder: Path) -> dict[int, list[bytes]]:
    """Films a request → bodies to send in turn."""
    if args.films is None:
        workload.make_films(folder / "films", 16, None if args.toy else PIXELS)
    files = list(film_files([args.films or folder / "films"]))[:64]
    cells = [{"image": base64.b64encode(file.read_bytes()).decode()} for file in files]
    several = [[cells[(first + place) % len(cells)] for place in range(args.batch)] for first in range(8)]
    return {
        1: [json.dumps({"dataframe_records": [cell]}).encode() for cell in cells],
        args.batch: [json.dumps({"dataframe_records": rows}).encode() for rows in several],
    }


@contextlib.contextmanager
def served(args: argparse.Namespace, folder: Path) -> Iterator[str]:
    """URL of a server, started for this where none was named."""
    if args.url:
        yield args.url
        return
    workspace = Workspace((folder / "workspace").resolve())
    register(workspace, args.size)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "xray_opt", "serve", "--model", f"models:/{NAME}@champion", "--port", str(port)]
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_TRACKING", "XRAY_OPT_"))}
    env = kept | {"XRAY_OPT_HOME": str(workspace.root), "PYTHONPATH": str(ROOT)}
    workers = ["--workers", str(args.workers)]
    server = subprocess.Popen([*command, *workers], cwd=workspace.root, env=env, stdout=subprocess.PIPE, text=True)
    try:
        line = server.stdout.readline() if server.stdout else ""
        if "POST " not in line:
            raise RuntimeError(f"the server did not start: {line}")
        yield line.rpartition(" ")[2].strip()
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(60)


def register(workspace: Workspace, size: int) -> None:
    """A version of random weights with a LoRA adapter that learned nothing."""
    job = {"size": size, "batch_norm": "frozen", "batch": 16, "epochs": 1, "device": "cpu", "precision": "fp32"}
    config, base = workload.settings(job), random_base(workload.SEED)
    connection = connect(TrackingConfig(), workspace)
    bundle = make_bundle(base, config, round(1.5 * size))
    adapter = save_bundle(attach(base, config), workspace.root / "adapter", bundle)
    with Tracking.open(connection, NAME, {}, parent=False) as tracking, tracking.run("load", config, {}, {}) as run:
        run.log_folder(adapter, "adapter")
    registry.register(connection, run.id, adapter, base, NAME, {}, example_film())


if __name__ == "__main__":
    main()
