"""What a study is: fixed settings, search space, sampler, pruner, known-good settings, storage."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass, field
from typing import Any, Literal

from xray_opt.config.dotted import Scalar, flatten, override
from xray_opt.config.settings import Config, DataConfig
from xray_opt.config.tracking import TrackingConfig
from xray_opt.errors import ConfigError, brief

SAMPLERS = ("tpe", "random", "cmaes", "qmc", "gp", "nsgaii")
PRUNERS = ("median", "hyperband", "none")
#: What a study may optimise → which way; what each is, and how it is measured, stands in ``xray_opt.objectives``.
OBJECTIVES: dict[str, Literal["minimize", "maximize"]] = {
    "val.f1": "maximize",
    "parameters": "minimize",
    "latency": "minimize",
    "robustness": "maximize",
}
FIRST = "val.f1"
#: Settings that change where and how a run is executed or recorded, but not what it computes.
NOT_RULES = ("training.device", "training.micro_batch", "training.cuda_graphs", "tracking.", "data.root")


@dataclass(frozen=True)
class Parameter:
    """One searched setting.

    Attributes:
        name: dotted name of the setting.
        kind: ``float``, ``int`` or ``categorical``.
        low, high: inclusive bounds (float, int).
        log: sample on a logarithmic scale.
        step: grid of an int or float parameter; none means continuous (float) or 1 (int).
        choices: values of a categorical parameter.
        when: searched only where these settings have these values, for example ``{"model.strategy": "lora"}``.
    """

    name: str
    kind: str
    low: float | None = None
    high: float | None = None
    log: bool = False
    step: float | None = None
    choices: tuple[Scalar, ...] = ()
    when: dict[str, Scalar] = field(default_factory=dict)

    def applies(self, values: dict[str, Scalar]) -> bool:
        """Whether the condition holds for the settings chosen so far (dotted name → value)."""
        return all(values.get(name) == wanted for name, wanted in self.when.items())

    def holds(self, value: Scalar) -> bool:
        """Whether a value lies inside: among the choices, or between the bounds."""
        if self.kind == "categorical":
            return value in self.choices
        if self.low is None or self.high is None or not isinstance(value, int | float):
            return False
        return self.low <= value <= self.high


@dataclass(frozen=True)
class SamplerConfig:
    """Sampler by name; ``startup_trials`` random ones before it draws for itself (``nsgaii``: those of a generation),
    ``multivariate`` models parameters jointly (``tpe``)."""

    name: str = "tpe"
    startup_trials: int = 8
    multivariate: bool = True


@dataclass(frozen=True)
class PrunerConfig:
    """Pruner by name; nothing is pruned in the first ``startup_trials`` trials or ``warmup_epochs`` epochs."""

    name: str = "median"
    startup_trials: int = 4
    warmup_epochs: int = 2


@dataclass(frozen=True)
class StudyConfig:
    """A study: what is fixed, what is searched, and how.

    ``objectives`` are one or two of ``OBJECTIVES``, validation F1 first. With two there is no pruner: Optuna compares
    no unfinished trials then.
    """

    name: str
    config: Config = field(default_factory=Config)
    space: tuple[Parameter, ...] = ()
    trials: int = 20
    seed: int = 0
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    pruner: PrunerConfig = field(default_factory=PrunerConfig)
    enqueue: tuple[dict[str, Scalar], ...] = ()
    storage: str | None = None
    objectives: tuple[str, ...] = (FIRST,)

    def __post_init__(self) -> None:
        # The name becomes a folder, an experiment and part of MLflow's filters.
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", self.name):
            wants = "letters, digits, '.', '_' or '-' and start with a letter or digit"
            raise ConfigError(f"name must be {wants}, not {brief(self.name)}")
        classes, usual = self.config.data.classes, self.config.tracking.registered_model
        if classes != DataConfig().classes and usual == TrackingConfig().registered_model:
            raise ConfigError(
                f"a model of {classes[0]} and {classes[1]} must not be registered as {usual}: name another one with "
                "tracking.registered_model"
            )

        self._check_objectives()

    def _check_objectives(self) -> None:
        second = self.objectives[1:]
        if self.objectives[:1] != (FIRST,) or len(second) > 1 or not set(second) <= OBJECTIVES.keys() - {FIRST}:
            others = ", ".join(name for name in OBJECTIVES if name != FIRST)
            raise ConfigError(f"objectives must be {FIRST}, alone or with one of {others} behind it")
        if second and self.pruner.name != "none":
            raise ConfigError(f"pruner.name must be none with two objectives, not {self.pruner.name}")
        if second and self.sampler.name == "cmaes":
            raise ConfigError("sampler.name must not be cmaes with two objectives: it knows one; take tpe or nsgaii")

    @property
    def second(self) -> str | None:
        """What is weighed against validation F1, if anything."""
        return self.objectives[1] if len(self.objectives) > 1 else None

    @property
    def image_sizes(self) -> tuple[int, ...]:
        """The sides of image that a trial may have, each with a cache of its own."""
        for parameter in self.space:
            if parameter.name == "image.size":
                sizes = tuple(int(str(size)) for size in parameter.choices)
                return tuple(dict.fromkeys((*sizes, *([self.config.image.size] if parameter.when else []))))
        return (self.config.image.size,)

    def settings(self, params: dict[str, Scalar]) -> Config:
        """The config of a trial with these params (dotted name → value)."""
        return override(self.config, params)

    def rules(self) -> dict[str, Any]:
        """What must not change within a study: fixed settings, space, seed, objectives (JSON-ready).

        A setting that is searched under a condition has its fixed value wherever that does not hold.
        """
        searched = {parameter.name for parameter in self.space if not parameter.when}
        fixed = {
            name: value
            for name, value in flatten(self.config).items()
            if name not in searched and not name.startswith(NOT_RULES)
        }
        space = [json.loads(json.dumps(dataclasses.asdict(parameter))) for parameter in self.space]
        return {"fixed": fixed, "space": space, "seed": self.seed, "objectives": list(self.objectives)}

    def search(self) -> dict[str, Any]:
        """What else a study file says and may change: sampler, pruner, known-good settings, whose versions it makes."""
        own: dict[str, Any] = {"sampler": dataclasses.asdict(self.sampler), "pruner": dataclasses.asdict(self.pruner)}
        own |= {"registered_model": self.config.tracking.registered_model}
        return own | {"enqueue": [dict(item) for item in self.enqueue]}
