"""Reads a study file, which is what a sweep file was, and checks every line of it.

``find_study`` finds one in the workspace or among those that ship with the package; ``load_study`` reads it.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from xray_opt.config.dotted import Scalar, checked, flatten, mapping, merge, override, read_text, read_yaml
from xray_opt.config.settings import Config
from xray_opt.config.space import check_condition, check_space
from xray_opt.config.study import FIRST, PRUNERS, SAMPLERS, Parameter, PrunerConfig, SamplerConfig, StudyConfig
from xray_opt.config.workspace import Workspace
from xray_opt.errors import ConfigError, brief, printable, shortened

#: Beyond this a number of a space is not finite or fits in no 64 bits.
_MOST_NUMBER = 2.0**63


def shipped_studies() -> Path:
    """Folder of the study files that come with the package (wheel) or stand in the checkout."""
    inside = Path(__file__).parent.parent / "studies"
    return inside if inside.is_dir() else Path(__file__).parent.parent.parent / "studies"


def find_study(name: str, workspace: Workspace) -> Path:
    """Path of a study file given as path, as ``studies/laptop.yaml`` or as ``laptop``."""
    stem = Path(name).name.removesuffix(".yaml")
    candidates = (
        Path(name),
        workspace.root / name,
        workspace.studies / f"{stem}.yaml",
        shipped_studies() / f"{stem}.yaml",
    )
    plain = name in (stem, f"studies/{stem}.yaml")
    for candidate in candidates if plain else candidates[:2]:
        if os.path.isfile(candidate):  # False, too, for a name that is too long
            return candidate
    shipped = ", ".join(sorted(path.stem for path in shipped_studies().glob("*.yaml")))
    raise ConfigError(f"no study file {brief(name)}; give a path or one of the shipped studies: {shipped}")


def study_files(workspace: Workspace) -> list[Path]:
    """The study files of a workspace, then those that ship with the package."""
    return sorted(workspace.studies.glob("*.yaml")) + sorted(shipped_studies().glob("*.yaml"))


def load_study(path: Path) -> StudyConfig:
    """Read and check a study file.

    Raises:
        ConfigError: one line that names the file, the key and what it should be.
    """
    where = printable(str(path))
    document = mapping(read_yaml(read_text(path), where), where)
    allowed = {f.name for f in dataclasses.fields(StudyConfig)}
    if unknown := sorted(set(document) - allowed):
        raise ConfigError(f"{where}: unknown key {brief(unknown[0])}; a study file has {', '.join(sorted(allowed))}")
    config = merge(Config(), document.get("config"), f"{where}: config")
    space = tuple(
        _parameter(name, spec, f"{where}: space.{shortened(name)}")
        for name, spec in mapping(document.get("space"), where).items()
    )
    objectives = _objectives(document.get("objectives"), f"{where}: objectives")
    name = _text(document.get("name", path.stem), f"{where}: name")
    storage = document.get("storage")
    try:
        check_space(space, config)
        return StudyConfig(
            name=name,
            config=config,
            space=space,
            trials=_whole(document.get("trials", 20), f"{where}: trials", 1),
            seed=_whole(document.get("seed", 0), f"{where}: seed", 0),
            sampler=_section(SamplerConfig, document.get("sampler"), f"{where}: sampler", SAMPLERS),
            pruner=_pruner(document.get("pruner"), f"{where}: pruner", objectives),
            enqueue=_enqueued(document.get("enqueue"), space, config, where),
            storage=None if storage is None else _text(storage, f"{where}: storage"),
            objectives=objectives,
        )
    except ConfigError as error:
        raise error if str(error).startswith(where) else ConfigError(f"{where}: {error}") from error


def _text(value: object, where: str) -> str:
    if isinstance(value, str):
        return value
    raise ConfigError(f"{where} must be text, not {brief(value)}")


def _whole(value: object, where: str, least: int) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value >= least:
        return value
    raise ConfigError(f"{where} must be a whole number of at least {least}, not {brief(value)}")


def _number(value: object, where: str) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < _MOST_NUMBER:
        return value
    raise ConfigError(f"{where} must be a finite number, not {brief(value)}")


def _section(kind: Any, value: object, where: str, names: tuple[str, ...]) -> Any:
    given = mapping(value, where)
    hints = {f.name: f for f in dataclasses.fields(kind)}
    for key, item in given.items():
        if key not in hints:
            raise ConfigError(f"{where}: unknown key {brief(key)}; it has {', '.join(hints)}")
        if isinstance(hints[key].default, bool):
            if not isinstance(item, bool):
                raise ConfigError(f"{where}.{key} must be true or false, not {brief(item)}")
        elif isinstance(hints[key].default, int):
            _whole(item, f"{where}.{key}", 0)
    if given.get("name", names[0]) not in names:
        raise ConfigError(f"{where}.name must be one of {', '.join(names)}, not {brief(given['name'])}")
    return kind(**given)


def _objectives(value: object, where: str) -> tuple[str, ...]:
    if value is None:
        return (FIRST,)
    if not isinstance(value, list):
        raise ConfigError(f"{where} must be a list such as [{FIRST}, parameters], not {brief(value)}")
    return tuple(_text(item, where) for item in value)


def _pruner(value: object, where: str, objectives: tuple[str, ...]) -> PrunerConfig:
    """With two objectives none unless one is named, which is refused."""
    if value is None and len(objectives) > 1:
        return PrunerConfig("none")
    pruner: PrunerConfig = _section(PrunerConfig, value, where, PRUNERS)
    return pruner


def _parameter(name: str, spec: object, where: str) -> Parameter:
    if name.startswith(("data.", "tracking.", "model.base")):
        raise ConfigError(f"{where}: {name} may not be searched: films and base weights belong to the study")
    given = dict(mapping(spec, where))
    if unknown := sorted(set(given) - {"type", "low", "high", "log", "step", "choices", "when"}):
        raise ConfigError(f"{where}: unknown key {brief(unknown[0])}; it has type, low, high, log, step, choices, when")
    kind = given.get("type")
    try:
        when = {key: checked(key, value) for key, value in mapping(given.get("when"), f"{where}.when").items()}
        if name == "image.size" and kind in ("float", "int"):
            raise ConfigError("image.size is searched among choices alone: each size is a decoded cache of its own")
        if kind == "categorical":
            return _categorical(name, given, when, where)
        if kind in ("float", "int"):
            return _range(name, kind, given, when, where)
    except ConfigError as error:
        raise error if str(error).startswith(where) else ConfigError(f"{where}: {error}") from error
    raise ConfigError(f"{where}.type must be float, int or categorical, not {brief(kind)}")


def _categorical(name: str, given: dict[str, Any], when: dict[str, Scalar], where: str) -> Parameter:
    choices = given.get("choices")
    if not isinstance(choices, list) or not choices:
        raise ConfigError(f"{where}.choices must be a list of at least one value")
    typed = tuple(checked(name, choice) for choice in choices)
    if len(set(typed)) < len(typed):
        raise ConfigError(f"{where}.choices names a value twice")
    return Parameter(name, "categorical", choices=typed, when=when)


def _range(name: str, kind: str, given: dict[str, Any], when: dict[str, Scalar], where: str) -> Parameter:
    low, high = (_number(given.get(key), f"{where}.{key}") for key in ("low", "high"))
    step = None if given.get("step") is None else _number(given["step"], f"{where}.step")
    log = given.get("log", False)
    if not isinstance(log, bool):
        raise ConfigError(f"{where}.log must be true or false, not {brief(log)}")
    if low > high or (log and low <= 0) or (log and step is not None) or (step is not None and step <= 0):
        raise ConfigError(f"{where} needs low <= high, low > 0 with log, and a positive step only without log")
    if kind == "int" and any(isinstance(value, float) for value in (low, high, step)):
        raise ConfigError(f"{where} of type int needs whole numbers")
    for bound in (low, high):
        checked(name, float(bound) if kind == "float" else bound)
    return Parameter(name, kind, low=low, high=high, log=log, step=step, when=when)


def _enqueued(value: object, space: tuple[Parameter, ...], config: Config, where: str) -> tuple[dict[str, Scalar], ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise ConfigError(f"{where}: enqueue must be a list of settings")
    return tuple(_known_good(item, space, config, f"{where}: enqueue[{i}]") for i, item in enumerate(value))


def _known_good(item: object, space: tuple[Parameter, ...], config: Config, where: str) -> dict[str, Scalar]:
    searched = {parameter.name: parameter for parameter in space}
    typed = {}
    for name, value in mapping(item, where).items():
        if name not in searched:
            raise ConfigError(f"{where}: {shortened(name)} is not in the space")
        typed[name] = checked(name, value)
        if not searched[name].holds(typed[name]):
            raise ConfigError(f"{where}: {name}={brief(value)} lies outside the space")
    fixed = {name: value for name, value in flatten(config).items() if name not in searched}
    for name in typed:
        check_condition(searched[name], fixed | typed)
    override(config, typed)
    return typed
