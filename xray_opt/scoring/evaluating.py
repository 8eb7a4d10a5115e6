"""Scores one model on a split of its own data, or on all films of another folder."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xray_opt import registry
from xray_opt.calibration import probability
from xray_opt.config import Config, LossConfig, Workspace, override
from xray_opt.dataset import LABELS, Film, Manifest
from xray_opt.errors import DataError, TrackingError
from xray_opt.intervals import Patients, json_ready
from xray_opt.ledger import OUTSIDE_RECORDS, TRIVIAL_RECORD
from xray_opt.metrics import Scores, scores
from xray_opt.mlflow_client import Connection
from xray_opt.places import Place
from xray_opt.robustness import MASKS, PERTURBATIONS, Rescored, Robustness, judge, rescore
from xray_opt.scoring.levels import FilmCases, Level, film_cases, levels
from xray_opt.scoring.outside import Elsewhere
from xray_opt.scoring.selecting import Selection, select
from xray_opt.scoring.shift import Shift, shift
from xray_opt.scoring.subgroups import Subgroup, subgroups
from xray_opt.scoring.trivial import Baseline, Beside, beside
from xray_opt.scoring.trivial_record import trivial_record
from xray_opt.tracking import log_run_json, log_run_metrics, tag_run

log = logging.getLogger(__name__)
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Evaluation:
    """Scores of one model on one set of films: at 0.5, and at the threshold fixed on validation.

    Attributes:
        image, patient: all scores at ``threshold`` with 95 % intervals.
        left_out: films of another folder that are the model's own, by their split, under ``same_patient`` other films
            of the same patients, under ``of_a_sealed_test`` films of any sealed test split, and under ``unusable``
            files that cannot be used.
        own_known: whether the model's own films are known here; where not, some may be among these.
        looks: how often these test films were looked at by now; none where no sealed film is among them.
        robustness: what changed films cost, where that was asked for; all scores are then of the films that could be
            read.
        subgroups: scores of parts of the films.
        shift: of another folder: what is other there than in training.
        baselines: models that look at no lungs, on the same films, best AUC first; where there are none
            ``no_baselines`` says why.
        classes: what the model calls the negative and the positive class.
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
    left_out: Mapping[str, int] = field(default_factory=dict)
    own_known: bool = True
    looks: int | None = None
    robustness: Robustness | None = None
    subgroups: tuple[Subgroup, ...] = ()
    shift: Shift | None = None
    baselines: tuple[Baseline, ...] = ()
    no_baselines: str = ""
    classes: tuple[str, str] = LABELS


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
    baselines: bool = True,
    elsewhere: Elsewhere = Elsewhere(),
) -> Evaluation:
    """Score ``model`` in fp32 on a split of the data it was made on, or on all films of another folder.

    Args:
        model: MLflow model URI or ``runs:/RUN_ID``.
        split: ``train``, ``val``, ``test``, or ``all`` (every film of ``data`` that is not the model's own).
        data: other folder or CSV; with a split of its own data, where that lies now.
        why: the reason for opening ``test``, which is recorded before a label is read; with ``all``, for taking in
            films that stand in any sealed test split, which are left out otherwise.
        place: MLflow store of the model and Optuna storage of its study.
        sensitivity: score at the threshold that reached it on validation; none takes that of best F1.
        robustness: also score under every change of :mod:`xray_opt.robustness`, and log that to the model's run.
        progress: called with (films done, films in all) of that.
        baselines: fit trivial models to the training films and score them beside the model; each of these films is read
            for that (10 ms of a processor where it is of native size). Those on validation are kept in the model's
            run.
        elsewhere: with ``all``, how that folder is read.

    Raises:
        ConfigError: ``test`` without a reason, ``all`` without data or with no films but the model's own, no
            threshold is known for that sensitivity, or ``elsewhere`` without ``all``.
        DataError: a split was asked of data that is not the model's own, or none of its films can be read.
        StudyError: the opening cannot be written to the model's study.
    """
    chosen = select(model, split, workspace, data, why, device, place, sensitivity, elsewhere)
    if robustness:
        films, cases, suite = _robust(chosen, progress)
    else:
        films, suite = chosen.films, None
        cases = cases_of(chosen.loaded, chosen.manifest, films)
    scored = levels(cases, chosen.threshold)
    chosen.end(scored[0].values("test"))  # before what takes long: an opening keeps its scores
    trivial = Beside(why="left out, as asked")
    if baselines:
        trivial = beside(chosen.own, chosen.manifest, films, cases, chosen.threshold, loss_of(chosen.loaded))
    result = _scored(model, chosen, films, cases, scored, suite, trivial)
    _log(chosen, result)
    return result


def _scored(
    model: str,
    chosen: Selection,
    films: Sequence[Film],
    cases: FilmCases,
    scored: tuple[Level, Level],
    suite: Robustness | None,
    trivial: Beside,
) -> Evaluation:
    image, patient = scored
    own = cases.films.labels, cases.films.probabilities
    return Evaluation(
        model=model,
        split=chosen.split,
        films=len(films),
        patients=cases.whose.count,
        threshold=chosen.threshold,
        at_half=scores(*own),
        at_threshold=scores(*own, chosen.threshold),
        image=image,
        patient=patient,
        left_out=chosen.left_out,
        own_known=chosen.own_known,
        looks=chosen.looks,
        robustness=suite,
        subgroups=subgroups(films, cases.films, chosen.threshold),
        shift=shift(chosen.own, chosen.manifest, films) if chosen.split == "all" else None,
        baselines=trivial.models,
        no_baselines=trivial.why,
        classes=chosen.loaded.bundle.classes,
    )


