"""Dotted names: flatten a config, override it, read assignments and YAML with types checked."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from xray_opt.config.settings import Config
from xray_opt.errors import ConfigError, brief, one_line, shortened

#: Names that one mapping may have with what it merges, and bytes of a file.
_MOST_MERGED, _MOST_BYTES = 1000, 1 << 18
#: Bits of a whole number, its sign left out.
_MOST_BITS = 63
#: What PyYAML raises on documents that are none, beside its own errors: on ``!!int ""``, ``!!bool maybe``, a date in
#: the year 0, a thousand brackets.
_YAML_FAULTS = (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError)

Scalar = str | int | float | bool | None


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads ``1e-5`` as a number (PyYAML follows YAML 1.1 and makes it a string), refuses a key that
    stands twice in one mapping (PyYAML silently keeps the last), and merges (``<<``) that grow without end."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.YAMLError(f"a key must be plain text (line {key_node.start_mark.line + 1})")
            if key_node.value in seen:
                line = key_node.start_mark.line + 1
                raise yaml.YAMLError(f"the key {brief(key_node.value)} stands twice (line {line})")
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        if len(node.value) > _MOST_MERGED:
            raise yaml.YAMLError(f"more than {_MOST_MERGED} names in one mapping (line {node.start_mark.line + 1})")

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        value = int(super().construct_yaml_int(node))  # 1:1:1 is a number to YAML, too, and soon one without an end
        if value.bit_length() > _MOST_BITS:
            raise yaml.YAMLError(f"a number beyond {_MOST_BITS} bits (line {node.start_mark.line + 1})")
        return value


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def read_yaml(text: str, where: str) -> Any:
    """Parse one YAML document; errors become one line that names ``where``."""
    try:
        return yaml.load(text, Loader=_Loader)
    except _YAML_FAULTS as error:
        line = one_line(error) if isinstance(error, (yaml.YAMLError, ValueError)) else "a value that cannot be read"
        raise ConfigError(f"{where} is not valid YAML: {line}") from error


def read_text(path: Path) -> str:
    """Text of a small UTF-8 file, or one line that says why not."""
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
        if len(content) <= _MOST_BYTES:
            return content.decode("utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {path}: {one_line(error)}") from error
    raise ConfigError(f"cannot read {path}: more than {_MOST_BYTES >> 10} KiB are no settings")


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


def read_value(name: str, text: str) -> Scalar:
    """The value that :func:`as_text` spelled, by the declared type of ``name``.

    Raises:
        ConfigError: it is no value of that setting.
    """
    declared = field_type(name)
    kinds = typing.get_args(declared) if isinstance(declared, types.UnionType) else (declared,)
    if text == "null" and type(None) in kinds:
        return None
    if bool in kinds:
        return checked(name, {"true": True, "false": False}.get(text, text))
    for kind in (int, float):
        if kind in kinds:
            try:
                return checked(name, kind(text))
            except ValueError as error:
                raise ConfigError(f"{name} must be a number, not {brief(text)}") from error
    return checked(name, text)


def field_type(name: str) -> Any:
    """Declared type of a dotted name; unknown names are refused with the nearest known one."""
    section, _, leaf = name.partition(".")
    sections = typing.get_type_hints(Config)
    if section in sections and leaf in (hints := typing.get_type_hints(sections[section])):
        return hints[leaf]
    close = difflib.get_close_matches(name.lower(), flatten(Config()), n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise ConfigError(f"unknown setting {brief(name)}{hint}")


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
            return _number(name, kind, value) if kind in (int, float) else value  # type: ignore[return-value]
    wants = " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)
    raise ConfigError(f"{name} must be {wants}, not {brief(value)}")


def _number(name: str, kind: type, value: Any) -> int | float:
    """A number as others can keep it: finite, and a whole one in 64 bits."""
    if isinstance(value, int) and value.bit_length() > 63:
        raise ConfigError(f"{name} must be a number of at most 64 bits, not {brief(value)}")
    if not math.isfinite(value):
        raise ConfigError(f"{name} must be a finite number, not {value}")
    return float(value) if kind is float else int(value)


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
            raise ConfigError(f"--set takes name=value, for example lora.rank=8, not {brief(text)}")
        values[name.strip()] = checked(name.strip(), read_yaml(value, f"--set {shortened(name.strip())}"))
    return values
