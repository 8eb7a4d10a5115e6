"""Answers for films and folders of films, and for the patients whose films they are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from xray_opt import registry
from xray_opt.backbone import resolve_device
from xray_opt.config import Workspace
from xray_opt.dataset import patient_of
from xray_opt.errors import BadFilm, ConfigError
from xray_opt.evaluate import BATCH, Predictor
from xray_opt.mlflow_client import connect
from xray_opt.places import Place
from xray_opt.scoring.explaining import picture_each
from xray_opt.scoring.film_files import film_files


@dataclass(frozen=True)
class Prediction:
    """One film's answer: the calibrated probability, and the positive class where ``probability >= threshold``.

    Attributes:
        picture: file with the film and its heat map, none where that was not asked for.
    """

    path: str
    probability: float
    label: str
    threshold: float
    picture: str | None = None


@dataclass(frozen=True)
class PatientPrediction:
    """One patient's answer: the mean of the films' calibrated probabilities, as patients are scored.

    Attributes:
        patient: as DICOM's header or the file's name tells; the path of a film that does not tell is its own patient.
    """

    patient: str
    films: int
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
    pictures: Path | None = None,
) -> tuple[list[Prediction], list[tuple[str, str]]]:
    """Answers for films and folders of films, and the refused ones with their reasons.

    Args:
        sensitivity: answer at the threshold that reached it on validation; none takes that of best F1.
        pictures: new folder for a picture of each film with its heat map (Grad-CAM).

    Raises:
        ConfigError: no threshold is known for that sensitivity, or the folder exists.
        DataError: nothing to predict.
        TrackingError: no such model.
    """
    rows, refused, _ = _predicted(films, model, workspace, device, place, sensitivity, pictures)
    return rows, refused


def predict_patients(
    films: Iterable[Path],
    model: str,
    workspace: Workspace,
    device: str = "auto",
    place: Place = Place(),
    sensitivity: float | None = None,
    pictures: Path | None = None,
) -> tuple[list[PatientPrediction], list[tuple[str, str]]]:
    """Answers for the patients of films, in the order of their first films; arguments and errors as :func:`predict`."""
    rows, refused, classes = _predicted(films, model, workspace, device, place, sensitivity, pictures)
    groups: dict[str, list[Prediction]] = {}
    for row in rows:
        groups.setdefault(patient_of(Path(row.path)) or row.path, []).append(row)
    found = []
    for patient, own in groups.items():
        mean, threshold = sum(row.probability for row in own) / len(own), own[0].threshold
        found.append(PatientPrediction(patient, len(own), mean, classes[int(mean >= threshold)], threshold))
    return found, refused


def _predicted(
    films: Iterable[Path],
    model: str,
    workspace: Workspace,
    device: str,
    place: Place,
    sensitivity: float | None,
    pictures: Path | None,
) -> tuple[list[Prediction], list[tuple[str, str]], tuple[str, str]]:
    """Answers, refusals, and the names of the classes."""
    if pictures is not None and pictures.exists():
        raise ConfigError(f"{pictures} exists already; name a new folder with --explain")
    paths = list(film_files(films))
    loaded = registry.load(connect(place.tracking(workspace), workspace), model, resolve_device(device))
    threshold, classes = loaded.bundle.threshold_for(sensitivity), loaded.bundle.classes
    rows, refused = [], []
    for path, answer in _answers(loaded.predictor, paths):
        if isinstance(answer, BadFilm):
            refused.append((str(path), str(answer)))
        else:
            rows.append(Prediction(str(path), answer, classes[int(answer >= threshold)], threshold))
    if pictures is not None:
        written = picture_each(loaded, threshold, [Path(row.path) for row in rows], pictures)
        rows = [replace(row, picture=str(path)) for row, path in zip(rows, written, strict=True)]
    return rows, refused, classes


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
