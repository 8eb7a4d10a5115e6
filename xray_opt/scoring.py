"""Uses models: score one on a split or on an outside folder, predict films, compare trials, promote.

The test split is sealed. Only :func:`evaluate` opens it, on request and with a reason; each opening is written to the
study (who, when, why) and to the MLflow run, and ``compare`` shows test scores of opened trials only.
"""

from __future__ import annotations

import getpass
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from xray_opt import registry
from xray_opt.cache import Split, open_images, open_split, open_test
from xray_opt.config import Config, TrackingConfig, Workspace, override
from xray_opt.dataset import LABELS, prepared
from xray_opt.errors import ConfigError, DataError
from xray_opt.evaluate import Assessment, Predictor, assess, predict
from xray_opt.mlflow_client import connect
from xray_opt.tuning import annotate, annotate_trial, read_study

#: What ``predict`` reads when it is given a folder.
SUFFIXES = (".jpeg", ".jpg", ".png", ".dcm", ".dicom")


@dataclass(frozen=True)
class Prediction:
    """One film's answer; ``label`` is PNEUMONIA where ``probability >= threshold``."""

    path: str
    probability: float
    label: str
    threshold: float


@dataclass(frozen=True)
class Evaluation:
    """Scores of one model on one set of films: at 0.5, and at the threshold fixed on validation."""

    model: str
    split: str
    films: int
    patients: int
    assessment: Assessment
    threshold: float
