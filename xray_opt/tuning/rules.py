"""What must not change within a study: its fixed settings, its space, its seed, its objectives and its data."""

from __future__ import annotations

from typing import Any

from xray_opt.config import FIRST, Config, StudyConfig, flatten
from xray_opt.errors import StudyError

#: Study user attributes.
RULES, DATA, IDENTITY = "rules", "data_sha256", "identity"
#: The same: how the last call chose trials and stopped them, which may change.
SEARCH = "search"
#: Study user attribute: the identity of a study that is being copied here; empty once all of it is here.
MIGRATING = "migrating"


def check_rules(kept: dict[str, Any], study: StudyConfig, data_sha256: str) -> None:
    """Compare a study's kept rules with today's.

    Raises:
        StudyError: the first difference by its dotted name, both values, and the way on.
    """
    difference = first_difference(kept.get(RULES) or {}, study.rules())
    if not difference and kept.get(DATA) != data_sha256:
        difference = f"its data was {str(kept.get(DATA))[:12]}, this is {data_sha256[:12]}"
    if difference:
        raise StudyError(
            f"study {study.name} cannot go on: {difference}; results must not be mixed: go back, or start another "
            "study with --name"
        )


def deleted(study: str) -> StudyError:
    """What to raise where a study is gone that a worker has open."""
    return StudyError(f"study {study} was deleted while a worker was on it: this worker stops")


def first_difference(before: dict[str, Any], now: dict[str, Any]) -> str | None:
    """One line on the first rule that differs, none if all agree."""
    # A setting that is new since the study was made stood at its default.
    fixed_before, fixed_now = flatten(Config()) | before.get("fixed", {}), now["fixed"]
    space_before, space_now = (_by_name(rules.get("space", [])) for rules in (before, now))
    for name in sorted(set(space_before) | set(space_now)):
        if space_before.get(name) != space_now.get(name):
            return f"the search of {name} was {_shown(space_before.get(name))}, now it is {_shown(space_now.get(name))}"
    # Older studies did not keep what stands where a setting is not searched.
    unknown = space_before.keys() - before.get("fixed", {}).keys()
    for name in sorted((before.get("fixed", {}).keys() | fixed_now.keys()) - unknown):
        if fixed_before.get(name, "unset") != fixed_now.get(name, "unset"):
            return f"{name} was {fixed_before.get(name, 'unset')}, now it is {fixed_now.get(name, 'unset')}"
    if before.get("seed") != now["seed"]:
        return f"its seed was {before.get('seed')}, now it is {now['seed']}"
    objectives = before.get("objectives", [FIRST])
    if objectives != now["objectives"]:
        return f"its objectives were {', '.join(objectives)}, now they are {', '.join(now['objectives'])}"
    return None


def _by_name(space: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {parameter["name"]: parameter for parameter in space}


def _shown(parameter: dict[str, Any] | None) -> str:
    if parameter is None:
        return "absent"
    given = {key: value for key, value in parameter.items() if key != "name" and value not in (None, [], {}, False)}
    return ", ".join(f"{key} {value}" for key, value in given.items())
