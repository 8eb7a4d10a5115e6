"""Runs in MLflow: one experiment a study, its parent run, a child run a trial, the five best as LoggedModels.

States agree with the trials': finished → FINISHED, pruned → KILLED (tag ``pruned_epoch``), failed → FAILED (tag
``reason``: nan, oom, interrupted, worker-lost, error).
"""

# The client's module comes first: it settles how MLflow behaves before anything else imports it.
from xray_opt.mlflow_client import Connection
from xray_opt.tracking.agreement import STORAGE, STUDY_ID, TrialEnd, agree, child_runs
from xray_opt.tracking.cleanup import delete_run, orphan_runs, study_runs, unreferenced_artifacts
from xray_opt.tracking.data import MANIFEST, data_tags, study_manifest
from xray_opt.tracking.ranking import RankedTrial
from xray_opt.tracking.run import Run, close_lost, log_run_file, log_run_metrics, tag_run
from xray_opt.tracking.store import require_same_store, run_exists, store_note
from xray_opt.tracking.study import Tracking

__all__ = [
    "MANIFEST",
    "STORAGE",
    "STUDY_ID",
    "Connection",
    "RankedTrial",
    "Run",
    "Tracking",
    "TrialEnd",
    "agree",
    "child_runs",
    "close_lost",
    "data_tags",
    "delete_run",
    "log_run_file",
    "log_run_metrics",
    "orphan_runs",
    "require_same_store",
    "run_exists",
    "store_note",
    "study_manifest",
    "study_runs",
    "tag_run",
    "unreferenced_artifacts",
]
