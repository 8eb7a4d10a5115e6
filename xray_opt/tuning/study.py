"""A study that is open for work: made or continued under its rules, then brought to a number of trials."""

from __future__ import annotations

import uuid
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import optuna

from xray_opt import __version__
from xray_opt.config import OBJECTIVES, StudyConfig, Workspace
from xray_opt.errors import StudyError
from xray_opt.tuning.leases import Lease
from xray_opt.tuning.locks import study_lock
from xray_opt.tuning.owners import is_dead
from xray_opt.tuning.pages import trial_page
from xray_opt.tuning.pruners import pruner_for
from xray_opt.tuning.reaper import reaping
from xray_opt.tuning.reaping import running
from xray_opt.tuning.records import (
    KNOWN_GOOD,
    OWNER,
    Crew,
    Objective,
    StudyRecord,
    Tally,
    TrialRecord,
    study_record,
)
from xray_opt.tuning.rules import DATA, IDENTITY, MIGRATING, RULES, SEARCH, check_rules, deleted
from xray_opt.tuning.search import Search
from xray_opt.tuning.storage import LAST_PATIENCE, PATIENCE, Patience, open_storage, reachable
from xray_opt.tuning.urls import masked, storage_url

T = TypeVar("T")
Say = Callable[[str], None]


class OpenStudy:
    """One study of a storage, checked against today's rules.

    Work goes on while the storage restarts: every method waits for it for a minute, and raises StudyError then.
    """

    def __init__(self, config: StudyConfig, workspace: Workspace, study: optuna.Study, url: str, say: Say) -> None:
        self.config = config
        self.workspace = workspace
        self._study = study
        self._url = url
        self._patient = Patience(url, say, PATIENCE)
        self._identity = study.user_attrs.get(IDENTITY)

    @property
    def notes(self) -> dict[str, Any]:
        """What was noted on the study."""
        return self._ask(lambda: dict(self._study.user_attrs))

    def annotate(self, key: str, value: Any) -> None:
        """Note ``value`` (JSON-ready) on the study; writes only what is new."""

        def write() -> None:
            if self._study.user_attrs.get(key) != value:
                self._study.set_user_attr(key, value)

        self._ask(write)

    def trial_page(self, number: int) -> str:
        """URL of a trial's page in optuna-dashboard."""
        return trial_page(self._study._study_id, number)

    def read(self) -> StudyRecord:
        """The study as it stands."""
        return self._ask(lambda: study_record(self._study))

    def is_at_work(self, hurried: bool = False, crew: Crew | None = None) -> bool:
        """Whether a worker, of this process or another one, runs a trial of the study, as far as can be known.

        Args:
            hurried: this process is told to end: a storage that is away is not waited for.
            crew: only workers of this call are meant.
        """
        owners = [trial.user_attrs.get(OWNER) for trial in self._ask(partial(running, self._study), hurried)]
        return any(not is_dead(each) and (crew is None or (each or {}).get("crew") == crew.name) for each in owners)

    def _ask(self, action: Callable[[], T], hurried: bool = False) -> T:
        try:
            return replace(self._patient, seconds=LAST_PATIENCE)(action) if hurried else self._patient(action)
        except KeyError as error:
            raise deleted(self.config.name) from error

    def tune(
        self,
        objective: Objective,
        total: int,
        timeout: float | None = None,
        lost: Callable[[TrialRecord], None] = lambda record: None,
        ended: Callable[[TrialRecord, Mapping[int, Path]], None] = lambda record, checkpoints: None,
        say: Callable[[str], None] = lambda line: None,
        lease: Lease = Lease(),
        crew: Crew | None = None,
    ) -> Tally:
        """Run trials until ``total`` are COMPLETE or PRUNED, over all workers and calls.

        Failed trials come on top. The study stops as soon as max(3, total / 4) trials have failed, over all workers
        and calls, or the first three (of the study, or since this call) failed alike. Lost and interrupted trials that
        are tried again do not count. A call that finds the study stopped in that way takes the cause for mended: the
        failures until then do not count any more.

        Args:
            timeout: seconds after which no new trial starts.
            lost: told once of each trial of a dead worker after it was ended as FAIL, and of each interrupted one
                after it was queued again, outside of the study's lock; a worker that is killed in between tells nobody.
            ended: told of each trial that this call ran, with the paths of its checkpoint and of those that it resumed,
                by the numbers of their trials.
            say: one line on what is unusual.
            lease: how often a running trial gives a sign of life, and how long one without is waited for.
            crew: the call that this worker is part of, if :meth:`begin` has begun it; none begins one.

        Raises:
            StudyError: too many trials failed, the first three failed alike, the storage is away, or the study is
                deleted.
            XrayError: what would stop every trial.
            KeyboardInterrupt: after the running trial was marked; a later call resumes it.
        """
        with reachable(self._url):
            return self._search(lost, ended, say, lease, crew).run(objective, total, timeout)

    def begin(self, total: int, say: Callable[[str], None] = lambda line: None) -> Crew:
        """Begin a call that several workers carry out: each of them gets what this returns as its ``crew``.

        Raises:
            StudyError: the storage is away, or the study is deleted.
        """
        with reachable(self._url):
            return self._search(lambda record: None, lambda record, checkpoints: None, say, Lease(), None).begin(total)

    def reaping(
        self, lost: Callable[[TrialRecord], None], say: Callable[[str], None], lease: Lease = Lease()
    ) -> AbstractContextManager[None]:
        """Look for dead workers inside the block, in a thread: those of this call may be in their trials for hours.

        Args:
            lost: see :meth:`tune`.
        """
        return reaping(self._study, self._identity, lease, lost, say)

    def _search(
        self,
        lost: Callable[[TrialRecord], None],
        ended: Callable[[TrialRecord, Mapping[int, Path]], None],
        say: Callable[[str], None],
        lease: Lease,
        crew: Crew | None,
    ) -> Search:
        folder = self.workspace.study_folder(self.config.name) / "checkpoints"
        return Search(self._study, self._identity, self.config, folder, lost, ended, say, lease, crew)


