"""What tracking costs a trial: MLflow's own client, our way to the same store, and the spool while MLflow is away.

    python benchmarks/spool.py --out results/spool.json

The writes of one trial and nothing else: a run is made, its settings and ten epochs are logged, 3 MB of adapter are
stored, the run is ended. First as one would do it with MLflow's client, then with ours, both into an embedded store;
then for a server that refuses connections, so that all is kept on this disk. All is below the temporary folder
(TMPDIR): its disk is what is measured.
"""

from __future__ import annotations

import argparse
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from measure import Column, Rounds, Values, finish, interleave, parser
from mlflow.entities import Metric, Param

from xray_opt.config import Config, TrackingConfig, Workspace, flatten, override
from xray_opt.errors import StoreAway
from xray_opt.mlflow_client import Connection, connect
from xray_opt.tracking import Tracking

EPOCHS, BYTES = 10, 3_000_000
NAMES = ("train.loss", "val.loss", "val.f1", "val.auc", "val.accuracy", "val.precision", "val.recall", "learning_rate")
CONFIG = override(Config(), {"tracking.system_interval": 0.0})


def main() -> None:
    """Measure, print, write."""
    arguments = parser(__doc__)
    arguments.add_argument("--trials", type=int, default=20, help="trials a sample (default: 20)")
    args = arguments.parse_args()
    if args.toy:
        args.trials, args.rounds = 2, 1
    finish(args, {"tracking": tracking(args)}, {"tracking": [Column("ms", "milliseconds of tracking a trial", 1)]})


def tracking(args: argparse.Namespace) -> Rounds:
    """All ways, in one interleaved run."""
    with tempfile.TemporaryDirectory(prefix="xray-bench-") as name:
        folder = Path(name)
        adapter = folder / "adapter"
        adapter.mkdir()
        (adapter / "adapter_model.safetensors").write_bytes(bytes(BYTES))
        own = connect(TrackingConfig(), Workspace(folder / "own"))
        nobody = TrackingConfig(uri=f"http://127.0.0.1:{closed_port()}")
        away = connect(nobody, Workspace(folder / "away"), excused=(StoreAway,))
        ways = {
            "MLflow's client": lambda: plainly(own, adapter, args.trials),
            "ours": lambda: ours(own, adapter, args.trials),
            "ours, MLflow away": lambda: ours(away, adapter, args.trials),
        }
        return interleave(ways, args.rounds)


@contextmanager
def timed(trials: int) -> Iterator[Values]:
    """Filled at the end of the block: milliseconds a trial."""
    values: Values = {}
    began = time.perf_counter()
    yield values
    values["ms"] = 1000 * (time.perf_counter() - began) / trials


def plainly(connection: Connection, adapter: Path, trials: int) -> Values:
    """With MLflow's client alone."""
    client, params = connection.client, [Param(key, str(value)) for key, value in flatten(CONFIG).items()]
    found = client.get_experiment_by_name("plain")
    place = (connection.workspace.mlruns / "plain").resolve().as_uri()
    experiment = found.experiment_id if found else client.create_experiment("plain", artifact_location=place)
    with timed(trials) as values:
        for _ in range(trials):
            run = client.create_run(experiment, run_name="trial").info.run_id
            client.log_batch(run, params=params)
            for epoch in range(1, EPOCHS + 1):
                now = int(1000 * time.time())
                client.log_batch(run, [Metric(name, 0.5, now, epoch) for name in NAMES])
            client.log_artifacts(run, str(adapter), "adapter")
            client.set_terminated(run)
    return values


def ours(connection: Connection, adapter: Path, trials: int) -> Values:
    """With the product's runs."""
    with Tracking.open(connection, "ours", {}, say=lambda line: None) as tracking, timed(trials) as values:
        for _ in range(trials):
            with tracking.run("trial", CONFIG, {}, {}) as run:
                for epoch in range(1, EPOCHS + 1):
                    run.log_metrics(dict.fromkeys(NAMES, 0.5), epoch)
                run.log_folder(adapter, "adapter")
    shutil.rmtree(connection.workspace.spool, ignore_errors=True)
    return values


def closed_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
