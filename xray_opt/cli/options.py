"""Options that several commands share, and how they become settings."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from xray_opt.config import Config, StudyConfig

F = TypeVar("F", bound=Callable[..., Any])


class Number(click.FloatRange):
    """As click's, which lets ``nan`` through: it lies beyond neither end."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number."""
        found = super().convert(value, param, ctx)
        if math.isnan(found):
            self.fail(f"{value} is not a number.", param, ctx)
        return float(found)


as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")


storage_option = click.option(
    "--storage", metavar="URL", help="Optuna storage; default: the study file's, XRAY_OPT_STORAGE, or the workspace's."
)
more_storages = click.option(
    "--storage",
    "storages",
    metavar="URL",
    multiple=True,
    help="An Optuna storage to look into besides the workspace's own and those of its study files.",
)
tracking_option = click.option(
    "--tracking-uri",
    "uri",
    metavar="URI",
    help="MLflow store; default: the study's, MLFLOW_TRACKING_URI, or the workspace's.",
)
of_study = click.option(
    "--study", "study_name", metavar="STUDY", help="Study (or its file) whose MLflow store and Optuna storage to use."
)


def run_options(function: F) -> F:
    """--data, --weights, --device, --seed, --tracking-uri, --set: what a run may be told on the command line."""
    for option in reversed(
        (
            click.option("--data", metavar="PATH", help="Folder or CSV of films (data.root); default: prepared last."),
            click.option("--weights", metavar="PATH", help="Base weights from a file (model.base)."),
            click.option("--device", metavar="NAME", help="auto, cuda, cuda:N, mps or cpu (training.device)."),
            click.option("--seed", type=click.IntRange(min=0), help="Seed of search and training."),
            click.option("--tracking-uri", "uri", metavar="URI", help="MLflow store (tracking.uri)."),
            click.option("--set", "sets", metavar="A.B=C", multiple=True, help="Any setting by its dotted name."),
        )
    ):
        function = option(function)
    return function


def settings_from(
    config: Config,
    data: str | None,
    weights: str | None,
    device: str | None,
    seed: int | None,
    uri: str | None,
    sets: tuple[str, ...],
) -> Config:
    """``config`` with the run options applied; ``--set`` wins over the short ones."""
    from xray_opt.config import override, parse_assignments

    short = {"data.root": data, "model.base": weights, "training.device": device, "training.seed": seed}
    short |= {"tracking.uri": uri}
    values: dict[str, object] = {name: value for name, value in short.items() if value is not None}
    return override(config, values | parse_assignments(sets))


def study_from(name: str, rename: str | None, seed: int | None, **options: Any) -> StudyConfig:
    """The study file ``name`` with the run options applied to its fixed settings.

    Raises:
        ConfigError: a searched setting was given as a fixed one, or one with which the space makes no sense.
    """
    import dataclasses

    from xray_opt.config import Workspace, check_space, find_study, load_study, parse_assignments
    from xray_opt.errors import ConfigError

    study = load_study(find_study(name, Workspace.here()))
    searched = {parameter.name for parameter in study.space}
    if both := sorted(searched & set(parse_assignments(options["sets"]))):
        raise ConfigError(f"{both[0]} is searched by study {study.name}; take it out of the space to fix it")
    config = settings_from(study.config, seed=seed, **options)
    check_space(study.space, config)
    return dataclasses.replace(
        study, name=study.name if rename is None else rename, config=config, seed=study.seed if seed is None else seed
    )
