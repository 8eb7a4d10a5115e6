"""Scores one model on a split of its own data, or on all films of another folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from xray_opt import registry
from xray_opt.backbone import resolve_device
from xray_opt.config import Config, DataConfig, LossConfig, Workspace, override
from xray_opt.dataset import Film, Manifest, prepared
from xray_opt.errors import ConfigError
from xray_opt.metrics import Scores, scores
from xray_opt.mlflow_client import connect
from xray_opt.places import Place
from xray_opt.scoring.levels import FilmCases, Level, film_cases, levels
from xray_opt.scoring.opening import SealedTest, require_own, study_storage
from xray_opt.scoring.outside import own_settings, strangers


@dataclass(frozen=True)
class Evaluation:
    """Scores of one model on one set of films: at 0.5, and at the threshold fixed on validation.

    Attributes:
        image, patient: all scores at ``threshold`` with 95 % intervals.
        left_out: films of another folder that are the model's own, by their split, and under ``same_patient`` other
            films of the same patients; none where the model's own films are not known here.
    """

    model: str
    split: str
    films: int
    patients: int
    threshold: float
    at_half: Scores
    at_threshold: Scores
    image: Level
    patient: Level
    left_out: Mapping[str, int] | None = field(default_factory=dict)


def evaluate(
    model: str,
    split: str,
    workspace: Workspace,
    data: str | None = None,
    why: str | None = None,
    device: str = "auto",
    place: Place = Place(),
    sensitivity: float | None = None,
) -> Evaluation:
    """Score ``model`` in fp32 on a split of the data it was made on, or on all films of another folder.

    Args:
        model: MLflow model URI or ``runs:/RUN_ID``.
        split: ``train``, ``val``, ``test``, or ``all`` (every film of ``data`` that is not the model's own).
        data: other folder or CSV; with a split of its own data, where that lies now.
        why: the reason for opening ``test``, which is recorded before a label is read.
        place: MLflow store of the model and Optuna storage of its study.
        sensitivity: score at the threshold that reached it on validation; none takes that of best F1.

    Raises:
        ConfigError: ``test`` without a reason, ``all`` without data or with no films but the model's own, or no
            threshold is known for that sensitivity.
        DataError: a split was asked of data that is not the model's own.
        StudyError: the opening cannot be written to the model's study.
    """
    if split == "test" and not why:
        raise ConfigError('the test split is sealed: say why it is opened with --why "…"; the opening is recorded')
    if split == "all" and data is None:
        raise ConfigError("--split all scores the films of another folder: name it with --data")
    connection = connect(place.tracking(workspace), workspace)
    loaded = registry.load(connection, model, resolve_device(device))
    threshold = loaded.bundle.threshold_for(sensitivity)
    manifest = prepared(_data_settings(loaded, split, data), workspace)
    left_out: Mapping[str, int] | None = {}
    opened = None
    if split == "all":
        films, left_out = strangers(manifest, loaded, connection, workspace)
    else:
        require_own(manifest, loaded, model, split)
        if split == "test":
            sealed = SealedTest(loaded, manifest, connection, workspace, study_storage(loaded, workspace, place))
            films, opening = sealed.open(str(why))
            opened = sealed, opening
        else:
            films = manifest.of(split)
    cases = cases_of(loaded, manifest, films)
    image, patient = levels(cases, threshold)
    own = cases.films.labels, cases.films.probabilities
    halves = scores(*own), scores(*own, threshold)
    result = Evaluation(model, split, len(films), cases.whose.count, threshold, *halves, image, patient, left_out)
    if opened is not None:
        sealed, opening = opened
        sealed.record(opening, image.values("test"))
    return result


def cases_of(loaded: registry.Loaded, manifest: Manifest, films: Sequence[Film]) -> FilmCases:
    """What a model says of these films of a manifest."""
    logits = loaded.predictor.logits([Path(manifest.root) / film.path for film in films])
    return film_cases(films, logits, loaded.bundle.temperature, loss_of(loaded))


def _data_settings(loaded: registry.Loaded, split: str, data: str | None) -> DataConfig:
    if split == "all":
        return DataConfig(root=data)
    config = own_settings(loaded)
    return replace(config, root=data or config.root)


def loss_of(loaded: registry.Loaded) -> LossConfig:
    """The loss that the model was trained with."""
    kept = {name: value for name, value in loaded.bundle.config.items() if name.startswith("loss.")}
    return override(Config(), kept).loss
