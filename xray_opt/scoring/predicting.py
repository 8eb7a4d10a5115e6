"""Answers for films and folders of films, and for the patients whose films they are."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from xray_opt import registry
from xray_opt.backbone import resolve_device
from xray_opt.config import Workspace
from xray_opt.dataset import patient_of, read_patients
from xray_opt.errors import BadFilm, ConfigError, DataError, shortened
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
        patient: as the table of patients tells, without one DICOM's header or the file's name; the path of a film that
            does not tell is its own patient.
        films: how many films the answer is of.
        missing: how many others are known of this patient: not given, not there, or unreadable.
    """

    patient: str
    films: int
    probability: float
    label: str
    threshold: float
    missing: int = 0


@dataclass(frozen=True)
class Predicted:
    """Answers for films, from which those for their patients follow.

    Attributes:
        refused: films that cannot be read, with their reasons.
        unnamed: films that the table of patients does not name. Whose they are is not guessed: they have no answer.
        classes: names of the classes in the order of their label.
        whose: real path of a film → its patient, as the table tells; none without one.
    """

    films: tuple[Prediction, ...]
    refused: tuple[tuple[str, str], ...]
    classes: tuple[str, str]
    unnamed: tuple[str, ...] = ()
    whose: Mapping[str, str] | None = None

    def patients(self) -> list[PatientPrediction]:
        """Answers for the films' patients, in the order of their first films; a film given twice counts once."""
        known, found = self._known(), []
        for patient, own in self._groups().items():
            mean, threshold = sum(row.probability for row in own.values()) / len(own), self.films[0].threshold
            label, missing = self.classes[int(mean >= threshold)], len(known.get(patient, set()) - own.keys())
            found.append(PatientPrediction(patient, len(own), mean, label, threshold, missing))
        return found

    @property
    def not_given(self) -> tuple[str, ...]:
        """Films that the table names for patients with an answer, that are there and were not given."""
        return tuple(path for path in self._left() if os.path.isfile(path))

    @property
    def absent(self) -> tuple[str, ...]:
        """Films that the table names for patients with an answer, and that are not there."""
        return tuple(path for path in self._left() if not os.path.isfile(path))

    def _patient(self, path: str) -> str:
        if self.whose is not None:
            return self.whose[os.path.realpath(path)]
        return patient_of(Path(path)) or path

    def _groups(self) -> dict[str, dict[str, Prediction]]:
        """Patient → real path → answer."""
        groups: dict[str, dict[str, Prediction]] = {}
        for row in self.films:
            groups.setdefault(self._patient(row.path), {})[os.path.realpath(row.path)] = row
        return groups

    def _known(self) -> dict[str, set[str]]:
        """Patient → real paths of the films that the table names, or that were refused."""
        whose = self.whose or {os.path.realpath(path): self._patient(path) for path, _ in self.refused}
        known: dict[str, set[str]] = {}
        for path, patient in whose.items():
            known.setdefault(patient, set()).add(path)
        return known

    def _left(self) -> list[str]:
        if self.whose is None:
            return []
        known, refused = self._known(), {os.path.realpath(path) for path, _ in self.refused}
        return sorted(path for patient, own in self._groups().items() for path in known[patient] - own.keys() - refused)


def predict(
    films: Iterable[Path],
    model: str,
    workspace: Workspace,
    device: str = "auto",
    place: Place = Place(),
    sensitivity: float | None = None,
    pictures: Path | None = None,
    patients: Path | None = None,
) -> Predicted:
    """Answers for films and folders of films, and through :meth:`Predicted.patients` for patients.

    Args:
        sensitivity: answer at the threshold that reached it on validation; none takes that of best F1.
        pictures: new folder for a picture of each film with its heat map (Grad-CAM).
        patients: CSV ``path,patient`` that tells whose the films are; see ``dataset.read_patients``.

    Raises:
        ConfigError: no threshold is known for that sensitivity, or the folder exists.
        DataError: nothing to predict, or a fault in the CSV.
        TrackingError: no such model.
    """
    if pictures is not None and pictures.exists():
        raise ConfigError(f"{pictures} exists already; name a new folder with --explain")
    whose = None if patients is None else read_patients(patients)
    given = list(film_files(films))
    if not given:
        raise DataError("nothing to predict: no film was given")
    paths: list[Path] = []
    unnamed: list[Path] = []
    for path in given:
        (paths if whose is None or os.path.realpath(path) in whose else unnamed).append(path)
    if not paths:
        raise DataError(
            f"{patients} names none of these {len(given)} films ({shortened(str(given[0]))}, …): its paths are "
            "relative to its own folder, or absolute"
        )
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
    return Predicted(tuple(rows), tuple(refused), classes, tuple(map(str, unnamed)), whose)


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
