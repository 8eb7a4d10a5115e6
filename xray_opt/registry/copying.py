"""Copies registered versions with their tags and aliases to another store; their files were copied as LoggedModels."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from xray_opt.mlflow_client import EXISTS, MISSING, Connection, pages, speaking
from xray_opt.registry.moves import MOVE
from xray_opt.registry.versions import aliases

#: Tag of a copy: run and number of its original. Tag of a whole copy: its aliases have been set.
ORIGIN, WHOLE = "xray_opt.migrated_from", "xray_opt.migrated"


def versions_of_runs(connection: Connection, runs: Mapping[str, str]) -> list[ModelVersion]:
    """Versions that were registered from these runs (the keys), by model and number."""
    with speaking(connection.uri, "list registered versions"):
        found = pages(lambda token: connection.client.search_model_versions(max_results=1000, page_token=token))
        mine = [version for version in found if version.run_id in runs]
    return sorted(mine, key=lambda version: (version.name, int(version.version)))


def copies_of_versions(connection: Connection, versions: list[ModelVersion]) -> dict[str, ModelVersion]:
    """Key of each version → its copy in the store, or the version there that it is itself a copy of."""
    by_origin, by_key = {}, {}
    for name in {version.name for version in versions}:
        for other in _versions(connection, name):
            by_origin[other.tags.get(ORIGIN)] = other
            by_key[key_of(other)] = other
    pairs = ((key_of(v), by_origin.get(key_of(v)) or by_key.get(v.tags.get(ORIGIN, ""))) for v in versions)
    return {key: other for key, other in pairs if other is not None}


def key_of(version: ModelVersion) -> str:
    """What tells a version from every other one in any store."""
    return f"{version.run_id}/{version.version}"


def copy_version(
    source: Connection,
    target: Connection,
    version: ModelVersion,
    known: ModelVersion | None,
    model_id: str,
    run_id: str,
    tags: Mapping[str, str],
    say: Callable[[str], None],
) -> None:
    """Register the copied LoggedModel ``model_id`` of the copied run, or finish the copy that is known.

    An alias that the target's model has already, as another version holds it, stays where it is.

    Args:
        tags: of the copy; where they name the run they get the copied run's id.
        say: told of such an alias.

    Raises:
        TrackingError: a store does not answer.
    """
    if known is not None and WHOLE in known.tags:
        return
    client = target.client
    held = [alias for alias, number in aliases(source, version.name).items() if number == str(version.version)]
    with speaking(target.uri, f"copy version {version.version} of {version.name}"):
        _ensure_model(source, target, version.name)
        copy = known or client.create_model_version(
            version.name,
            source=client.get_logged_model(model_id).artifact_location,
            run_id=run_id,
            tags={key: value.replace(str(version.run_id), run_id) for key, value in tags.items()}
            | {ORIGIN: key_of(version)},
            description=version.description,
            model_id=model_id,
        )
        link = [{"name": version.name, "version": str(copy.version)}]
        client.set_logged_model_tags(model_id, {"mlflow.modelVersions": json.dumps(link)})
        there = aliases(target, version.name)
        for alias in held:
            if there.get(alias, str(copy.version)) != str(copy.version):
                say(f"alias {alias} of {version.name} stays with version {there[alias]}, which had it before")
            elif alias not in there:
                client.set_registered_model_alias(version.name, alias, str(copy.version))
        client.set_model_version_tag(version.name, str(copy.version), WHOLE, "yes")


def _versions(connection: Connection, name: str) -> list[ModelVersion]:
    search: Any = connection.client.search_model_versions
    with speaking(connection.uri, f"list the versions of {name}"):
        return list(pages(lambda token: search(f"name='{name}'", max_results=1000, page_token=token)))


def _ensure_model(source: Connection, target: Connection, name: str) -> None:
    """The registered model, made with the source's description and tags where it is missing.

    Not with the moves of its champion: they name versions by their numbers there.
    """
    try:
        target.client.get_registered_model(name)
        return
    except MlflowException as error:
        if error.error_code != MISSING:
            raise
    model = source.client.get_registered_model(name)
    try:
        tags = {tag: value for tag, value in model.tags.items() if not tag.startswith(MOVE)}
        target.client.create_registered_model(name, tags=tags, description=model.description)
    except MlflowException as error:
        if error.error_code != EXISTS:
            raise
