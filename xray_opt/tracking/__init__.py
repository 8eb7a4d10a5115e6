"""Runs in MLflow: one experiment a study, its parent run, a child run a trial, the five best as LoggedModels.

States agree with the trials': finished → FINISHED, pruned → KILLED (tag ``pruned_epoch``), failed → FAILED (tag
``reason``: nan, oom, interrupted, worker-lost, error). Writes go to the server while it answers, and wait in the spool
of the workspace while it does not.
"""

# The client's module comes first: it settles how MLflow behaves before anything else imports it.
from xray_opt.mlflow_client import Connection
from xray_opt.tracking.agreement import STORAGE, TrialEnd, agree, child_runs
from xray_opt.tracking.artifact_copying import artifact_names
from xray_opt.tracking.cleanup import delete_run, orphan_runs, study_runs, unreferenced_artifacts
from xray_opt.tracking.copying import Route, copies_of, copy_run, metric_points, runs_of, runs_of_study
from xray_opt.tracking.data import MANIFEST, data_tags, films_file, study_manifest
from xray_opt.tracking.ending import close_lost
from xray_opt.tracking.environment import environment_tags, machine_tags
from xray_opt.tracking.experiments import STUDY_ID
from xray_opt.tracking.looks import MOST_FILMS, noted_test_films, run_looks, tag_look
from xray_opt.tracking.model_copying import copies_of_models, copy_model, models_of_runs
from xray_opt.tracking.outgoing import outgoing_name
from xray_opt.tracking.pages import moved_page_tags, page_tags, run_page
from xray_opt.tracking.probing import ServerFacts, probe_server, round_trip
from xray_opt.tracking.ranking import RankedTrial
from xray_opt.tracking.reading import (
    RunFacts,
    Seat,
    child_tags,
    film_seats,
    noted_run,
    prediction_rows,
    run_facts,
    run_file,
)
from xray_opt.tracking.run import (
    PREDICTIONS,
    TEST_PREDICTIONS,
    Run,
    log_run_file,
    log_run_json,
    log_run_metrics,
    log_run_predictions,
    tag_opening,
    tag_run,
)
from xray_opt.tracking.sending import WAITING
from xray_opt.tracking.store import require_same_store, run_exists, store_note
from xray_opt.tracking.study import Tracking
from xray_opt.tracking.unloading import LeftBehind, is_told, send_left_behind, untold

__all__ = [
    "MANIFEST",
    "MOST_FILMS",
    "PREDICTIONS",
    "STORAGE",
    "STUDY_ID",
    "TEST_PREDICTIONS",
    "WAITING",
    "Connection",
    "LeftBehind",
    "RankedTrial",
    "Route",
    "Run",
    "RunFacts",
    "Seat",
    "ServerFacts",
    "Tracking",
    "TrialEnd",
    "agree",
    "artifact_names",
    "child_runs",
    "child_tags",
    "close_lost",
    "copies_of",
    "copies_of_models",
    "copy_model",
    "copy_run",
    "data_tags",
    "delete_run",
    "environment_tags",
    "film_seats",
    "films_file",
    "is_told",
    "log_run_file",
    "log_run_json",
    "log_run_metrics",
    "log_run_predictions",
    "machine_tags",
    "metric_points",
    "models_of_runs",
    "moved_page_tags",
    "noted_run",
    "noted_test_films",
    "orphan_runs",
    "outgoing_name",
    "page_tags",
    "prediction_rows",
    "probe_server",
    "require_same_store",
    "round_trip",
    "run_exists",
    "run_facts",
    "run_file",
    "run_looks",
    "run_page",
    "runs_of",
    "runs_of_study",
    "send_left_behind",
    "store_note",
    "study_manifest",
    "study_runs",
    "tag_look",
    "tag_opening",
    "tag_run",
    "unreferenced_artifacts",
    "untold",
]
