"""The way back: from what a study keeps of itself to a study file that starts the same search."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import yaml

from xray_opt.config.dotted import read_yaml
from xray_opt.config.settings import Config
from xray_opt.errors import ConfigError, printable

#: Settings that may be the path of a file: only its name is written.
FILES = ("model.base",)


def study_text(name: str, rules: Mapping[str, Any], search: Mapping[str, Any], trials: int) -> str:
    """A study file that ``load_study`` reads to the same rules.

    Args:
        rules: as ``StudyConfig.rules`` gave them.
        search: as ``StudyConfig.search`` gave it; empty where a study did not keep it, which leaves the defaults.
        trials: how many.
    """
    document: dict[str, Any] = {"name": name, "trials": trials, "seed": rules.get("seed", 0)}
    if objectives := rules.get("objectives"):
        document["objectives"] = list(objectives)
    config: dict[str, dict[str, Any]] = {}
    for setting, value in sorted((rules.get("fixed") or {}).items()):
        section, _, leaf = setting.partition(".")
        config.setdefault(section, {})[leaf] = _value(setting, value)
    if (model := search.get("registered_model")) not in (None, Config().tracking.registered_model):
        config["tracking"] = {"registered_model": model}
    document |= {"config": config, "space": {item["name"]: _searched(item) for item in rules.get("space") or ()}}
    document |= {key: search[key] for key in ("sampler", "pruner", "enqueue") if search.get(key)}
    return yaml.dump(document, Dumper=_Plain, sort_keys=False, width=100)


class _Plain(yaml.SafeDumper):
    """Writes a value that stands twice two times, and whatever is no plain value as its text."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: _Plain, value: Any) -> yaml.Node:
    """In quotes where our own reader, which knows ``1e-5`` for a number, would not read a text."""
    text = printable(str(value))
    try:
        plain = read_yaml(text, "") == text
    except ConfigError:
        plain = False
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if plain else '"')


_Plain.add_representer(str, _text)
_Plain.add_multi_representer(object, _text)


def _value(setting: str, value: Any) -> Any:
    return PurePath(value).name if setting in FILES and isinstance(value, str) else value


def _searched(item: Mapping[str, Any]) -> dict[str, Any]:
    """One parameter as a study file has it, without what it does not need."""
    own = {name: value for name, value in item.items() if name not in ("name", "kind") and value not in (None, [], {})}
    if item.get("kind") == "categorical":
        own.pop("log", None)
    return {"type": item.get("kind")} | own
