"""When a study ends: how many trials are asked for, and when failed ones stop it.

Failures are counted over all calls and workers, and forgiven by whoever starts the study again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import optuna
from optuna.trial import FrozenTrial, TrialState

from xray_opt.errors import StudyError, TooManyFailures
from xray_opt.tuning.owners import is_dead, is_elsewhere
from xray_opt.tuning.reaping import is_retried
from xray_opt.tuning.records import OWNER, REASON, record_of

#: The first so many trials failing for one reason end the study: the next ones would fail too.
ALIKE = 3
#: Study user attribute: numbers of failed trials that do not count any more.
FORGIVEN = "forgiven_failures"


def counted(trials: Sequence[FrozenTrial]) -> int:
    """How many trials count for ``--trials``."""
    return sum(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in trials)


def begin(study: optuna.Study, total: int, say: Callable[[str], None]) -> frozenset[int]:
    """Begin a call for ``total`` trials; call under the study's lock.

    Whoever starts a study that its failures have stopped takes them for mended.

    Returns:
        Numbers of the trials that are over already.

    Raises:
        StudyError: others are at work on it up to another total.
    """
    trials = study.get_trials(deepcopy=False)
    for trial in rivals(trials, total, None):
        owner = trial.user_attrs[OWNER]
        if not is_elsewhere(owner) and not is_dead(owner):  # others are judged by signs of life, before the first trial
            raise another_total(study, trial, total)
    before = frozenset(trial.number for trial in trials if trial.state.is_finished())
    if counted(trials) < total and why_stop(trials, total, _forgiven(study), ()):
        forgiven = {trial.number for trial in failures(trials)}
        study.set_user_attr(FORGIVEN, sorted(forgiven))
        say(f"the {len(forgiven)} failed trials of before do not count any more: their cause is taken for mended")
    return before


def rivals(trials: Sequence[FrozenTrial], total: int, crew: str | None) -> list[FrozenTrial]:
    """The RUNNING trials of other calls than ``crew`` that are at work up to another total, dead or alive.

    Each call would end, rank and register at its own: the best of a few would be champion, the best of all a candidate.
    """
    held = [trial for trial in trials if trial.state == TrialState.RUNNING]
    owners = [(trial, trial.user_attrs.get(OWNER) or {}) for trial in held]
    return [trial for trial, one in owners if one.get("total", total) != total and one.get("crew") != crew]


def another_total(study: optuna.Study, rival: FrozenTrial, total: int) -> StudyError:
    """What whoever asks for ``total`` beside the worker of ``rival`` is told."""
    owner = rival.user_attrs[OWNER]
    return StudyError(
        f"others are at work on study {study.study_name} up to {owner['total']} trials, not {total} (trial "
        f"{rival.number}, process {owner['pid']} on host {owner['host']}): join them with --trials {owner['total']}, "
        "or run this when they have ended"
    )


def _forgiven(study: optuna.Study) -> list[int]:
    return list(study.user_attrs.get(FORGIVEN, ()))


def stop_if_hopeless(study: optuna.Study, trials: Sequence[FrozenTrial], total: int, before: Collection[int]) -> None:
    """End the search where ``why_stop`` says so.

    Raises:
        TooManyFailures: it does.
    """
    if why := why_stop(trials, total, _forgiven(study), before):
        raise TooManyFailures(
            f"study {study.study_name} stops: {why}; see xray-opt study show, mend the cause, run the command again"
        )


def why_stop(trials: Sequence[FrozenTrial], total: int, forgiven: Collection[int], before: Collection[int]) -> str:
    """Why a study of ``total`` trials must not go on; empty if it may.

    Lost and interrupted trials that are tried again are no failures.

    Args:
        forgiven: numbers of failed trials that do not count.
        before: numbers of trials that were over when this call began; three alike are looked for without them too.
    """
    over = [trial for trial in trials if trial.state.is_finished() and trial.number not in forgiven]
    over = [trial for trial in over if not is_retried(trial)]
    for since in (over, [trial for trial in over if trial.number not in before]):
        if _all_alike(since):
            return f"its first trials all failed alike: {_shown(since[-1])}"
    failed = failures(over)
    most = max(3, total // 4)
    if len(failed) >= most:
        return f"{len(failed)} trials failed, of {total} at most {most} may (the last: {_shown(failed[-1])})"
    return ""


def failures(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The failed ones among trials, those that are tried again left out."""
    return [trial for trial in trials if trial.state == TrialState.FAIL and not is_retried(trial)]


def _all_alike(over: Sequence[FrozenTrial]) -> bool:
    reasons = {(trial.state, trial.user_attrs.get(REASON)) for trial in over}
    return len(over) >= ALIKE and len(reasons) == 1 and over[0].state == TrialState.FAIL


def _shown(trial: FrozenTrial) -> str:
    record = record_of(trial)
    return f"{record.reason} ({record.message})"
