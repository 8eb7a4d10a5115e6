"""Uses models: score one on a split or on an outside folder, predict films, promote.

The test split is sealed. Only :func:`evaluate` opens it, on request and with a reason; each opening is written to the
study (who, when, why) and to the MLflow run, and ``compare`` shows test scores of opened trials only.
"""

from __future__ import annotations

import getpass
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from xray_opt import registry
from xray_opt.backbone import resolve_device
from xray_opt.config import Config, DataConfig, Workspace, override
from xray_opt.dataset import LABELS, Film, Manifest, prepared, resplit
from xray_opt.errors import BadFilm, ConfigError, DataError, StudyError
from xray_opt.evaluate import BATCH, Predictor
from xray_opt.leaderboard import Opening, note_opening
from xray_opt.metrics import Scores, scores
from xray_opt.mlflow_client import Connection, connect
from xray_opt.places import Place, known_storages
from xray_opt.tracking import MANIFEST, STORAGE, log_run_metrics, study_manifest, tag_run

OWN_FILMS = (
    "these are the model's own films: --split all would open their sealed test split unrecorded; use --split val, or "
    "--split test with --why"
)
OWN_PATIENTS = (
    "all these films are the model's own or of its patients, going by their keys: if they are of other people, give a "
    "CSV path,label,patient with other keys"
)
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
    """Scores of one model on one set of films: at 0.5, and at the threshold fixed on validation.

    Attributes:
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
    left_out: Mapping[str, int] | None = field(default_factory=dict)


def evaluate(
    model: str,
    split: str,
    workspace: Workspace,
    data: str | None = None,
    why: str | None = None,
    device: str = "auto",
    place: Place = Place(),
) -> Evaluation:
    """Score ``model`` in fp32 on a split of the data it was made on, or on all films of another folder.

    Args:
        model: MLflow model URI or ``runs:/RUN_ID``.
        split: ``train``, ``val``, ``test``, or ``all`` (every film of ``data`` that is not the model's own).
        data: other folder or CSV; with a split of its own data, where that lies now.
        why: the reason for opening ``test``, which is recorded before a label is read.
        place: MLflow store of the model and Optuna storage of its study.

    Raises:
        ConfigError: ``test`` without a reason, ``all`` without data or with no films but the model's own.
        DataError: a split was asked of data that is not the model's own.
        StudyError: the opening cannot be written to the model's study.
    """
    if split == "test" and not why:
        raise ConfigError('the test split is sealed: say why it is opened with --why "…"; the opening is recorded')
    if split == "all" and data is None:
        raise ConfigError("--split all scores the films of another folder: name it with --data")
    connection = connect(place.tracking(workspace), workspace)
    loaded = registry.load(connection, model, resolve_device(device))
    manifest = prepared(_data_settings(loaded, split, data), workspace)
    left_out: Mapping[str, int] | None = {}
    if split == "all":
        films, left_out = strangers(manifest, loaded, connection, workspace)
    else:
        _require_own(manifest, loaded, model, split)
        films = manifest.of(split)
    storage = _study_storage(loaded, workspace, place) if split == "test" else None
    opening = _record_opening(loaded, connection, workspace, storage, str(why)) if split == "test" else None
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
        left_out=left_out,
    )
    if opening is not None:
        _record_scores(opening, loaded, connection, workspace, storage, result.at_threshold)
    return result


def _data_settings(loaded: registry.Loaded, split: str, data: str | None) -> DataConfig:
    if split == "all":
        return DataConfig(root=data)
    config = _own_settings(loaded)
    return replace(config, root=data or config.root)


def _own_settings(loaded: registry.Loaded) -> DataConfig:
    kept = {name: value for name, value in loaded.bundle.config.items() if name.startswith("data.")}
    return override(Config(), kept).data


def _require_own(manifest: Manifest, loaded: registry.Loaded, model: str, split: str) -> None:
    own = loaded.tags.get(MANIFEST)
    if manifest.sha256 != own:
        raise DataError(
            f"{model} was made on other data ({str(own)[:12]}, this is {manifest.sha256[:12]}): its {split} split "
            "cannot be told from its training films; score other films with --split all --data PATH"
        )


def strangers(
    manifest: Manifest, loaded: registry.Loaded, connection: Connection, workspace: Workspace
) -> tuple[tuple[Film, ...], Mapping[str, int] | None]:
    """The films of an outside set that are not the model's own nor of its patients, and a count of the others.

    The model's own films are known by their SHA-256, whatever their names; its patients by their keys, and by standing
    in one patient group with one of its films. The count is none where the model's own films are not known here.

    Raises:
        ConfigError: no film is left.
    """
    own = _own_manifest(loaded, connection, workspace)
    if own is None:
        if _is_own(manifest, loaded):
            raise ConfigError(OWN_FILMS)
        return manifest.films, None
    files = {film.sha256: film.split for film in own.films}
    patients = {key for film in own.films for key in (film.patient, film.group)}
    known = {film.group for film in manifest.films if film.sha256 in files or {film.patient, film.group} & patients}
    left = tuple(film for film in manifest.films if film.group not in known)
    out = Counter(files.get(film.sha256, "same_patient") for film in manifest.films if film.group in known)
    if not left:
        raise ConfigError(OWN_PATIENTS if "same_patient" in out else OWN_FILMS)
    return left, dict(out)


def _own_manifest(loaded: registry.Loaded, connection: Connection, workspace: Workspace) -> Manifest | None:
    """The manifest the model was made on: from the workspace, else from its study's run; none where neither has it."""
    digest = loaded.tags.get(MANIFEST)
    for path in workspace.manifests.glob("*.csv"):
        with suppress(DataError):
            manifest = Manifest.load(path)
            if manifest.sha256 == digest:
                return manifest
    with tempfile.TemporaryDirectory(prefix="xray-opt-") as folder, suppress(DataError):
        kept = study_manifest(connection, loaded.run_id, Path(folder)) if loaded.run_id else None
        return Manifest.load(kept) if kept else None
    return None


def _is_own(manifest: Manifest, loaded: registry.Loaded) -> bool:
    """Whether these films, split as the model's own were, are the model's own."""
    try:
        return resplit(manifest, _own_settings(loaded)).sha256 == loaded.tags.get(MANIFEST)
    except DataError:  # films that cannot even be split so are others
        return False


def _study_storage(loaded: registry.Loaded, workspace: Workspace, place: Place) -> str | None:
    """URL of the storage that holds the model's study, in which an opening is written.

    Raises:
        StudyError: it is none of those known here.
    """
    if place.storage or "xray_opt.study" not in loaded.tags:
        return place.storage
    url = known_storages(workspace).get(loaded.tags.get(STORAGE, ""))
    if url is None:
        raise StudyError(
            f"the test split stays sealed: the opening belongs into study {loaded.tags['xray_opt.study']}, which is "
            "in a storage that is not known here; name it with --storage URL or --study FILE"
        )
    return url


def _record_opening(
    loaded: registry.Loaded, connection: Connection, workspace: Workspace, storage: str | None, why: str
) -> Opening:
    """Write who opened the test split, when and why, before any label is read."""
    opening = Opening(
        who=getpass.getuser(),
        when=datetime.now(UTC).isoformat(timespec="seconds"),
        why=why,
        trial=int(number) if (number := loaded.tags.get("xray_opt.trial")) else None,
    )
    note_opening(loaded.tags.get("xray_opt.study"), workspace, storage, opening)
    if loaded.run_id:
        tag_run(connection, loaded.run_id, "xray_opt.test_opened", f"{opening.when} {opening.who}: {why}")
    return opening


def _record_scores(
    opening: Opening,
    loaded: registry.Loaded,
    connection: Connection,
    workspace: Workspace,
    storage: str | None,
    result: Scores,
) -> None:
    values = {f"test.{name}": value for name, value in asdict(result).items()}
    note_opening(loaded.tags.get("xray_opt.study"), workspace, storage, replace(opening, scores=values))
    if loaded.run_id:
        log_run_metrics(connection, loaded.run_id, values)


def predict(
    films: Iterable[Path], model: str, workspace: Workspace, device: str = "auto", place: Place = Place()
) -> tuple[list[Prediction], list[tuple[str, str]]]:
    """Answers for films and folders of films, and the refused ones with their reasons.

    Raises:
        DataError: nothing to predict.
        TrackingError: no such model.
    """
    paths = list(film_files(films))
    loaded = registry.load(connect(place.tracking(workspace), workspace), model, resolve_device(device))
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
