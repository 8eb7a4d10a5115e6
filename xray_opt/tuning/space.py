"""The search space: a study file's parameters as suggestions of a trial."""

from __future__ import annotations

from collections.abc import Iterable

import optuna

from xray_opt.config import Config, Parameter, flatten
from xray_opt.config.dotted import Scalar


def suggest(trial: optuna.Trial, space: Iterable[Parameter], config: Config) -> dict[str, Scalar]:
    """Dotted name → value for this trial; a parameter whose condition does not hold is not asked for.

    Conditions see the fixed settings of ``config`` and the parameters above them that were asked for themselves.
    """
    space = tuple(space)
    searched = {parameter.name for parameter in space}
    chosen: dict[str, Scalar] = {}
    values = {name: value for name, value in flatten(config).items() if name not in searched}
    for parameter in space:
        if parameter.applies(values):
            chosen[parameter.name] = values[parameter.name] = _suggest_one(trial, parameter)
    return chosen


def _suggest_one(trial: optuna.Trial, parameter: Parameter) -> Scalar:
    if parameter.kind == "categorical":
        return trial.suggest_categorical(parameter.name, parameter.choices)
    if parameter.low is None or parameter.high is None:
        raise AssertionError(f"{parameter.name} has no bounds")  # load_study made sure of them
    if parameter.kind == "int":
        low, high = int(parameter.low), int(parameter.high)
        return trial.suggest_int(parameter.name, low, high, step=int(parameter.step or 1), log=parameter.log)
    return trial.suggest_float(parameter.name, parameter.low, parameter.high, step=parameter.step, log=parameter.log)
