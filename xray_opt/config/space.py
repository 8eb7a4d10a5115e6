"""Checks a search space as a whole: that every condition can hold, and that whatever may be drawn is a setting."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations_with_replacement, product

from xray_opt.config.dotted import Scalar, as_text, flatten, override
from xray_opt.config.settings import Config
from xray_opt.config.study import Parameter
from xray_opt.errors import ConfigError

Space = Sequence[Parameter]
#: A section with a rule that is of another section, too: the two are looked at as one.
RELATED = {"model": "training"}


def check_space(space: Space, config: Config) -> None:
    """Refuse a space of which a part is never searched, or that can draw what is no setting.

    Raises:
        ConfigError: which part, and why.
    """
    _check_conditions(space, config)
    sections: dict[str, list[Parameter]] = {}
    for parameter in space:
        section = parameter.name.partition(".")[0]
        sections.setdefault(RELATED.get(section, section), []).append(parameter)
    for own in sections.values():
        for values in _corners(own, flatten(config)):
            _check_corner(values, config)


def check_condition(parameter: Parameter, chosen: dict[str, Scalar]) -> None:
    """Refuse a known-good value of a setting that is not searched where these other values hold.

    Raises:
        ConfigError: the condition that does not hold.
    """
    for name, wanted in parameter.when.items():
        if name in chosen and chosen[name] != wanted:
            raise ConfigError(f"{parameter.name} is searched only where {name} is {as_text(wanted)}")


def _check_conditions(space: Space, config: Config) -> None:
    known: dict[str, Parameter | Scalar] = dict(flatten(config))
    for parameter in space:
        known.pop(parameter.name)
    for parameter in space:
        for name, wanted in parameter.when.items():
            if name not in known:
                raise ConfigError(f"space.{parameter.name}.when names {name}, which must stand above it")
            if not _possible(known[name], wanted):
                raise ConfigError(f"space.{parameter.name} is never searched: {name} is never {as_text(wanted)}")
        known[parameter.name] = parameter


def _possible(known: Parameter | Scalar, wanted: Scalar) -> bool:
    """Whether a setting, searched or fixed, can have this value."""
    return known.holds(wanted) if isinstance(known, Parameter) else known == wanted


def _check_corner(values: dict[str, Scalar], config: Config) -> None:
    try:
        override(config, values)
    except ConfigError as error:
        raise ConfigError(f"space: what may be drawn must be a setting: {error}") from error


def _corners(own: Space, fixed: dict[str, Scalar]) -> Iterator[dict[str, Scalar]]:
    """Ends of every two parameters of a section that may be drawn together; the others out of the way.

    No rule is of more than two.
    """
    ends = {parameter.name: _ends(parameter, fixed) for parameter in own}
    aside = {name: some[0] if name.endswith("_min") else some[-1] for name, some in ends.items()}
    for one, other in combinations_with_replacement(ends, 2):
        for values in product(ends[one], ends[other]):
            corner = dict(zip((one, other), values, strict=True))
            both = [parameter for parameter in own if parameter.name in corner]
            if all(_may_be(parameter, corner, fixed) for parameter in both):
                drawn = [parameter for parameter in both if parameter.holds(corner[parameter.name])]
                conditions = {name: wanted for parameter in drawn for name, wanted in parameter.when.items()}
                yield aside | conditions | corner


def _may_be(parameter: Parameter, corner: dict[str, Scalar], fixed: dict[str, Scalar]) -> bool:
    """Whether a parameter has its value where the others of a corner have theirs."""
    value = corner[parameter.name]
    if any(corner.get(name, wanted) != wanted for name, wanted in parameter.when.items()):
        return value == fixed[parameter.name]
    return parameter.holds(value) or not parameter.when.keys() <= corner.keys()


def _ends(parameter: Parameter, fixed: dict[str, Scalar]) -> list[Scalar]:
    """Bounds or choices, numbers in order; where a condition may leave the parameter out, its fixed value as well."""
    found = list(parameter.choices) if parameter.kind == "categorical" else [parameter.low, parameter.high]
    found += [fixed[parameter.name]] if parameter.when else []
    numbers = [value for value in found if isinstance(value, int | float) and not isinstance(value, bool)]
    return [min(numbers), max(numbers)] if len(numbers) == len(found) else found
