"""Scores one model on a split of its own data, or on all films of another folder."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from xray_opt import registry
from xray_opt.calibration import probability
from xray_opt.config import Config, LossConfig, Workspace, override
from xray_opt.dataset import Film, Manifest
from xray_opt.errors import DataError
from xray_opt.intervals import Patients, json_ready
from xray_opt.metrics import Scores, scores
from xray_opt.places import Place
from xray_opt.robustness import MASKS, PERTURBATIONS, Rescored, Robustness, judge, rescore
from xray_opt.scoring.levels import FilmCases, Level, film_cases, levels
from xray_opt.scoring.selecting import Selection, select
from xray_opt.scoring.shift import Shift, shift
from xray_opt.scoring.subgroups import Subgroup, subgroups
from xray_opt.tracking import log_run_file, log_run_metrics

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Evaluation:
    """Scores of one model on one set of films: at 0.5, and at the threshold fixed on validation.

    Attributes:
        image, patient: all scores at ``threshold`` with 95 % intervals.
        left_out: films of another folder that are the model's own, by their split, and under ``same_patient`` other
            films of the same patients; none where the model's own films are not known here.
        robustness: what changed films cost, where that was asked for; all scores are then of the films that could be
            read.
        subgroups: scores of parts of the films.
        shift: of another folder: what is other there than in training.
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
    robustness: Robustness | None = None
    subgroups: tuple[Subgroup, ...] = ()
    shift: Shift | None = None


def evaluate(
    model: str,
    split: str,
    workspace: Workspace,
    data: str | None = None,
    why: str | None = None,
    device: str = "auto",
    place: Place = Place(),
    sensitivity: float | None = None,
    robustness: bool = False,
    progress: Progress | None = None,
) -> Evaluation:
    """Score ``model`` in fp32 on a split of the data it was made on, or on all films of another folder.

    Args:
        model: MLflow model URI or ``runs:/RUN_ID``.
        split: ``train``, ``val``, ``test``, or ``all`` (every film of ``data`` that is not the model's own).
        data: other folder or CSV; with a split of its own data, where that lies now.
        why: the reason for opening ``test``, which is recorded before a label is read.
        place: MLflow store of the model and Optuna storage of its study.
        sensitivity: score at the threshold that reached it on validation; none takes that of best F1.
        robustness: also score under every change of :mod:`xray_opt.robustness`, and log that to the model's run.
        progress: called with (films done, films in all) of that.

    Raises:
        ConfigError: ``test`` without a reason, ``all`` without data or with no films but the model's own, or no
            threshold is known for that sensitivity.
        DataError: a split was asked of data that is not the model's own, or none of its films can be read.
        StudyError: the opening cannot be written to the model's study.
    """
    chosen = select(model, split, workspace, data, why, device, place, sensitivity)
    threshold = chosen.threshold
    if robustness:
        films, cases, suite = _robust(chosen, progress)
    else:
        films, suite = chosen.films, None
        cases = cases_of(chosen.loaded, chosen.manifest, films)
    image, patient = levels(cases, threshold)
    own = cases.films.labels, cases.films.probabilities
    result = Evaluation(
        model=model,
        split=split,
        films=len(films),
        patients=cases.whose.count,
        threshold=threshold,
        at_half=scores(*own),
        at_threshold=scores(*own, threshold),
        image=image,
        patient=patient,
        left_out=chosen.left_out,
        robustness=suite,
        subgroups=subgroups(films, cases.films, threshold),
        shift=shift(chosen.own, chosen.manifest, films) if split == "all" else None,
    )
    if suite is not None:
        _log(chosen, suite)
    chosen.end(image.values("test"))
    return result


def _robust(chosen: Selection, progress: Progress | None) -> tuple[Sequence[Film], FilmCases, Robustness]:
    """The films that can be read, their cases as they are, and what the changes cost; each film is read once."""
    loaded = chosen.loaded
    found = rescore(loaded.predictor, chosen.paths, {**PERTURBATIONS, **MASKS}, progress)
    films = [chosen.films[place] for place in found.kept]
    if not films:
        raise DataError(f"none of these {len(chosen.films)} films can be read: {found.unread[0]}")
    cases = film_cases(films, found.logits[0], loaded.bundle.temperature, loss_of(loaded))
    return films, cases, judged(found, films, loaded.bundle.temperature, chosen.threshold)


def judged(found: Rescored, films: Sequence[Film], temperature: float, threshold: float) -> Robustness:
    """What the changes cost on these films, those that were kept."""
    labels = np.array([film.label for film in films], dtype=np.int64)
    whose = Patients([film.group for film in films])
    probabilities = probability(found.logits, temperature)
    return judge(found.names, tuple(MASKS), probabilities, labels, whose, threshold, found.unread)


def _log(chosen: Selection, suite: Robustness) -> None:
    """The suite as an artifact of the model's run, a few numbers of it as metrics; no run, nothing to log to."""
    run_id = chosen.loaded.run_id
    if not run_id:
        return
    name = chosen.split
    if name == "all":  # films of other folders: each has a file of its own, and no metric
        name = f"outside-{chosen.manifest.sha256[:12]}"
    else:
        log_run_metrics(chosen.connection, run_id, suite.metrics(name))
    # Names of films stay here where the store is elsewhere: there the reasons must do.
    unread = [one if chosen.connection.local else one.partition(": ")[2] for one in suite.unread]
    with tempfile.TemporaryDirectory(prefix="xray-opt-") as folder:
        path = Path(folder) / f"robustness-{name}.json"
        path.write_text(json.dumps(json_ready(asdict(suite) | {"unread": unread}), indent=1) + "\n", encoding="utf-8")
        log_run_file(chosen.connection, run_id, path)


def cases_of(loaded: registry.Loaded, manifest: Manifest, films: Sequence[Film]) -> FilmCases:
    """What a model says of these films of a manifest."""
    logits = loaded.predictor.logits([Path(manifest.root) / film.path for film in films])
    return film_cases(films, logits, loaded.bundle.temperature, loss_of(loaded))


def loss_of(loaded: registry.Loaded) -> LossConfig:
    """The loss that the model was trained with."""
    kept = {name: value for name, value in loaded.bundle.config.items() if name.startswith("loss.")}
    return override(Config(), kept).loss
