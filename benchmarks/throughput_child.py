"""The workers of one study of ``throughput.py``, the study's real loop and an objective that sleeps; not run by hand.

They are forked from this process, so that imports are done once and not by each of them on a machine with few cores.
It says READY when all of them have joined the study, and waits for a line on its standard input: then all begin.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from contextlib import ExitStack
from multiprocessing.connection import Connection as Pipe
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import measure
import numpy.random  # noqa: F401  imported lazily otherwise, by each worker
from fake_objective import SPACE, STARTUP, rising

from xray_opt.config import Config, SamplerConfig, StudyConfig, TrackingConfig, Workspace, override
from xray_opt.tuning import OpenStudy, Outcome, TrialContext, is_proxy, open_study

#: Values that a trial reports.
REPORTS = 3
#: Seconds that all workers have to join.
JOIN = 300
Span = tuple[float, float]


def study_of(name: str, url: str) -> StudyConfig:
    """The study, median pruner and TPE as in the product; every trial beats the ones before, so none is pruned."""
    config = override(Config(), {"training.epochs": REPORTS})
    return StudyConfig(name, config, SPACE, sampler=SamplerConfig("tpe", startup_trials=STARTUP), storage=url)


def work(job: dict[str, Any], begin: Barrier, told: Pipe) -> None:
    """One worker: join, wait for the others, run trials until the study has its number."""
    with ExitStack() as stack:
        opened = open_study(study_of(job["name"], job["url"]), Workspace(Path(job["root"])), "0" * 64)
        tracking = stack.enter_context(tracked(opened, job["mlflow"])) if job["mlflow"] else None
        begin.wait()
        begin.wait()
        told.send(run(opened, job, tracking))


def tracked(opened: OpenStudy, uri: str) -> Any:
    """The study's run in MLflow."""
    from xray_opt.mlflow_client import connect
    from xray_opt.tracking import Tracking

    connection = connect(TrackingConfig(uri=uri), opened.workspace)
    return Tracking.open(connection, opened.config.name, {}, shared=lambda: True)


def run(opened: OpenStudy, job: dict[str, Any], tracking: Any) -> list[Span]:
    """When each trial of this worker began and ended (``time.monotonic``)."""
    spans: list[Span] = []

    def objective(trial: TrialContext) -> Outcome:
        began = time.monotonic()
        with ExitStack() as stack:
            run = tracking and stack.enter_context(tracking.run(str(trial.number), trial.config, trial.params, {}))
            for epoch in range(1, REPORTS + 1):
                time.sleep(job["seconds"] / REPORTS)
                if run:
                    run.log_metrics({"val.f1": rising(trial.number, epoch)}, epoch)
                trial.report(epoch, rising(trial.number, epoch))
        spans.append((began, time.monotonic()))
        return Outcome(rising(trial.number, REPORTS))

    opened.tune(objective, job["total"])
    return spans


def main() -> None:
    """Fork the workers, start them together, tell what each of them did."""
    job: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    if is_proxy(job["url"]):
        import xray_opt.tuning.proxy  # noqa: F401
    fork = multiprocessing.get_context("fork")
    begin = fork.Barrier(job["count"] + 1, timeout=JOIN)
    pipes = [fork.Pipe(duplex=False) for _ in range(job["count"])]
    crew = [fork.Process(target=work, args=(job, begin, told), daemon=True) for _, told in pipes]
    for process, (_, told) in zip(crew, pipes, strict=True):
        process.start()
        told.close()
    begin.wait()
    print("READY", flush=True)
    sys.stdin.readline()
    begin.wait()
    print(json.dumps([heard.recv() for heard, _ in pipes]), flush=True)


if __name__ == "__main__":
    _ = measure.ROOT  # puts the checkout first on the path, before the imports above
    main()
