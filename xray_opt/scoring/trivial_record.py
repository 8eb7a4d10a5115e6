"""Models that look at no lungs beside a model on its validation films: a record in the model's run, without names.

``evaluate`` keeps it, and a report makes it where none is kept: from the validation predictions that the run recorded,
so that no network is needed, and the training films, if they lie here.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xray_opt.calibration import logit
from xray_opt.config import LossConfig, Workspace
from xray_opt.dataset import Film, Manifest, Pseudonyms, in_threads
from xray_opt.errors import DataError
from xray_opt.intervals import json_ready
from xray_opt.mlflow_client import Connection
from xray_opt.scoring.levels import FilmCases, Level, film_cases, levels
from xray_opt.scoring.outside import own_manifests
from xray_opt.scoring.trivial import Baseline, beside
from xray_opt.tracking import MANIFEST, PREDICTIONS, prediction_rows, run_file

Say = Callable[[str], None]
LOSS = "loss"


def trivial_record(ours: Level, models: Sequence[Baseline]) -> dict[str, Any]:
    """The record, JSON-ready: the model's own scores, and each trivial model's with the gains over it.

    Without the loss: a run keeps probabilities, of which a very sure film's logit cannot be had back.
    """
    plain = [{**asdict(one), "image": _plain(one.image), "gains": _without(asdict(one)["gains"])} for one in models]
    made = datetime.now(UTC).isoformat(timespec="seconds")
    record: dict[str, Any] = json_ready({"made": made, "split": "val", "image": _plain(ours), "models": plain})
    return record


def _plain(level: Level) -> dict[str, Any]:
    found = asdict(level)
    return found | {"scores": _without(found["scores"])}


def _without(scores: Mapping[str, Any]) -> dict[str, Any]:
    return {name: one for name, one in scores.items() if name != LOSS}


def recorded_trivial(
    connection: Connection, run_id: str, tags: Mapping[str, str], threshold: float, workspace: Workspace, say: Say
) -> dict[str, Any]:
    """The record made of a run's own validation predictions; only films of train and val are read.

    Args:
        tags: of the run.
        threshold: of the model, for its F1.
        say: told before films are read, which takes half a minute for 5,000 of native size.

    Raises:
        DataError: why it cannot be had; behind a colon films and folders may be named.
    """
    with tempfile.TemporaryDirectory(prefix="xray-opt-") as folder:
        path = run_file(connection, run_id, PREDICTIONS, Path(folder))
        if path is None:
            raise DataError("the model's run keeps no validation predictions")
        rows = prediction_rows(path)
    own = _here(own_manifests(tags.get(MANIFEST), run_id, connection, workspace))
    films = own.of("val")
    cases = _cases(films, _probabilities(rows, films, workspace), LossConfig())
    say(f"reading {len(own.of('train')) + len(films)} films: what is told without looking at lungs is not recorded yet")
    _require_same(own)
    found = beside(own, own, films, cases, threshold, LossConfig())
    if found.why:
        raise DataError(found.why)
    return trivial_record(levels(cases, threshold)[0], found.models)


def _here(manifests: Sequence[Manifest]) -> Manifest:
    """Of these manifests of one split the one whose films of train and val all lie where it says."""
    gone = {place: _gone(one) for place, one in enumerate(manifests)}
    if not gone:
        raise DataError("the films that the model was made on are not known here")
    least = min(gone, key=lambda place: len(gone[place]))
    own, lost = manifests[least], gone[least]
    if lost:
        films = len(own.of("train")) + len(own.of("val"))
        some = f"{len(lost)} of {films} films of train and val are not here"
        words = "the training films are not here" if len(lost) == films else some
        raise DataError(f"{words}: {lost[0]} in {own.root}")
    return own


def _gone(own: Manifest) -> list[str]:
    return [film.path for film in own.of("train") + own.of("val") if not Path(own.root, film.path).is_file()]


def _require_same(own: Manifest) -> None:
    """Raises DataError where a file is not that of the study any more: its place alone does not tell."""

    def differs(film: Film) -> bool:
        try:
            return hashlib.sha256(Path(own.root, film.path).read_bytes()).hexdigest() != film.sha256
        except OSError:
            return True

    films = own.of("train") + own.of("val")
    other = [film.path for film, yes in zip(films, in_threads(differs, films, None), strict=True) if yes]
    if other:
        are = "of these films is not that" if len(other) == 1 else "of these films are not those"
        raise DataError(f"{len(other)} {are} of the study any more: {other[0]} in {own.root}")


def _probabilities(
    rows: Sequence[Mapping[str, str]], films: Sequence[Film], workspace: Workspace
) -> NDArray[np.float64]:
    """(N,) recorded probabilities of N films, which the run names by their paths or by pseudonyms of this workspace."""
    told = {row["film"]: row for row in rows}
    names = [film.path for film in films]
    if not told.keys() & set(names) and (workspace.data / "salt").is_file():
        names = list(map(Pseudonyms(workspace).film, names))
    same = told.keys() == set(names)
    if not same or any(int(told[name]["label"]) != film.label for name, film in zip(names, films, strict=True)):
        raise DataError("the run's validation predictions are not of the films that are known here")
    return np.array([float(told[name]["probability"]) for name in names])


def _cases(films: Sequence[Film], probabilities: NDArray[np.float64], loss: LossConfig) -> FilmCases:
    """The cases of recorded probabilities, which stay as they are to the last bit."""
    found = film_cases(films, logit(probabilities), 1.0, loss)
    return replace(found, films=replace(found.films, probabilities=probabilities))
