"""What can be asked of the studies of a storage without working on them.

``storage`` is a URL as in a study file's ``storage:``; none means ``XRAY_OPT_STORAGE``, else the embedded one.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import optuna

from xray_opt.config import Workspace
from xray_opt.errors import StudyError
from xray_opt.tuning.records import StudyRecord, study_record
from xray_opt.tuning.storage import masked, open_storage, reachable, storage_url

#: Importances of fewer complete trials say nothing.
LEAST_FOR_IMPORTANCE = 4


def list_studies(workspace: Workspace, storage: str | None = None) -> list[StudyRecord]:
    """All studies, by name."""
    url = storage_url(workspace, storage)
    opened = open_storage(url)
    with reachable(url):
        names = sorted(optuna.get_all_study_names(opened))
        return [study_record(optuna.load_study(study_name=name, storage=opened)) for name in names]


def read_study(name: str, workspace: Workspace, storage: str | None = None) -> StudyRecord:
    """One study.

    Raises:
        StudyError: there is none of that name; the line lists those there are.
    """
    with _existing(name, workspace, storage) as study:
        return study_record(study)


def delete_study(name: str, workspace: Workspace, storage: str | None = None) -> None:
    """Delete a study with its trials."""
    with _existing(name, workspace, storage) as study:
        optuna.delete_study(study_name=name, storage=study._storage)


def annotate(name: str, workspace: Workspace, key: str, value: Any, storage: str | None = None) -> None:
    """Note ``value`` (JSON-ready) on a study."""
    with _existing(name, workspace, storage) as study:
        study.set_user_attr(key, value)


def importances(name: str, workspace: Workspace, storage: str | None = None) -> dict[str, float]:
    """Param → share of its importance (PED-ANOVA, Watanabe et al. 2023), largest first; empty where too few trials."""
    with _existing(name, workspace, storage) as study:
        complete = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
        if len(complete) < LEAST_FOR_IMPORTANCE or not any(trial.params for trial in complete):
            return {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            evaluator = optuna.importance.PedAnovaImportanceEvaluator()
            return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))


@contextmanager
def _existing(name: str, workspace: Workspace, storage: str | None) -> Iterator[optuna.Study]:
    url = storage_url(workspace, storage)
    opened = open_storage(url)
    with reachable(url):
        try:
            study = optuna.load_study(study_name=name, storage=opened)
        except KeyError as error:
            names = ", ".join(sorted(optuna.get_all_study_names(opened))) or "none yet"
            raise StudyError(f"no study {name!r} in {masked(url)}; there are: {names}") from error
        yield study
