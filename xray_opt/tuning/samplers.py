"""Samplers by name, seeded by study and trial."""

from __future__ import annotations

import hashlib
import warnings

import optuna
from optuna.samplers import BaseSampler

from xray_opt.config import SamplerConfig
from xray_opt.errors import ConfigError


def sampler_for(config: SamplerConfig, seed: int, number: int) -> BaseSampler:
    """A fresh sampler for trial ``number``.

    Its seed follows from study seed and trial number alone, so that a study continued later draws what an
    uninterrupted one would have drawn (one worker).

    Raises:
        ConfigError: the sampler needs a package that is not installed.
    """
    drawn = int.from_bytes(hashlib.sha256(f"{seed}:{number}".encode()).digest()[:4], "big")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        try:
            return _build(config, seed, drawn)
        except ImportError as error:
            raise ConfigError(f"sampler {config.name} needs a package: {' '.join(str(error).split())}") from error


def _build(config: SamplerConfig, seed: int, drawn: int) -> BaseSampler:
    startup = config.startup_trials
    if config.name == "random":
        return optuna.samplers.RandomSampler(seed=drawn)
    if config.name == "cmaes":
        import cmaes  # noqa: F401  Optuna imports it late, in the middle of a trial

        return optuna.samplers.CmaEsSampler(n_startup_trials=startup, seed=drawn, warn_independent_sampling=False)
    if config.name == "gp":
        return optuna.samplers.GPSampler(n_startup_trials=startup, seed=drawn, warn_independent_sampling=False)
    if config.name == "nsgaii":
        return optuna.samplers.NSGAIISampler(population_size=max(startup, 2), seed=drawn)
    if config.name == "qmc":
        # One sequence a study: its points are told apart by the trial, not by the seed. What is outside the sequence
        # (parameters that the first trial did not have) is drawn at random, anew in each trial.
        rest = optuna.samplers.RandomSampler(seed=drawn)
        return optuna.samplers.QMCSampler(
            scramble=True, seed=seed, independent_sampler=rest, warn_independent_sampling=False
        )
    # `group` lets the joint model handle parameters that not every trial has. The constant liar takes the points that
    # other workers have in work for bad ones, so that no two try the same; where one worker runs there are none.
    joint = config.multivariate
    return optuna.samplers.TPESampler(
        n_startup_trials=startup, multivariate=joint, group=joint, seed=drawn, constant_liar=True
    )
