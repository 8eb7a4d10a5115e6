"""Uses models: score one on a split or on an outside folder, predict films, promote.

The test split is sealed. Only :func:`evaluate` opens it, on request and with a reason; each opening is written to the
study (who, when, why) and to the MLflow run, and ``compare`` shows test scores of opened trials only.
"""

from __future__ import annotations

import getpass
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from xray_opt import registry
from xray_opt.backbone import resolve_device
from xray_opt.config import Config, DataConfig, TrackingConfig, Workspace, override
from xray_opt.dataset import LABELS, Manifest, prepared, resplit
from xray_opt.errors import BadFilm, ConfigError, DataError
from xray_opt.evaluate import BATCH, Predictor
from xray_opt.leaderboard import OPENINGS, Opening, openings
from xray_opt.metrics import Scores, scores
from xray_opt.mlflow_client import Connection, connect
from xray_opt.tracking import log_run_metrics, tag_run
from xray_opt.tuning import annotate, read_study

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
    threshold: float
    at_half: Scores
    at_threshold: Scores


def evaluate(
    model: str, split: str, workspace: Workspace, data: str | None = None, why: str | None = None, device: str = "auto"
) -> Evaluation:
    """Score ``model`` in fp32 on a split of the data it was made on, or on all films of another folder.

    Args:
        model: MLflow model URI or ``runs:/RUN_ID``.
        split: ``train``, ``val``, ``test``, or ``all`` (every film of ``data``).
        data: other folder or CSV; with a split of its own data, where that lies now.
        why: the reason for opening ``test``, which is recorded before a label is read.

    Raises:
        ConfigError: ``test`` without a reason, ``all`` without data.
        DataError: a split was asked of data that is not the model's own.
    """
    if split == "test" and not why:
        raise ConfigError('the test split is sealed: say why it is opened with --why "…"; the opening is recorded')
    if split == "all" and data is None:
        raise ConfigError("--split all scores the films of another folder: name it with --data")
    connection = connect(TrackingConfig(), workspace)
    loaded = registry.load(connection, model, resolve_device(device))
    manifest = prepared(_data_settings(loaded, split, data), workspace)
    own = loaded.tags.get("xray_opt.data_sha256")
    if split == "all" and _is_own(manifest, loaded):
        raise ConfigError(
            "these are the model's own films: --split all would open their sealed test split unrecorded; use --split "
            "val, or --split test with --why"
        )
    if split != "all" and manifest.sha256 != own:
        raise DataError(
            f"{model} was made on other data ({str(own)[:12]}, this is {manifest.sha256[:12]}): its {split} split "
            "cannot be told from its training films; score other films with --split all --data PATH"
        )
    opening = _record_opening(loaded, connection, workspace, str(why)) if split == "test" else None
    films = manifest.films if split == "all" else manifest.of(split)
    labels = np.array([film.label for film in films])
    probabilities = loaded.predictor.probabilities([Path(manifest.root) / film.path for film in films])
    result = Evaluation(
        model=model,
        split=split,
        films=len(films),
        patients=len({film.group for film in films}),
        threshold=loaded.bundle.threshold,
        at_half=scores(labels, probabilities),
        at_threshold=scores(labels, probabilities, loaded.bundle.threshold),
    )
    if opening is not None:
        _record_scores(opening, loaded, connection, workspace, result.at_threshold)
    return result


def _data_settings(loaded: registry.Loaded, split: str, data: str | None) -> DataConfig:
    if split == "all":
        return DataConfig(root=data)
    config = _own_settings(loaded)
    return replace(config, root=data or config.root)


def _own_settings(loaded: registry.Loaded) -> DataConfig:
    kept = {name: value for name, value in loaded.bundle.config.items() if name.startswith("data.")}
    return override(Config(), kept).data


def _is_own(manifest: Manifest, loaded: registry.Loaded) -> bool:
    """Whether these films, split as the model's own were, are the model's own."""
    try:
        return resplit(manifest, _own_settings(loaded)).sha256 == loaded.tags.get("xray_opt.data_sha256")
    except DataError:  # films that cannot even be split so are others
        return False


def _record_opening(loaded: registry.Loaded, connection: Connection, workspace: Workspace, why: str) -> Opening:
    """Write who opened the test split, when and why, before any label is read."""
    opening = Opening(
        who=getpass.getuser(),
        when=datetime.now(UTC).isoformat(timespec="seconds"),
        why=why,
        trial=int(number) if (number := loaded.tags.get("xray_opt.trial")) else None,
    )
    _note_opening(loaded, workspace, opening)
    if loaded.run_id:
        tag_run(connection, loaded.run_id, "xray_opt.test_opened", f"{opening.when} {opening.who}: {why}")
    return opening


def _record_scores(
    opening: Opening, loaded: registry.Loaded, connection: Connection, workspace: Workspace, result: Scores
) -> None:
    values = {f"test.{name}": value for name, value in asdict(result).items()}
    _note_opening(loaded, workspace, replace(opening, scores=values))
    if loaded.run_id:
        log_run_metrics(connection, loaded.run_id, values)


def _note_opening(loaded: registry.Loaded, workspace: Workspace, opening: Opening) -> None:
    """Write an opening to the study of the model, if it has one; a second note of the same opening replaces it."""
    study = loaded.tags.get("xray_opt.study")
    if not study:
        return
    others = [
        item
        for item in openings(read_study(study, workspace))
        if replace(item, scores={}) != replace(opening, scores={})
    ]
    annotate(study, workspace, OPENINGS, [asdict(item) for item in [*others, opening]])


def predict(
    films: Iterable[Path], model: str, workspace: Workspace, device: str = "auto"
) -> tuple[list[Prediction], list[tuple[str, str]]]:
    """Answers for films and folders of films, and the refused ones with their reasons.

    Raises:
        DataError: nothing to predict.
        TrackingError: no such model.
    """
    paths = list(film_files(films))
    loaded = registry.load(connect(TrackingConfig(), workspace), model, resolve_device(device))
    threshold = loaded.bundle.threshold
    rows, refused = [], []
    for path, answer in _answers(loaded.predictor, paths):
        if isinstance(answer, BadFilm):
            refused.append((str(path), str(answer)))
        else:
            rows.append(Prediction(str(path), answer, LABELS[int(answer >= threshold)], threshold))
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
        if not path.exists():
            raise DataError(f"{path} does not exist")
        if not path.is_dir():
            yield path
            continue
        found = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
        if not found:
            raise DataError(f"{path} holds no films ({', '.join(SUFFIXES)})")
        yield from found


def promote(name: str, version: str | None, workspace: Workspace) -> registry.Comparison:
    """Make ``version`` (none means the candidate) of the registered model ``name`` its champion."""
    return registry.promote(connect(TrackingConfig(), workspace), name, version)
