"""The experiment of a study and its run: found, or made once, by however many processes at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from mlflow.entities import Run, ViewType
from mlflow.exceptions import MlflowException

from xray_opt.errors import TrackingError
from xray_opt.mlflow_client import EXISTS, Connection, storable

#: Tag of all runs of a study: its own id, as its name may be used anew.
STUDY_ID = "xray_opt.study_id"
#: Tag of a run and of a model: what it is for (``study``, ``trial``, ``run``, ``ranked``, ``registered``).
ROLE = "xray_opt.role"
#: Tag of a run: the key that its writer gave it before MLflow gave it an id.
KEY = "xray_opt.key"
#: Tag of a study's run: when a call took it up last, in ms since 1970.
TAKEN_UP = "xray_opt.taken_up"

#: Of the runs that may be a study's, the likeliest first, the one that is.
Choose = Callable[[Sequence[str]], str]


def first(found: Sequence[str]) -> str:
    """The likeliest, where nobody remembers which one the study has."""
    return found[0]


def experiment_named(connection: Connection, name: str) -> str:
    """Id of the experiment of that name, which is made where there is none.

    Raises:
        TrackingError: it was deleted.
    """
    client = connection.client
    found = client.get_experiment_by_name(name)
    if found is None:
        place = None if connection.artifact_root is None else (connection.artifact_root / name).as_uri()
        try:
            return str(client.create_experiment(name, artifact_location=place))
        except MlflowException as error:
            if error.error_code != EXISTS:
                raise
            return experiment_named(connection, name)
    if found.lifecycle_stage != "active":
        raise TrackingError(
            f"the experiment {name} was deleted in MLflow at {connection.shown}: restore it there "
            f"(mlflow experiments restore -x {found.experiment_id}), or use another --name"
        )
    return str(found.experiment_id)


def parent_run(
    connection: Connection, experiment_id: str, name: str, tags: Mapping[str, str], choose: Choose = first
) -> str:
    """The study's run; two processes that make one at once both get the same.

    Args:
        tags: what a new one gets; ``STUDY_ID`` among them tells studies of one name apart.
        choose: must give all processes one answer. Age does not: who asks slowly makes a run that looks older than one
            that another process has settled upon.
    """
    mine = None
    found = _study_runs(connection, experiment_id, tags)
    if not found:
        own = {key: storable(value) for key, value in tags.items()} | {ROLE: "study"}
        mine = connection.client.create_run(experiment_id, tags=own, run_name=name).info.run_id
        found = _study_runs(connection, experiment_id, tags) or [mine]
    chosen = choose(found)
    if mine is not None and chosen != mine:
        connection.client.delete_run(mine)
    return chosen


def taken_up_since(connection: Connection, run_id: str, at: int) -> bool:
    """Whether a call took up a study's run after ``at``, so that what an earlier one tells late is history."""
    return int(connection.client.get_run(run_id).data.tags.get(TAKEN_UP, "0")) > at


def take_up(connection: Connection, run_id: str, at: int) -> Run:
    """A study's run is at work (again) since ``at``: what an earlier call failed with is history."""
    connection.client.set_tag(run_id, TAKEN_UP, str(at))
    connection.client.update_run(run_id, "RUNNING")
    run = connection.client.get_run(run_id)
    for tag in {"reason", "error"} & set(run.data.tags):
        connection.client.delete_tag(run_id, tag)
    return run


def run_of_key(connection: Connection, experiment_id: str, key: str) -> str | None:
    """The run that was made with this key, none if there is none. Where an answer was lost there may be two: the older
    one is kept, the other deleted.
    """
    found = connection.client.search_runs(
        [experiment_id], f"tags.`{KEY}` = '{key}'", order_by=["attributes.start_time ASC", "attributes.run_id ASC"]
    )
    for run in found[1:]:
        connection.client.delete_run(run.info.run_id)
    return found[0].info.run_id if found else None


def _study_runs(connection: Connection, experiment_id: str, tags: Mapping[str, str]) -> list[str]:
    """Runs that may be the study's: those that a call has taken up go first, then the older ones."""
    condition = f"tags.`{ROLE}` = 'study'"
    if STUDY_ID in tags:
        condition += f" and tags.`{STUDY_ID}` = '{tags[STUDY_ID]}'"
    runs = connection.client.search_runs(
        [experiment_id],
        condition,
        ViewType.ACTIVE_ONLY,
        order_by=["attributes.start_time ASC", "attributes.run_id ASC"],
    )
    return [str(run.info.run_id) for run in sorted(runs, key=lambda run: TAKEN_UP not in run.data.tags)]
