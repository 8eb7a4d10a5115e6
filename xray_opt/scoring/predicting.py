"""Answers for films and folders of films; promotion of a version."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from xray_opt import registry
from xray_opt.backbone import resolve_device
from xray_opt.config import Workspace
from xray_opt.errors import BadFilm, DataError
from xray_opt.evaluate import BATCH, Predictor
from xray_opt.mlflow_client import connect
from xray_opt.places import Place

#: What ``predict`` reads when it is given a folder.
SUFFIXES = (".jpeg", ".jpg", ".png", ".dcm", ".dicom")


@dataclass(frozen=True)
class Prediction:
    """One film's answer: the calibrated probability, and the positive class where ``probability >= threshold``."""

    path: str
    probability: float
    label: str
    threshold: float


def predict(
    films: Iterable[Path],
    model: str,
    workspace: Workspace,
    device: str = "auto",
    place: Place = Place(),
    sensitivity: float | None = None,
) -> tuple[list[Prediction], list[tuple[str, str]]]:
    """Answers for films and folders of films, and the refused ones with their reasons.

    Args:
        sensitivity: answer at the threshold that reached it on validation; none takes that of best F1.

    Raises:
        ConfigError: no threshold is known for that sensitivity.
        DataError: nothing to predict.
        TrackingError: no such model.
    """
    paths = list(film_files(films))
    loaded = registry.load(connect(place.tracking(workspace), workspace), model, resolve_device(device))
    threshold = loaded.bundle.threshold_for(sensitivity)
    rows, refused = [], []
    for path, answer in _answers(loaded.predictor, paths):
        if isinstance(answer, BadFilm):
            refused.append((str(path), str(answer)))
        else:
            label = loaded.bundle.classes[int(answer >= threshold)]
            rows.append(Prediction(str(path), answer, label, threshold))
    return rows, refused


def _answers(predictor: Predictor, paths: list[Path]) -> Iterator[tuple[Path, float | BadFilm]]:
    """Probability or refusal of each film, a batch at a time; a batch with a bad film is read film by film."""
    for first in range(0, len(paths), BATCH):
        batch = paths[first : first + BATCH]
        try:
            yield from zip(batch, map(float, predictor.probabilities(batch)), strict=True)
        except BadFilm as error:
            if len(batch) == 1:
                yield batch[0], error
            else:
                for path in batch:
                    yield from _answers(predictor, [path])


def film_files(films: Iterable[Path]) -> Iterable[Path]:
    """The files named, and the films below the folders named, sorted within each folder."""
    for path in films:
        if not os.path.exists(path):
            raise DataError(f"{path} does not exist")
        if not path.is_dir():
            yield path
            continue
        found = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
        if not found:
            raise DataError(f"{path} holds no films ({', '.join(SUFFIXES)})")
        yield from found


def promote(name: str, version: str | None, workspace: Workspace, place: Place = Place()) -> registry.Comparison:
    """Make ``version`` (none means the candidate) of the registered model ``name`` its champion."""
    return registry.promote(connect(place.tracking(workspace), workspace), name, version)
