"""Copies a study from one storage to another, trial by trial, so that a search goes on there as if it had begun there.

A study that is half copied carries a mark, and nobody can tune it until the rest has come. Trials are copied in order,
each in one transaction with everything it has, so what is there is a beginning of the source's.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from xray_opt.errors import StudyError
from xray_opt.tuning.locks import Storage, study_lock
from xray_opt.tuning.pages import PAGE, trial_page
from xray_opt.tuning.rules import DATA, IDENTITY, MIGRATING
from xray_opt.tuning.storage import open_storage, reachable, storage_digest
from xray_opt.tuning.urls import masked

#: User attribute of a trial: the id of its MLflow run.
RUN = "mlflow_run"


class StudyCopy:
    """One study on its way from a storage to another.

    Attributes:
        name: of the study, in both.
        done: whether all of it is there, copied before or because it came from there; nothing is written any more.
    """

    def __init__(self, name: str, source: Storage, target: Storage) -> None:
        self.name = name
        self._source, self._target = source, target
        self._from = _study_id(source, name)
        self._to = _study_id(target, name)
        self.done = not target.get_study_user_attrs(self._to).get(MIGRATING)

    @property
    def notes(self) -> dict[str, Any]:
        """What was noted on the source's study."""
        return dict(self._source.get_study_user_attrs(self._from))

    def page(self, number: int) -> str:
        """URL of a trial of the copy in optuna-dashboard."""
        return trial_page(self._to, number)

    def finish(self, notes: Mapping[str, Any], runs: Mapping[str, str], pages: Mapping[str, str]) -> None:
        """Copy the trials that are missing, then what was noted on the study, and take the mark off.

        Args:
            notes: what is noted on the copy in place of the source's words.
            runs: id of each MLflow run of the source → its copy's.
            pages: id of each of these copies → its page.

        Raises:
            StudyError: the source was worked on meanwhile.
        """
        if self.done:
            return
        with study_lock(self._target, self.name, hold=None):  # all trials are copied
            trials = _trials(self._source, self._from)
            _require_over(self.name, trials)
            _require_beginning(self.name, trials, _trials(self._target, self._to))
            for trial in trials[len(_trials(self._target, self._to)) :]:
                self._target.create_new_trial(self._to, _rewritten(trial, runs, pages))
            self._copy_words(trials, pages)
            for key, value in (_moved(self.notes, runs) | dict(notes)).items():
                if key != MIGRATING:
                    self._target.set_study_user_attr(self._to, key, value)
            self._target.set_study_user_attr(self._to, MIGRATING, "")
            self.done = True

    def _copy_words(self, trials: Sequence[FrozenTrial], pages: Mapping[str, str]) -> None:
        """The study's system attributes; the dashboard's notes of trials stand among them, under the trials' ids."""
        copies = _trials(self._target, self._to)
        ids = {str(old._trial_id): str(new._trial_id) for old, new in zip(trials, copies, strict=True)}
        links = [(a.user_attrs.get(PAGE), b.user_attrs.get(PAGE)) for a, b in zip(trials, copies, strict=True)]
        for key, value in self._source.get_study_system_attrs(self._from).items():
            match = re.fullmatch(r"dashboard:(\d+):(.*)", key)
            if match and match[1] not in ids:
                continue
            for old, new in links if match and isinstance(value, str) else ():
                value = value.replace(f"({old})", f"({new})")
            name = f"dashboard:{ids[match[1]]}:{match[2]}" if match else key
            self._target.set_study_system_attr(self._to, name, value)

    def counts(self) -> dict[str, tuple[int, int]]:
        """What → how many of it the source has, and how many of these the copy has, each compared with all it holds."""
        old, new = _trials(self._source, self._from), _trials(self._target, self._to)
        same = [a for a, b in zip(old, new, strict=False) if _is_copy(a, b)]
        return {
            "trials": (len(old), len(same)),
            "reported values": tuple(sum(len(t.intermediate_values) for t in part) for part in (old, same)),  # type: ignore[dict-item]
        }