def _log(chosen: Selection, result: Evaluation) -> None:
    """What goes to the model's run, besides the scores of the test; no run, nothing to log to."""
    run, abroad = chosen.loaded.run_id, chosen.split == "all"
    if run and result.robustness is not None:
        name = outside_name(chosen.manifest) if abroad else chosen.split
        log_robustness(chosen.connection, run, name, result.robustness)
    if run and abroad:
        _log_outside(chosen, result)
    usual = chosen.threshold == chosen.loaded.bundle.threshold and result.films == len(chosen.films)
    if run and chosen.split == "val" and result.baselines and usual:
        _log_trivial(chosen, result)


def _log_trivial(chosen: Selection, result: Evaluation) -> None:
    """What the model gains over trivial ones on the validation films, for the report; the scores do not hang on it."""
    try:
        record = trivial_record(result.image, result.baselines)
        log_run_json(chosen.connection, chosen.loaded.run_id, TRIVIAL_RECORD, record)
    except TrackingError as error:
        log.warning("the gain over trivial models was not kept with the model's run: %s", error)


def outside_name(manifest: Manifest) -> str:
    """What a set of other people's films is called: by its content, as names of folders may tell whose they are."""
    return f"{OUTSIDE_RECORDS}{manifest.sha256[:12]}"


def _log_outside(chosen: Selection, result: Evaluation) -> None:
    """What other people's films said of the model, as an artifact of its run; the report shows it."""
    record = asdict(replace(result, robustness=None)) | {
        "set": chosen.manifest.sha256[:12],
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if not chosen.connection.local:  # behind the colon films may be named
        record["no_baselines"] = result.no_baselines.partition(":")[0]
        if result.shift is not None:
            record["shift"]["why"] = result.shift.why.partition(":")[0]
    log_run_json(chosen.connection, chosen.loaded.run_id, f"{outside_name(chosen.manifest)}.json", json_ready(record))


def _robust(chosen: Selection, progress: Progress | None) -> tuple[Sequence[Film], FilmCases, Robustness]:
    """The films that can be read, their cases as they are, and what the changes cost; each film is read once."""
    loaded = chosen.loaded
    films, plain, suite = changed_films(loaded, chosen.paths, chosen.films, chosen.threshold, progress)
    cases = film_cases(films, plain, loaded.bundle.temperature, loss_of(loaded))
    return films, cases, suite


def changed_films(
    loaded: registry.Loaded,
    paths: Sequence[Path],
    films: Sequence[Film],
    threshold: float,
    progress: Progress | None = None,
) -> tuple[Sequence[Film], NDArray[np.float64], Robustness]:
    """Films that can be read, their logits as they are, and what the changes cost.

    Raises:
        DataError: none of them can be read.
    """
    found = rescore(loaded.predictor, paths, {**PERTURBATIONS, **MASKS}, progress)
    kept = [films[place] for place in found.kept]
    if not kept:
        raise DataError(f"none of these {len(films)} films can be read: {found.unread[0]}")
    return kept, found.logits[0], judged(found, kept, loaded.bundle.temperature, threshold)


def judged(found: Rescored, films: Sequence[Film], temperature: float, threshold: float) -> Robustness:
    """What the changes cost on these films, those that were kept."""
    labels = np.array([film.label for film in films], dtype=np.int64)
    whose = Patients([film.group for film in films])
    probabilities = probability(found.logits, temperature)
    return judge(found.names, tuple(MASKS), probabilities, labels, whose, threshold, found.unread)


def log_robustness(connection: Connection, run_id: str, name: str, suite: Robustness) -> None:
    """The suite as an artifact of the model's run; of its own splits also a few numbers as metrics.

    The worst case of films that no training saw is told by a tag of the run, and of the versions registered from it.
    """
    if not name.startswith(OUTSIDE_RECORDS):
        log_run_metrics(connection, run_id, suite.metrics(name))
    if name in ("val", "test"):
        tag, worst = f"{registry.ROBUST}{name}.worst", suite.told()
        tag_run(connection, run_id, tag, worst)
        registry.tag_versions(connection, run_id, {tag: worst})
    # Names of films stay here where the store is elsewhere: there the reasons must do.
    unread = [one if connection.local else one.partition(": ")[2] for one in suite.unread]
    record = json_ready(asdict(suite) | {"unread": unread})
    log_run_json(connection, run_id, f"robustness-{name}.json", record)


def cases_of(loaded: registry.Loaded, manifest: Manifest, films: Sequence[Film]) -> FilmCases:
    """What a model says of these films of a manifest."""
    logits = loaded.predictor.logits([Path(manifest.root) / film.path for film in films])
    return film_cases(films, logits, loaded.bundle.temperature, loss_of(loaded))


def loss_of(loaded: registry.Loaded) -> LossConfig:
    """The loss that the model was trained with."""
    kept = {name: value for name, value in loaded.bundle.config.items() if name.startswith("loss.")}
    return override(Config(), kept).loss
