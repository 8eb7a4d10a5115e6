"""Brings run states to those of their trials: a kill between two steps, or a store that was away, tears them apart.

The trial decides: finished → FINISHED, pruned → KILLED, failed → FAILED. Params and metrics are left as they are, and
so is the run of a trial that is not over.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from mlflow.entities import Run, ViewType

from xray_opt.mlflow_client import Connection, pages, speaking
from xray_opt.tracking.ending import Ending, close
from xray_opt.tracking.sending import PARENT

#: Tag of a trial's run: its number.
TRIAL = "xray_opt.trial"
#: Tag of all runs of a study: the digest of the storage that holds it.
STORAGE = "xray_opt.storage"
#: Tags that tell how a run ended.
TOLD = ("reason", "error", "pruned_epoch")


@dataclass(frozen=True)
class TrialEnd:
    """How a trial stands: ``state`` as Optuna names it, the reason of a failure, the last epoch it reported."""

    number: int
    state: str
    reason: str | None = None
    last_epoch: int = 0

    @property
    def ending(self) -> Ending | None:
        """The ending its run must have; none while the trial is not over."""
        endings = {
            "COMPLETE": Ending("FINISHED", {}),
            "PRUNED": Ending("KILLED", {"pruned_epoch": str(self.last_epoch)}),
            "FAIL": Ending("FAILED", {"reason": self.reason or "error"}),
        }
        return endings.get(self.state)


def agree(connection: Connection, parent_id: str, trials: Iterable[TrialEnd]) -> dict[str, int]:
    """Repair the states of a study's runs; ``trials`` must have been read before.

    Returns:
        State → how many runs were brought to it.
    """
    endings = {str(trial.number): trial.ending for trial in trials}
    repaired: Counter[str] = Counter()
    for run in child_runs(connection, parent_id):
        end = endings.get(run.data.tags.get(TRIAL, ""))
        if end is not None and run.info.status != end.status:
            _repair(connection, run, end)
            repaired[end.status] += 1
    return dict(repaired)


def child_runs(connection: Connection, parent_id: str, trial: int | None = None) -> list[Run]:
    """Runs below a study's run: all, or those of one trial (one, or none if its worker died before it made any)."""
    client = connection.client
    condition = f"tags.`{PARENT}` = '{parent_id}'"
    if trial is not None:
        condition += f" and tags.`{TRIAL}` = '{trial}'"
    with speaking(connection.uri, f"list the runs of the study's run {parent_id}"):
        experiment = [client.get_run(parent_id).info.experiment_id]
        return list(
            pages(lambda token: client.search_runs(experiment, condition, ViewType.ACTIVE_ONLY, 1000, page_token=token))
        )


def _repair(connection: Connection, run: Run, end: Ending) -> None:
    with speaking(connection.uri, f"repair the state of the run {run.info.run_id}"):
        for tag in set(TOLD) & set(run.data.tags) - set(end.tags):
            connection.client.delete_tag(run.info.run_id, tag)
    close(connection, run.info.run_id, end)
