"""Versions of a registered model and the two aliases that point at them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from xray_opt.errors import TrackingError
from xray_opt.mlflow_client import MISSING, Connection, pages, speaking
from xray_opt.registry.moves import CANDIDATE, CHAMPION, PAUSE, READS, ROLLBACK, Move, State, claim, move, read_state

#: Version tag with the digest of the split data that a model was validated on.
DATA = "xray_opt.manifest_sha256"
#: Version tag that tells of the last move of the champion to it.
MOVED = "xray_opt.moved"
#: Version tags, or their beginnings, that say how good a version is known to be. ``robust.SPLIT.worst`` are tags of
#: runs as well: what is known before a run is registered comes along.
ROBUST = "robust."
EVIDENCE = ("val.", "confirmed.", "test.", ROBUST, "xray_opt.evidence", "xray_opt.report", "xray_opt.test_openings")


@dataclass(frozen=True)
class Version:
    """One version of a registered model, with the run it came from.

    Attributes:
        version: number as text, as MLflow names it.
        tags: study, trial, digests of data and base, git commit, validation scores (``val.f1``, …).
    """

    name: str
    version: str
    run_id: str
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def val_f1(self) -> float | None:
        """Validation F1 at 0.5, none where it was not recorded."""
        return self.scores.get("val.f1")

    @property
    def scores(self) -> dict[str, float]:
        """Validation scores by name."""
        return {key: float(value) for key, value in self.tags.items() if key.startswith("val.")}

    @property
    def evidence(self) -> dict[str, str]:
        """What is known of it: scores on validation, of its confirmation and on the test split; the worst case of
        changed films; where more stands."""
        return {key: value for key, value in sorted(self.tags.items()) if key.startswith(EVIDENCE)}


@dataclass(frozen=True)
class Comparison:
    """Who was champion before a move and who is now; none where there was no champion.

    Attributes:
        meanwhile: moves that others made between the decision and this move.
    """

    old: Version | None
    new: Version
    same_data: bool
    meanwhile: tuple[Move, ...] = ()


def champion(connection: Connection, name: str) -> Version | None:
    """The version with alias ``champion``, none where model or alias is missing."""
    return aliased(connection, name, CHAMPION)


def aliased(connection: Connection, name: str, alias: str) -> Version | None:
    """The version that an alias points at, none where model or alias is missing."""
    with speaking(connection.uri, f"read the registered model {name}"):
        number = aliases(connection, name).get(alias)
        return None if number is None else _read(connection, name, number)


def version_for_run(connection: Connection, name: str, run_id: str) -> Version | None:
    """The newest version of ``name`` that was registered from a run, none if there is none."""
    with speaking(connection.uri, f"search versions of {name}"):
        found = connection.client.search_model_versions(f"run_id = '{run_id}'")
    mine = [as_version(version) for version in found if version.name == name]
    return max(mine, key=lambda version: int(version.version), default=None)


def promote(
    connection: Connection, name: str, version: str | None = None, why: str = "", by: str = "promote"
) -> Comparison:
    """Make a version (none means the candidate) the champion; it is no candidate any more.

    Args:
        why, by: the reason and the command, which are kept with the move.

    Raises:
        TrackingError: no such model or version, no candidate, it is the champion already, or somebody else moved it at
            the same time.
    """
    state = read_state(connection, name)
    new = aliased(connection, name, CANDIDATE) if version is None else find(connection, name, version)
    if new is None:
        has = f"its champion is version {state.champion}" if state.champion else "it has no champion either"
        raise TrackingError(
            f"{name} has no candidate to promote ({has}): xray-opt tune registers one, or give --version N"
        )
    return _moved(connection, state, new, by, why)


def rollback(connection: Connection, name: str, version: str | None = None, why: str = "") -> Comparison:
    """Give the champion back to the version that had it before (or to ``version``); once more, to the one before that.

    Raises:
        TrackingError: no such model or version, no earlier champion, or as :func:`promote`.
    """
    state = read_state(connection, name)
    if state.champion is None:
        raise TrackingError(f"{name} has no champion to take back at {connection.shown}")
    earlier = _earlier(connection, name, state) if version is None else find(connection, name, version)
    if earlier is None:
        raise TrackingError(
            f"no version of {name} is known to have been champion before version {state.champion}: name one with "
            "--to VERSION"
        )
    return _moved(connection, state, earlier, ROLLBACK, why)


def _earlier(connection: Connection, name: str, state: State) -> Version | None:
    """The version that was champion before; one that was deleted since is passed over."""
    for number in reversed(state.standing[:-1]):
        if number != state.champion:
            with speaking(connection.uri, f"read version {number} of {name}"):
                try:
                    return _read(connection, name, number)
                except MlflowException as error:
                    if error.error_code != MISSING:
                        raise
    return None


def _moved(connection: Connection, state: State, new: Version, by: str, why: str) -> Comparison:
    """Move the champion to ``new``, and note that on the version."""
    name = new.name
    if state.champion == new.version:
        raise TrackingError(f"version {new.version} of {name} is the champion already; nothing was changed")
    with speaking(connection.uri, f"make version {new.version} of {name} the champion"):
        old = None if state.champion is None else _read(connection, name, state.champion)
        own, meanwhile = move(connection, name, state, new.version, by, why, new.evidence)
        if aliases(connection, name).get(CANDIDATE) == new.version:
            connection.client.delete_registered_model_alias(name, CANDIDATE)
        _tag(connection, new, {MOVED: f"{own.when} {own.by} by {own.who}: {own.why or 'no reason given'}"})
    same = old is not None and new.tags.get(DATA) is not None and old.tags.get(DATA) == new.tags.get(DATA)
    return Comparison(old, new, same, tuple(meanwhile))


def find(connection: Connection, name: str, version: str) -> Version:
    """A version by number.

    Raises:
        TrackingError: there is none.
    """
    with speaking(connection.uri, f"read version {version} of {name}"):
        try:
            return _read(connection, name, str(int(version)))
        except (MlflowException, ValueError) as error:
            if isinstance(error, MlflowException) and error.error_code != MISSING:
                raise
            raise TrackingError(f"{name} has no version {version} at {connection.shown}") from error


def tag_versions(connection: Connection, run_id: str, tags: Mapping[str, str]) -> None:
    """Set tags of every version that was registered from a run."""
    with speaking(connection.uri, f"tag the versions of the run {run_id}"):
        for version in connection.client.search_model_versions(f"run_id = '{run_id}'"):
            _tag(connection, version, tags)


def attach(connection: Connection, version: Version, path: Path, tags: Mapping[str, str]) -> None:
    """Put a file beside a version's own files, and tags on the version.

    Raises:
        TrackingError: the store does not answer, or the version has no LoggedModel, which holds the files.
    """
    client = connection.client
    with speaking(connection.uri, f"attach {path.name} to version {version.version} of {version.name}"):
        # A version names the files of its LoggedModel, not the model itself.
        place = client.get_model_version(version.name, version.version).source
        experiment = [client.get_run(version.run_id).info.experiment_id]
        models = pages(lambda token: client.search_logged_models(experiment, page_token=token))
        own = [model.model_id for model in models if model.artifact_location == place]
        if not own:
            raise TrackingError(
                f"{path.name} cannot be attached to version {version.version} of {version.name}: it has no LoggedModel "
                f"at {connection.shown}; register the run anew"
            )
        for model_id in own:
            client.log_model_artifact(model_id, str(path))
        _tag(connection, version, tags)


def _tag(connection: Connection, version: Any, tags: Mapping[str, str]) -> None:
    for key, value in tags.items():
        connection.client.set_model_version_tag(version.name, str(version.version), key, value)


def settle_alias(connection: Connection, version: Version) -> None:
    """Give a version its alias, then read again until nothing changes: MLflow's aliases have no compare-and-set.

    Of two that find no champion at once the last writer stays champion; the other one sees that here and yields.
    """
    with speaking(connection.uri, f"set the alias of version {version.version} of {version.name}"):
        quiet = 0
        for _ in range(READS):
            quiet = 0 if _repair(connection, version) else quiet + 1
            if quiet == 2:
                return
            time.sleep(PAUSE)
    raise TrackingError(f"the aliases of {version.name} at {connection.shown} keep changing; run the command again")


def _repair(connection: Connection, version: Version) -> bool:
    """Bring the aliases one step nearer to what they should be; false where they are.

    A version that was champion, or is older than it, has had its turn: it becomes candidate no more.
    """
    name, state = version.name, read_state(connection, version.name)
    own = int(version.version)
    first, next_one = state.champion, state.aliases.get(CANDIDATE)
    if first is None:
        claim(connection, name, CHAMPION, version.version)
    elif int(first) == own and next_one == version.version:
        connection.client.delete_registered_model_alias(name, CANDIDATE)
    elif version.version in state.standing or any(one.version == version.version for one in state.moves.values()):
        return False
    elif int(first) < own and (next_one is None or int(next_one) < own):
        claim(connection, name, CANDIDATE, version.version)
    else:
        return False
    return True


def aliases(connection: Connection, name: str) -> dict[str, str]:
    """Alias → version number as text; empty where there is no such model."""
    return dict(read_state(connection, name).aliases)


def as_version(version: ModelVersion) -> Version:
    """MLflow's record as ours."""
    return Version(version.name, str(version.version), version.run_id or "", dict(version.tags))


def _read(connection: Connection, name: str, number: str) -> Version:
    return as_version(connection.client.get_model_version(name, number))
