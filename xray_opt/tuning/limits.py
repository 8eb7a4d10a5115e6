"""When failed trials stop a study: counted over all its calls and workers, and forgiven by whoever starts it again."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from optuna.trial import FrozenTrial, TrialState

from xray_opt.tuning.reaping import is_retried
from xray_opt.tuning.records import REASON, record_of

#: The first so many trials failing for one reason end the study: the next ones would fail too.
ALIKE = 3
#: Study user attribute: numbers of failed trials that do not count any more.
FORGIVEN = "forgiven_failures"


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