@contextmanager
def copying(name: str, source_url: str, target_url: str) -> Iterator[StudyCopy]:
    """A study's copy, begun or taken up again; the study in the target is made and marked where it is missing.

    Raises:
        StudyError: both are one storage, the source has no such study or one with RUNNING trials, or the target has
            another study of that name.
    """
    if storage_digest(source_url) == storage_digest(target_url):
        raise StudyError(f"cannot copy study {name} from {masked(source_url)} to itself; name two storages")
    source, target = open_storage(source_url), open_storage(target_url)
    with reachable(source_url), reachable(target_url):
        try:
            study_id = _study_id(source, name)
        except KeyError as error:
            raise StudyError(f"no study {name!r} in {masked(source_url)}") from error
        _require_over(name, _trials(source, study_id))
        attrs = source.get_study_user_attrs(study_id)
        if not {IDENTITY, DATA} <= attrs.keys() or attrs.get(MIGRATING):
            raise StudyError(f"study {name} in {masked(source_url)} is not whole: xray-opt tune never set it up")
        with study_lock(target, name):
            _begin(name, str(attrs[IDENTITY]), source.get_study_directions(study_id), target, target_url)
        copied = StudyCopy(name, source, target)
        trials, copies = _trials(source, study_id), _trials(target, copied._to)
        _require_beginning(name, trials, copies)
        if copied.done and len(trials) > len(copies):
            raise StudyError(
                f"study {name} went on in {masked(source_url)} after it was copied ({len(trials)} trials, the copy has "
                f"{len(copies)}): nothing was changed; go on in one of them, or delete the copy and migrate again"
            )
        yield copied


def _begin(
    name: str, identity: str, directions: Sequence[optuna.study.StudyDirection], target: BaseStorage, url: str
) -> None:
    """Make and mark the target's study, or make sure that it is a copy of the source's."""
    try:
        study_id = target.create_new_study(list(directions), name)
    except optuna.exceptions.DuplicatedStudyError:
        study_id = _study_id(target, name)
    attrs = target.get_study_user_attrs(study_id)
    if not attrs and not _trials(target, study_id):
        target.set_study_user_attr(study_id, MIGRATING, identity)
    elif identity not in (attrs.get(IDENTITY), attrs.get(MIGRATING)):
        raise StudyError(
            f"{masked(url)} has another study named {name}: nothing was changed; delete or keep that one, and tune the "
            "source's under another --name"
        )


def _require_over(name: str, trials: Sequence[FrozenTrial]) -> None:
    running = [trial.number for trial in trials if trial.state == TrialState.RUNNING]
    if running:
        raise StudyError(
            f"trial {running[0]} of study {name} is RUNNING: stop its worker (where it died, one more xray-opt tune at "
            "the source ends the trial), then migrate again; nothing is lost"
        )


def _require_beginning(name: str, trials: Sequence[FrozenTrial], copies: Sequence[FrozenTrial]) -> None:
    """Make sure that the copies are what the source's first trials are; a copied study may have gone on since."""
    for trial, other in zip(trials, copies, strict=False):
        if not _is_copy(trial, other):
            raise StudyError(
                f"trial {trial.number} of study {name} is not the same in both storages: the study was worked on in "
                "both, or at the source after it was copied; nothing was changed; go on in one of them"
            )


def _is_copy(trial: FrozenTrial, other: FrozenTrial) -> bool:
    """Whether ``other`` is a copy; of a trial that waited at the source, also one that was run since."""
    if trial.state == TrialState.WAITING:
        words, asked = trial.user_attrs.items(), "fixed_params"
        return words <= other.user_attrs.items() and trial.system_attrs.get(asked) == other.system_attrs.get(asked)
    return _facts(trial) == _facts(other)


def _facts(trial: FrozenTrial) -> str:
    """Everything that a copy shares with its original, as text: a NaN is equal to itself there."""
    own = {key: value for key, value in trial.user_attrs.items() if key not in (RUN, PAGE)}
    tables = (trial.params, trial.distributions, trial.intermediate_values, own, trial.system_attrs)
    times = (trial.datetime_start, trial.datetime_complete)
    return repr((trial.number, trial.state, trial.values, times, [sorted(table.items()) for table in tables]))


def _rewritten(trial: FrozenTrial, runs: Mapping[str, str], pages: Mapping[str, str]) -> FrozenTrial:
    """The trial with the copy of its run in place of its run."""
    changed = copy.copy(trial)
    run = runs.get(str(trial.user_attrs.get(RUN)))
    changed.user_attrs = trial.user_attrs | ({RUN: run, PAGE: pages[run]} if run else {})
    return changed


def _moved(notes: Mapping[str, Any], runs: Mapping[str, str]) -> dict[str, Any]:
    """The notes with the copies' ids wherever they name a run."""
    text = re.sub(r"\b[0-9a-f]{32}\b", lambda match: runs.get(match[0], match[0]), json.dumps(dict(notes)))
    return dict(json.loads(text))


def _trials(storage: BaseStorage, study_id: int) -> list[FrozenTrial]:
    return sorted(storage.get_all_trials(study_id, deepcopy=False), key=lambda trial: trial.number)


def _study_id(storage: BaseStorage, name: str) -> int:
    return storage.get_study_id_from_name(name)
