"""Runs in MLflow: one experiment a study, its parent run, a child run a trial, the five best as LoggedModels.

States agree with the trials': finished → FINISHED, pruned → KILLED (tag ``pruned_epoch``), failed → FAILED (tag
``reason``: nan, oom, interrupted, worker-lost, error).
"""

# The client's module comes first: it settles how MLflow behaves before anything else imports it.
from xray_opt.mlflow_client import Connection
from xray_opt.tracking.cleanup import delete_run, orphan_runs, study_runs, trial_runs, unreferenced_artifacts
from xray_opt.tracking.ranking import RankedTrial
from xray_opt.tracking.run import Run, close_lost, log_run_metrics, tag_run
from xray_opt.tracking.study import Tracking

__all__ = [
    "Connection",
    "RankedTrial",
    "Run",
    "Tracking",
    "close_lost",
    "delete_run",
    "log_run_metrics",
    "orphan_runs",
    "study_runs",
    "tag_run",
    "trial_runs",
    "unreferenced_artifacts",
]
