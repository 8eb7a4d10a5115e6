"""The order of a move: for each study its runs, its models, its trials; then the runs that have no study."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from xray_opt import registry
from xray_opt.config import Workspace
from xray_opt.errors import StudyError, TrackingError
from xray_opt.migrate.counting import Count, Counts, Run, count, count_runs, count_versions, table
from xray_opt.migrate.stores import SERVICE, WORKSPACE, both_ends
from xray_opt.places import PARENT, STORE, find_place, mark_state
from xray_opt.settling import POSTPONED, one_at_a_time, writes_waiting
from xray_opt.tracking import (
    Route,
    copies_of,
    copies_of_models,
    copy_model,
    copy_run,
    models_of_runs,
    moved_page_tags,
    require_same_store,
    run_page,
    runs_of,
    runs_of_study,
    store_note,
)
from xray_opt.tuning import IDENTITY, StudyCopy, copying, list_studies, storage_digest

Say = Callable[[str], None]
#: Study note: the run that tells of the study's data.
DESCRIBED = "described"


@dataclass(frozen=True)
class Migration:
    """The studies that were copied, or found to be there already, and the counts of both ends."""

    studies: tuple[str, ...]
    counts: tuple[Count, ...]

    @property
    def equal(self) -> bool:
        """Whether everything of the source is in the target."""
        return all(count.equal for count in self.counts)


def migrate(
    workspace: Workspace,
    studies: Sequence[str] = (),
    start: str = WORKSPACE,
    end: str = SERVICE,
    storage: str | None = None,
    uri: str | None = None,
    say: Say = lambda line: None,
) -> Migration:
    """Copy studies (none named: all of the source, and its runs without study) and compare what both ends hold.

    Args:
        start, end: ``workspace`` (its embedded stores), ``service`` (the stores that the environment names), or the
            folder of another workspace.
        storage, uri: of the service, in place of ``XRAY_OPT_STORAGE`` and ``MLFLOW_TRACKING_URI``.
        say: told what is copied, and what a user may have to know of it.

    Raises:
        ConfigError: an end is not known, or both share a store.
        StudyError: a study has RUNNING trials, or the target has other content under its name.
        TrackingError: a store does not answer. A kill or an error loses nothing: the next call goes on.
    """
    source, target = both_ends(workspace, start, end, storage, uri)
    known = {record.name: record.notes for record in list_studies(workspace, source.storage)}
    if missing := sorted(set(studies) - set(known)):
        raise StudyError(f"no study {missing[0]!r} at the source; there are: {', '.join(known) or 'none yet'}")
    route = Route(source.connection, target.connection, storage_digest(target.storage))
    counts: Counts = Counter()
    names = tuple(dict.fromkeys(studies or known))
    for name in names:
        _require_sent(name, known[name], source.workspace)
        with one_at_a_time(target.storage, name), copying(name, source.storage, target.storage) as copied:
            _move_study(copied, route, counts, say)
        mark_state(target.workspace, name, route.storage)
        _say_where(name, workspace, route.storage, say)
    if not studies:
        _move_single_runs(route, counts, say)
    return Migration(names, table(counts))


def _require_sent(name: str, notes: Mapping[str, Any], workspace: Workspace) -> None:
    if notes.get(POSTPONED) or writes_waiting(workspace, str(notes.get(IDENTITY))):
        raise TrackingError(f"writes of study {name} wait for MLflow: run xray-opt sync, then this again")


def _move_study(copied: StudyCopy, route: Route, counts: Counts, say: Say) -> None:
    notes, first = copied.notes, not copied.done
    require_same_store(route.source, copied.name, notes.get(STORE), notes.get(PARENT))
    identity = str(notes[IDENTITY])
    runs = runs_of_study(route.source, identity)
    if first:
        say(f"study {copied.name}: copying {len(runs)} runs, their files and models, then its trials")
        known = copies_of(runs, runs_of_study(route.target, identity))
        ids = _copy_runs(runs, known, route, lambda run: _links(copied, run))
        copies = copies_of(runs, runs_of_study(route.target, identity))
        _copy_models(runs, copies, route, counts, say)
        rewritten = {key: ids.get(str(notes[key]), "") for key in (PARENT, DESCRIBED) if key in notes}
        copied.finish(rewritten | {STORE: store_note(route.target)}, ids, _pages(copies, route))
    else:
        say(f"study {copied.name} is there already: nothing is copied")
        copies = copies_of(runs, runs_of_study(route.target, identity))
    for kind, (own, found) in copied.counts().items():
        count(counts, kind, own, found)
    count_runs(counts, route, runs, copies)
    count_versions(counts, route, (run.info.run_id for run in runs))


def _move_single_runs(route: Route, counts: Counts, say: Say) -> None:
    """The runs of ``xray-opt train``; one that is at work is left out."""
    condition = "tags.`xray_opt.role` = 'run'"
    found = runs_of(route.source, condition)
    runs = [run for run in found if run.info.status != "RUNNING"]
    if len(runs) < len(found):
        say(f"{len(found) - len(runs)} runs without study are RUNNING and left out; migrate again when they are over")
    _copy_runs(runs, copies_of(runs, runs_of(route.target, condition)), route, lambda run: {})
    count_runs(counts, route, runs, copies_of(runs, runs_of(route.target, condition)))


def _copy_runs(
    runs: Sequence[Run], known: Mapping[str, Run], route: Route, more: Callable[[Run], dict[str, str]]
) -> dict[str, str]:
    """Id of each run → id of its copy; parents come before their children."""
    ids: dict[str, str] = {}
    for run in runs:
        ids[run.info.run_id] = copy_run(route, run, known.get(run.info.run_id), ids, more(run))
    return ids


def _copy_models(runs: Sequence[Run], copies: Mapping[str, Run], route: Route, counts: Counts, say: Say) -> None:
    """LoggedModels, then the registered versions that point at some of them."""
    ids = {run_id: copy.info.run_id for run_id, copy in copies.items()}
    models = models_of_runs(route.source, {run.info.experiment_id for run in runs}, ids)
    known = copies_of_models(route.target, {copy.info.experiment_id for copy in copies.values()})
    made = {}
    for model in models:
        place = copies[str(model.source_run_id)].info.experiment_id
        made[model.model_id] = copy_model(route, model, known.get(model.model_id), ids, place)
    count(counts, "LoggedModels", len(models), len(made))
    # A version names the files of its LoggedModel, not the model itself.
    by_place = {model.artifact_location: made[model.model_id] for model in models}
    versions = registry.versions_of_runs(route.source, ids)
    there = registry.copies_of_versions(route.target, versions)
    for version in versions:
        if version.source not in by_place:
            say(f"version {version.version} of {version.name} has no LoggedModel and is left out")
            continue
        known_copy, tags = there.get(registry.key_of(version)), route.tags(version.tags)
        model_id, run_id = by_place[version.source], ids[str(version.run_id)]
        registry.copy_version(route.source, route.target, version, known_copy, model_id, run_id, tags, say)


def _links(copied: StudyCopy, run: Run) -> dict[str, str]:
    """Tags that lead from a trial's run to the trial's page in the target's dashboard."""
    number = run.data.tags.get("xray_opt.trial")
    if number is None:
        return {}
    return moved_page_tags(run.data.tags, copied.name, int(number), copied.page(int(number)))


def _pages(copies: Mapping[str, Run], route: Route) -> dict[str, str]:
    """Id of each copied run → its page."""
    infos: list[Any] = [copy.info for copy in copies.values()]
    return {info.run_id: run_page(route.target, info.experiment_id, info.run_id) for info in infos}


def _say_where(name: str, workspace: Workspace, target: str, say: Say) -> None:
    """A study file that names a storage of its own would go on there."""
    named = find_place(workspace, name).storage
    if named and storage_digest(named) != target:
        say(f"the study file of {name} names a storage of its own: take that line out, or tune goes on there")