def open_study(config: StudyConfig, workspace: Workspace, data_sha256: str, say: Say = lambda line: None) -> OpenStudy:
    """Create or continue the study of ``config``; its known-good settings are queued once.

    Args:
        say: told once when the storage is away and waited for, later; here it must answer.

    Raises:
        StudyError: its rules or its data differ from what it was made with, or the storage is away.
    """
    url = storage_url(workspace, config.storage)
    storage = open_storage(url)
    with reachable(url), study_lock(storage, config.name, say):
        study = optuna.create_study(
            study_name=config.name,
            storage=storage,
            directions=[OBJECTIVES[name] for name in config.objectives],
            pruner=pruner_for(config.pruner, config.config.training.epochs),
            load_if_exists=True,
        )
        attrs = study.user_attrs
        if attrs.get(MIGRATING):
            raise StudyError(f"study {config.name} is only half here: run xray-opt migrate again, then this command")
        if DATA in attrs:
            check_rules(attrs, config, data_sha256)
        elif len(study.directions) != len(config.objectives):
            raise StudyError(f"study {config.name} was begun with other objectives: start another with --name")
        else:
            # The data hash goes last: a study without it was killed here, holds no trial, and is set up again.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                study.set_metric_names(list(config.objectives))
            study.set_user_attr(RULES, config.rules())
            study.set_user_attr("xray_opt_version", __version__)
            study.set_user_attr(IDENTITY, uuid.uuid4().hex)
            study.set_user_attr(DATA, data_sha256)
        if attrs.get(SEARCH) != (search := config.search()):  # the latest one; a report makes a study file of it
            study.set_user_attr(SEARCH, search)
        _enqueue_known_good(study, config)
        return OpenStudy(config, workspace, study, url, say)


def existing_study(config: StudyConfig, workspace: Workspace) -> OpenStudy:
    """A study as it is, not held against any rules: for reading it and noting things, not for running trials.

    Raises:
        StudyError: there is none of that name, or the storage is away.
    """
    url = storage_url(workspace, config.storage)
    storage = open_storage(url)
    with reachable(url):
        try:
            study = optuna.load_study(study_name=config.name, storage=storage)
            return OpenStudy(config, workspace, study, url, lambda line: None)
        except KeyError as error:
            raise StudyError(f"no study {config.name!r} in {masked(url)}") from error


def _enqueue_known_good(study: optuna.Study, config: StudyConfig) -> None:
    queued = {trial.user_attrs.get(KNOWN_GOOD) for trial in study.get_trials(deepcopy=False)}
    for index, params in enumerate(config.enqueue):
        if index not in queued:
            study.enqueue_trial(params, user_attrs={KNOWN_GOOD: index})
