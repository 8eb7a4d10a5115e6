"""Compares LoRA with a linear probe, with training everything, and with trivial models, on one split of a study.

On validation unless told otherwise. The test split is opened behind ``finalize`` alone, once, and that is recorded:
what is compared there was chosen and trained before.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from xray_opt import registry
from xray_opt.backbone import resolve_device
from xray_opt.baseline.judging import Contender, Model, compare
from xray_opt.baseline.picture import draw
from xray_opt.baseline.record import Comparison, Row
from xray_opt.baseline.training import STRATEGIES, Trained, best_lora, train_all
from xray_opt.config import Config, StudyConfig, Workspace
from xray_opt.confirm.confirming import val_probabilities
from xray_opt.dataset import Film
from xray_opt.errors import ConfigError, StudyError
from xray_opt.finalize import finals
from xray_opt.intervals import Floats, Interval
from xray_opt.leaderboard import Opening, note_opening, openings
from xray_opt.scoring import FilmCases, SealedTest, cases_of, film_cases, trivial_cases
from xray_opt.tracking import log_run_metrics
from xray_opt.tuning import TrialRecord, storage_url, study_notes
from xray_opt.tuning.storage import one_call
from xray_opt.workers import StudyWatcher, Work, ready

#: What openings by this command are marked with. Name of the record and the pictures among the study's artifacts.
OURS = "baseline"
WHY = "comparison of the strategies behind finalize"


def baseline(
    study: StudyConfig,
    workspace: Workspace,
    seeds: int = 3,
    rates: int = 3,
    split: str = "val",
    why: str = WHY,
    again: bool = False,
    watcher: StudyWatcher = StudyWatcher(),
) -> Comparison:
    """Train what is missing and compare; the record and its picture are kept with the study's run.

    Args:
        study: as ``tune`` is given it.
        seeds: trainings a strategy, at least 2, the same seeds for all.
        rates: learning rates that are tried for each rival of LoRA, at least 1 (LoRA's own).
        split: ``val``, or ``test``, which is opened once and only after ``finalize``.
        why: the reason of that opening.
        again: open test once more although a comparison on it is recorded; that counts.

    Raises:
        ConfigError: numbers that say nothing; the test split before ``finalize``.
        StudyError: no such study, no complete LoRA trial, or another call is at work.
    """
    if seeds < 2 or rates < 1 or split not in ("val", "test"):
        raise ConfigError("baseline needs --seeds of at least 2, --rates of at least 1, and --split val or test")
    if not study_notes(study.name, workspace, study.storage):
        raise StudyError(f"no study {study.name} to compare: run xray-opt tune first")
    if split == "test" and not finals(study.name, workspace, study.storage):
        raise ConfigError(
            "the test split is sealed until the study's choice was finalized: run xray-opt finalize first, so that "
            "nothing is chosen by what is compared here"
        )
    with one_call(workspace, study, "baseline", "compared"), ready(study, workspace, watcher) as work:
        kept = work.opened.notes.get(_note(split))
        if split == "test" and kept and not again and kept["opening"]["scores"]:
            watcher.say(f"opened already, {kept['opening']['when']}: this is the record; --again opens it once more")
            return _completed(work, Comparison.from_dict(kept))
        trial, chosen_by = best_lora(work)
        trained = train_all(work, trial, seeds, rates)
        if split == "test":
            return _on_test(work, trial, chosen_by, trained, (seeds, rates), why)
        cases = {one.strategy: _on_val(work, one) for one in trained}
        found = _compared(work, trial, chosen_by, trained, cases, work.images.manifest.of("val"), (seeds, rates), None)
        _keep(work, found)
        return found


def _on_val(work: Work, one: Trained) -> list[tuple[FilmCases, float]]:
    """What each seed said of the validation films when its training ended, and its threshold."""
    films, loss = work.images.manifest.of("val"), one.config.loss
    found = []
    for run in one.runs:
        metrics = run.data.metrics
        raw = _logit(val_probabilities(work, run.info.run_id)) * metrics["best.temperature"]
        found.append((film_cases(films, raw, metrics["best.temperature"], loss), metrics["best.threshold"]))
    return found


def _logit(probabilities: Floats) -> Floats:
    """Not clipped, as ``calibration.logit`` is: very sure films keep their order, and with it the AUC."""
    with np.errstate(divide="ignore"):
        found: Floats = np.clip(np.log(probabilities) - np.log1p(-probabilities), -745.0, 745.0)
    return found


def _on_test(
    work: Work, trial: TrialRecord, chosen_by: str, trained: Sequence[Trained], asked: tuple[int, int], why: str
) -> Comparison:
    """Open the test split, score every model on it, and keep the record; an opening whose scores were lost goes on."""
    ours = trained[0]
    if ours.failed or not ours.runs:
        raise StudyError(f"the test split stays sealed: there is nothing to compare, as LoRA {ours.failed}")
    device, manifest = resolve_device(work.opened.config.config.training.device), work.images.manifest
    models = {
        one.strategy: [registry.load(work.connection, f"runs:/{run.info.run_id}", device) for run in one.runs]
        for one in trained
    }
    middle = sorted(ours.runs, key=lambda run: run.data.metrics["best.f1"])[(len(ours.runs) - 1) // 2]
    chosen = models["lora"][ours.runs.index(middle)]
    url = storage_url(work.opened.workspace, work.opened.config.storage)
    sealed = SealedTest(chosen, manifest, work.connection, work.opened.workspace, url)
    lost = next((one for one in sealed.openings() if one.by == OURS and not one.scores), None)
    if lost is not None:
        work.watcher.say(f"going on with the opening of {lost.when}, whose scores were lost")
        films, opening = sealed.resume(lost), lost
    else:
        with sealed.alone(work.watcher.say):
            films, opening = sealed.open(why, OURS)
    cases = {
        key: [(cases_of(model, manifest, films), model.bundle.threshold) for model in loaded]
        for key, loaded in models.items()
    }
    found = _compared(work, trial, chosen_by, trained, cases, films, asked, opening)
    _keep(work, found)
    sealed.record(opening, dict(found.opening.scores) if found.opening else {})
    return found


def _completed(work: Work, found: Comparison) -> Comparison:
    """The record; what a kill left open of its opening is written."""
    opening = found.opening
    if opening and any(one.is_that_of(opening) and not one.scores for one in openings(work.opened.read())):
        log_run_metrics(work.connection, opening.run, opening.scores)
        study = work.opened.config
        note_opening(study.name, work.opened.workspace, storage_url(work.opened.workspace, study.storage), opening)
    return found


def _compared(
    work: Work,
    trial: TrialRecord,
    chosen_by: str,
    trained: Sequence[Trained],
    cases: Mapping[str, list[tuple[FilmCases, float]]],
    films: Sequence[Film],
    asked: tuple[int, int],
    opening: Opening | None,
) -> Comparison:
    """The record; ``asked`` are the seeds of a strategy and the learning rates tried for a rival."""
    manifest = work.images.manifest
    trivial = trivial_cases(manifest, manifest, films, trained[0].config.loss)
    said = {one.strategy: cases[one.strategy] for one in trained if not one.failed}
    said |= {name: [(whole, threshold)] for name, (threshold, whole) in trivial.items()}
    contenders = [
        Contender(key, tuple(Model(whole.films, threshold) for whole, threshold in each)) for key, each in said.items()
    ]
    whose = next(iter(trivial.values()))[1].whose
    scores, gains = compare(contenders, whose, STRATEGIES[0])
    rows = [_row(one, scores.get(one.strategy, {}), cases[one.strategy]) for one in trained]
    others = sorted(trivial, key=lambda name: -np.nan_to_num(scores[name]["auc"].value))
    rows += [Row(name, scores[name], (trivial[name][0],)) for name in others]
    if opening is not None:
        values = {f"test.{name}": one.value for name, one in scores[STRATEGIES[0]].items() if one.value == one.value}
        opening = Opening(**{**vars(opening), "scores": values})
    split = "val" if opening is None else "test"
    study = work.opened.config.name
    sizes = len(films), whose.count
    seeds, rates = asked
    return Comparison(study, split, trial.number, chosen_by, seeds, *sizes, tuple(rows), gains, opening, rates)


def _row(one: Trained, scores: Mapping[str, Interval], said: Sequence[tuple[FilmCases, float]]) -> Row:
    config: Config = one.config
    return Row(
        one.strategy,
        scores,
        tuple(threshold for _, threshold in said),
        config.optimizer.learning_rate,
        one.trainable,
        one.seconds,
        tuple(run.info.run_id for run in one.runs),
        one.failed,
    )


def _keep(work: Work, found: Comparison) -> None:
    """The record as a note of the study first, then as artifacts and metrics of its run, with a picture."""
    plain, name = found.to_dict(), f"{OURS}-{found.split}"
    work.opened.annotate(_note(found.split), plain)
    work.tracking.log_text(json.dumps(plain, indent=1) + "\n", f"{name}.json")
    with tempfile.TemporaryDirectory(prefix="xray-opt-") as folder:
        for path in draw(found, Path(folder), name):
            work.tracking.log_file(path)
    work.tracking.log_metrics(
        {
            f"{OURS}.{found.split}.{row.key}.{score}": row.scores[score].value
            for row in found.rows
            if row.key in STRATEGIES and row.scores
            for score in ("f1", "auc")
            if row.scores[score].value == row.scores[score].value  # NaN is no metric
        }
    )


def _note(split: str) -> str:
    return f"{OURS}_{split}"
