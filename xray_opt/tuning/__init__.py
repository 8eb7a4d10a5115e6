"""Optuna, and the only room that imports it: spaces, samplers, pruners, storage, counting, resuming.

Knows nothing of training and MLflow: the objective is handed in, and plain records are handed out.
"""

from xray_opt.tuning.copying import StudyCopy, copying
from xray_opt.tuning.leases import Lease
from xray_opt.tuning.library import (
    amend,
    annotate,
    delete_study,
    importances,
    list_studies,
    read_study,
    require_idle,
    study_notes,
)
from xray_opt.tuning.probing import StorageFacts, probe_storage
from xray_opt.tuning.records import (
    RESUMABLE,
    Crew,
    Outcome,
    StudyRecord,
    Tally,
    TrialContext,
    TrialRecord,
    checkpoint_name,
)
from xray_opt.tuning.rules import DATA, IDENTITY
from xray_opt.tuning.storage import storage_digest, storage_patience
from xray_opt.tuning.study import OpenStudy, existing_study, open_study
from xray_opt.tuning.urls import is_proxy, storage_url

__all__ = [
    "DATA",
    "IDENTITY",
    "RESUMABLE",
    "Crew",
    "Lease",
    "OpenStudy",
    "Outcome",
    "StorageFacts",
    "StudyCopy",
    "StudyRecord",
    "Tally",
    "TrialContext",
    "TrialRecord",
    "amend",
    "annotate",
    "checkpoint_name",
    "copying",
    "delete_study",
    "existing_study",
    "importances",
    "is_proxy",
    "list_studies",
    "open_study",
    "probe_storage",
    "read_study",
    "require_idle",
    "storage_digest",
    "storage_patience",
    "storage_url",
    "study_notes",
]
