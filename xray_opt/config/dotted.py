"""Dotted names: flatten a config, override it, read assignments and YAML with types checked."""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from xray_opt.config.settings import Config
from xray_opt.errors import ConfigError

Scalar = str | int | float | bool | None


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads ``1e-5`` as a number (PyYAML follows YAML 1.1 and makes it a string) and refuses
    a key that stands twice in one mapping (PyYAML silently keeps the last)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.value in seen:
                raise yaml.YAMLError(f"the key {key_node.value!r} stands twice (line {key_node.start_mark.line + 1})")
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def read_yaml(text: str, where: str) -> Any:
    """Parse one YAML document; errors become one line that names ``where``."""
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        line = " ".join(str(error).split())
        raise ConfigError(f"{where} is not valid YAML: {line}") from error


def read_text(path: Path) -> str:
    """Text of a small UTF-8 file, or one line that says why not."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error


def flatten(config: Config) -> dict[str, Scalar]:
    """Dotted name → value, in the order of the fields."""
    return {
        f"{section.name}.{leaf.name}": getattr(getattr(config, section.name), leaf.name)
        for section in dataclasses.fields(config)
        for leaf in dataclasses.fields(getattr(config, section.name))
    }


def as_text(value: Scalar) -> str:
    """The one spelling of a value, as MLflow's params and tables show it: ``null``, ``true``, ``0.0001``."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value) if isinstance(value, float) else str(value)


def field_type(name: str) -> Any:
    """Declared type of a dotted name; unknown names are refused with the nearest known one."""
    section, _, leaf = name.partition(".")
    sections = typing.get_type_hints(Config)
    if section in sections and leaf in (hints := typing.get_type_hints(sections[section])):
        return hints[leaf]
    close = difflib.get_close_matches(name, flatten(Config()), n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise ConfigError(f"unknown setting {name!r}{hint}")


def _accepts(kind: type, value: object) -> bool:
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


def checked(name: str, value: object) -> Scalar:
    """``value`` as the declared type of ``name`` (an int becomes a float where a float is wanted)."""
    declared = field_type(name)
    kinds = typing.get_args(declared) if isinstance(declared, types.UnionType) else (declared,)
    for kind in kinds:
        if _accepts(kind, value):
            return float(value) if kind is float else value  # type: ignore[arg-type, return-value]
    wants = " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)
    raise ConfigError(f"{name} must be {wants}, not {value!r}")


def override(config: Config, values: Mapping[str, object]) -> Config:
    """A copy of ``config`` with dotted names replaced; types and ranges are checked, all sections at once."""
    sections: dict[str, dict[str, Scalar]] = {}
    for name, value in values.items():
        typed = checked(name, value)
        section, _, leaf = name.partition(".")
        sections.setdefault(section, {})[leaf] = typed
    changed = {name: dataclasses.replace(getattr(config, name), **leaves) for name, leaves in sections.items()}
    return dataclasses.replace(config, **changed)


def merge(config: Config, nested: object, where: str) -> Config:
    """Apply a nested mapping ``{section: {leaf: value}}`` from a YAML file."""
    values = {}
    for section, leaves in mapping(nested, where).items():
        for leaf, value in mapping(leaves, f"{where}: {section}").items():
            values[f"{section}.{leaf}"] = value
    try:
        return override(config, values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def mapping(value: object, where: str) -> dict[str, Any]:
    """``value`` if it is a mapping with text keys, ``{}`` for none, else one line that names ``where``."""
    if value is None:
        return {}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return value
    raise ConfigError(f"{where} must be a mapping of names to values")


def parse_assignments(assignments: Iterable[str]) -> dict[str, Scalar]:
    """``["lora.rank=8"]`` → ``{"lora.rank": 8}``, values read as YAML and checked."""
    values = {}
    for text in assignments:
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--set takes name=value, for example lora.rank=8, not {text!r}")
        values[name.strip()] = checked(name.strip(), read_yaml(value, f"--set {name.strip()}"))
    return values
