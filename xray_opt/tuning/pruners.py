"""Pruners by name."""

from __future__ import annotations

import warnings

import optuna
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner

from xray_opt.config import PrunerConfig


def pruner_for(config: PrunerConfig, epochs: int) -> BasePruner:
    """The pruner of a study whose trials train at most ``epochs`` epochs, counted from 1.

    Median: a trial whose best value so far lies below the median of the others at the same epoch is given up, but never
    within the first ``warmup_epochs``.
    """
    if config.name == "none":
        return NopPruner()
    if config.name == "hyperband":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return HyperbandPruner(min_resource=max(config.warmup_epochs, 1), max_resource=epochs)
    # Optuna prunes from step n_warmup_steps on, and our first step is 1.
    return MedianPruner(n_startup_trials=config.startup_trials, n_warmup_steps=config.warmup_epochs + 1)
