"""What can be asked of the studies of a storage without working on them.

``storage`` is a URL as in a study file's ``storage:``; none means ``XRAY_OPT_STORAGE``, else the embedded one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from xray_opt.config import FIRST, OBJECTIVES, Workspace
from xray_opt.errors import StudyError
from xray_opt.tuning.locks import study_lock
from xray_opt.tuning.owners import is_dead
from xray_opt.tuning.reaping import running
from xray_opt.tuning.records import OWNER, StudyRecord, study_record
from xray_opt.tuning.storage import database_of, open_storage, reachable
from xray_opt.tuning.urls import masked, storage_url

#: Importances of fewer complete trials say nothing.
LEAST_FOR_IMPORTANCE = 4


def list_studies(workspace: Workspace, storage: str | None = None) -> list[StudyRecord]:
    """All studies, by name."""
    url = storage_url(workspace, storage)
    opened = open_storage(url)
    records = []
    with reachable(url):
        for name in sorted(optuna.get_all_study_names(opened)):
            with suppress(KeyError):  # deleted meanwhile
                records.append(study_record(optuna.load_study(study_name=name, storage=opened)))
    return records


def read_study(name: str, workspace: Workspace, storage: str | None = None) -> StudyRecord:
    """One study.

    Raises:
        StudyError: there is none of that name; the line lists those there are.
    """
    with _existing(name, workspace, storage) as study:
        return study_record(study)


def study_notes(name: str, workspace: Workspace, storage: str | None = None) -> dict[str, Any]:
    """What was noted on one study; empty where there is none of that name."""
    url = storage_url(workspace, storage)
    opened = open_storage(url)
    with reachable(url), suppress(KeyError):
        return dict(optuna.load_study(study_name=name, storage=opened).user_attrs)
    return {}


def delete_study(name: str, workspace: Workspace, storage: str | None = None, force: bool = False) -> None:
    """Delete a study with its trials; a worker that waits for it, or (``force``) runs a trial of it, stops with a line.

    Raises:
        StudyError: there is none of that name, or (without ``force``) a worker may be running a trial of it.
    """
    with _existing(name, workspace, storage) as study, study_lock(database_of(study), name, hold=None):
        if not force:
            _require_idle(study)
        optuna.delete_study(study_name=name, storage=study._storage)


def require_idle(name: str, workspace: Workspace, storage: str | None = None) -> None:
    """Make sure that nobody runs a trial of a study, as far as can be known from here.

    Raises:
        StudyError: there is none of that name, or a worker may be running a trial of it; the line says where.
    """
    with _existing(name, workspace, storage) as study:
        _require_idle(study)


def _require_idle(study: optuna.Study) -> None:
    for trial in running(study):
        owner = trial.user_attrs.get(OWNER)
        if owner is not None and not is_dead(owner):
            raise StudyError(
                f"study {study.study_name} is at work: trial {trial.number} runs in process {owner['pid']} on host "
                f"{owner['host']}; stop that worker first, or force it if you know that it is gone"
            )


def annotate(name: str, workspace: Workspace, key: str, value: Any, storage: str | None = None) -> None:
    """Note ``value`` (JSON-ready) on a study."""
    with _existing(name, workspace, storage) as study:
        study.set_user_attr(key, value)


def amend(
    name: str, workspace: Workspace, key: str, change: Callable[[Any], Any], storage: str | None = None
) -> dict[str, Any]:
    """Put what ``change`` makes of a note (none where there is none) in its place, under the study's lock.

    Returns:
        The study's notes as they are now.
    """
    with _existing(name, workspace, storage) as study, study_lock(database_of(study), name):
        study.set_user_attr(key, change(study.user_attrs.get(key)))
        return dict(study.user_attrs)


def importances(
    name: str, workspace: Workspace, storage: str | None = None, objective: str = FIRST
) -> dict[str, float]:
    """Param → share of its importance for an objective of the study, largest first; empty where too few trials.

    PED-ANOVA (Watanabe et al. 2023); a setting that only some trials have counts by how many of the best have it.
    """
    with _existing(name, workspace, storage) as study:
        complete = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
        if len(complete) < LEAST_FOR_IMPORTANCE or not any(trial.params for trial in complete):
            return {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            evaluator = optuna.importance.PedAnovaImportanceEvaluator()
            target = _target(study_record(study).objectives, objective)
            return dict(optuna.importance.get_param_importances(study, evaluator=evaluator, target=target))


def _target(objectives: tuple[str, ...], objective: str) -> Callable[[FrozenTrial], float] | None:
    """What the evaluator takes for the lower the better; none where the study has one objective."""
    if len(objectives) == 1:
        return None
    place, sign = objectives.index(objective), 1 if OBJECTIVES[objective] == "minimize" else -1
    return lambda trial: sign * trial.values[place]


@contextmanager
def _existing(name: str, workspace: Workspace, storage: str | None) -> Iterator[optuna.Study]:
    url = storage_url(workspace, storage)
    opened = open_storage(url)
    with reachable(url):
        try:
            yield optuna.load_study(study_name=name, storage=opened)
        except KeyError as error:
            names = ", ".join(sorted(optuna.get_all_study_names(opened))) or "none yet"
            raise StudyError(f"no study {name!r} in {masked(url)}; there are: {names}") from error
