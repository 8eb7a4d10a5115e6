"""Peer (d): Ray Tune with OptunaSearch; only what its scheduler costs a trial, with an objective of microseconds."""

from __future__ import annotations

import os
import tempfile
import time
from typing import Any

from measure import Values, need, serve, spawned

need("ray", "optuna")


def run(job: dict[str, Any]) -> Values:
    """Seconds a trial, one after the other as on one card; the start of Ray itself is counted apart."""
    os.environ |= {"RAY_AIR_NEW_OUTPUT": "0", "RAY_DEDUP_LOGS": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    import optuna
    import ray
    from ray import tune
    from ray.tune.search.optuna import OptunaSearch

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    space = {
        "learning_rate": optuna.distributions.FloatDistribution(1e-5, 1e-1, log=True),
        "weight_decay": optuna.distributions.FloatDistribution(1e-4, 1e-1, log=True),
    }
    sampler = optuna.samplers.TPESampler(seed=job["seed"])
    with tempfile.TemporaryDirectory(prefix="xray-bench-") as folder:
        tuner = tune.Tuner(
            nothing,
            tune_config=tune.TuneConfig(
                search_alg=OptunaSearch(space, metric="value", mode="max", sampler=sampler),
                num_samples=job["trials"],
                max_concurrent_trials=1,
            ),
            run_config=tune.RunConfig(storage_path=folder, verbose=0),
        )
        began = time.monotonic()
        results = tuner.fit()
        seconds = time.monotonic() - began
    ray.shutdown()
    if len(results) != job["trials"] or results.errors:
        raise RuntimeError(f"Ray Tune ran {len(results)} trials, {len(results.errors)} of them failed")
    return {"trial_s": seconds / job["trials"], "start_s": began - spawned()}


def nothing(params: dict[str, float]) -> None:
    """The objective of the others: ten reports."""
    from ray import tune

    for epoch in range(1, 11):
        tune.report({"value": params["learning_rate"] + params["weight_decay"] + epoch})


if __name__ == "__main__":
    serve(run)
