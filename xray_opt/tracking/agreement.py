"""Brings run states to those of their trials: a kill between two steps, or a store that was away, tears them apart.

The trial decides: finished → FINISHED, pruned → KILLED, failed → FAILED with its reason. Params and metrics are left as
they are, and so is the run of a trial that is not over.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mlflow.entities import Run, RunTag, ViewType

from xray_opt.mlflow_client import PARENT_RUN, Connection, pages, speaking
from xray_opt.tracking.checkpoints import discard
from xray_opt.tracking.ending import Ending, close
from xray_opt.tracking.experiments import KEY

#: Tag of a trial's run: its number.
TRIAL = "xray_opt.trial"
#: Tag of all runs of a study: the digest of the storage that holds it.
STORAGE = "xray_opt.storage"
#: Tags that tell how a run ended.
TOLD = ("reason", "error", "pruned_epoch")


@dataclass(frozen=True)
class TrialEnd:
    """How a trial stands: ``state`` as Optuna names it, the reason of a failure, the last epoch it reported.

    ``resumable``: its checkpoint may still be needed.
    """

    number: int
    state: str
    reason: str | None = None
    last_epoch: int = 0
    resumable: bool = True

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
    known = {str(trial.number): trial for trial in trials}
    over = {number: trial.ending for number, trial in known.items()}
    repaired: Counter[str] = Counter()
    for run in _without_ghosts(connection, child_runs(connection, parent_id), over):
        number = run.data.tags.get(TRIAL, "")
        end = over.get(number)
        if end is not None and _differs(run, end):
            _repair(connection, run, end)
            repaired[end.status] += 1
        if end is not None and not known[number].resumable:
            discard(connection, run)
    return dict(repaired)


def _differs(run: Run, end: Ending) -> bool:
    """Whether a run does not tell of its trial's end: its state, and for what reason it failed."""
    return bool(run.info.status != end.status or run.data.tags.get("reason") != end.tags.get("reason"))


def _without_ghosts(connection: Connection, runs: list[Run], over: Mapping[str, Ending | None]) -> list[Run]:
    """The runs of trials, each once. A server that makes a run late, after its client gave up and asked again, makes
    two with one key; the trial logged to one of them, and once it is over the other one is deleted.
    """
    kept = {}
    for run in sorted(runs, key=_weight):
        kept[run.data.tags.get(KEY) or run.info.run_id] = run
    for run in runs:
        key = run.data.tags.get(KEY)
        if key and kept[key] is not run and over.get(run.data.tags.get(TRIAL, "")) is not None:
            with speaking(connection.uri, f"delete the run {run.info.run_id}, which was made twice"):
                connection.client.delete_run(run.info.run_id)
    return list(kept.values())


def _weight(run: Run) -> tuple[int, int, int]:
    """The more was logged to a run, the more it is the trial's; of two empty ones that is the older."""
    return len(run.data.metrics), len(run.data.params), -run.info.start_time


def child_runs(connection: Connection, parent_id: str, trial: int | None = None) -> list[Run]:
    """Runs below a study's run: all, or those of one trial (one, or none if its worker died before it made any)."""
    client = connection.client
    condition = f"tags.`{PARENT_RUN}` = '{parent_id}'"
    if trial is not None:
        condition += f" and tags.`{TRIAL}` = '{trial}'"
    with speaking(connection.uri, f"list the runs of the study's run {parent_id}"):
        experiment = [client.get_run(parent_id).info.experiment_id]
        return list(
            pages(lambda token: client.search_runs(experiment, condition, ViewType.ACTIVE_ONLY, 1000, page_token=token))
        )


def _repair(connection: Connection, run: Run, end: Ending) -> None:
    ended = run.info.status == end.status
    with speaking(connection.uri, f"repair the state of the run {run.info.run_id}"):
        for tag in set(TOLD) & set(run.data.tags) - set(end.tags):
            if not (ended and tag == "error"):  # what the run itself ended by is worth reading all the same
                connection.client.delete_tag(run.info.run_id, tag)
        if ended:
            tags = [RunTag(key, value) for key, value in end.tags.items()]
            connection.client.log_batch(run.info.run_id, tags=tags)
            return
    close(connection, run.info.run_id, end)
