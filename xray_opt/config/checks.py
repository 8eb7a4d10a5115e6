"""How a setting is checked: one line that names it, what it wants and what it got."""

from __future__ import annotations

from xray_opt.errors import ConfigError, brief


def require(holds: bool, name: str, wants: str, value: object) -> None:
    """Refuse a value that does not hold.

    Raises:
        ConfigError: "NAME must be WANTS, not VALUE".
    """
    if not holds:
        raise ConfigError(f"{name} must be {wants}, not {brief(value)}")


def one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a value that is none of the choices."""
    require(value in choices, name, "one of " + ", ".join(choices), value)
