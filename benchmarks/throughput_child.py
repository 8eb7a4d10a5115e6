"""One worker of ``throughput.py``: the study's real loop, an objective that sleeps; run by it, not by hand.

It says READY when its imports are done and waits for a line on its standard input, so that all workers start at once.
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import measure
from fake_objective import SPACE, STARTUP, rising

from xray_opt.config import Config, SamplerConfig, StudyConfig, TrackingConfig, Workspace, override
from xray_opt.tuning import Outcome, TrialContext, open_study

#: Values that a trial reports.
REPORTS = 3


def study_of(name: str, url: str) -> StudyConfig:
    """The study, median pruner and TPE as in the product; every trial beats the ones before, so none is pruned."""
    config = override(Config(), {"training.epochs": REPORTS})
    return StudyConfig(name, config, SPACE, sampler=SamplerConfig("tpe", startup_trials=STARTUP), storage=url)


def main() -> None:
    """Work until the study has its number; then tell when each trial began and ended (``time.monotonic``)."""
    job: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    workspace, spans = Workspace(Path(job["root"])), []
    with ExitStack() as stack:
        tracking = None
        if job["mlflow"]:
            from xray_opt.mlflow_client import connect
            from xray_opt.tracking import Tracking

            connection = connect(TrackingConfig(uri=job["mlflow"]), workspace)
            tracking = stack.enter_context(Tracking.open(connection, job["name"], {}, shared=lambda: True))

        def objective(trial: TrialContext) -> Outcome:
            began = time.monotonic()
            with ExitStack() as inner:
                run = tracking and inner.enter_context(tracking.run(str(trial.number), trial.config, trial.params, {}))
                for epoch in range(1, REPORTS + 1):
                    time.sleep(job["seconds"] / REPORTS)
                    if run:
                        run.log_metrics({"val.f1": rising(trial.number, epoch)}, epoch)
                    trial.report(epoch, rising(trial.number, epoch))
            spans.append((began, time.monotonic()))
            return Outcome(rising(trial.number, REPORTS))

        print("READY", flush=True)
        sys.stdin.readline()
        open_study(study_of(job["name"], job["url"]), workspace, "0" * 64).tune(objective, job["total"])
    print(json.dumps(spans), flush=True)


if __name__ == "__main__":
    _ = measure.ROOT  # puts the checkout first on the path, before the imports above
    main()
