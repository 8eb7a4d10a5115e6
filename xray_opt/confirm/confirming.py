"""Trains the best settings of a study anew, with new seeds and on re-drawn splits of train and val; never on test.

Each retraining is a run below the study's own, tagged with the trial that it confirms. A call does what is missing, so
one that was stopped goes on, from the last epoch of the training that was stopped, when it is called again.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xray_opt.cache import Images, redrawn_images
from xray_opt.config import Config, StudyConfig, Workspace, override
from xray_opt.confirm.judging import Candidate, Confirmation, Retrained, judge
from xray_opt.confirm.promoting import EVIDENCE, Promotion, promote_winner
from xray_opt.dataset import Manifest, redrawn
from xray_opt.errors import ConfigError, StudyError, TrainingError
from xray_opt.experiment import Job, run_experiment
from xray_opt.intervals import Patients
from xray_opt.overlap import require_apart
from xray_opt.settling import require_sent
from xray_opt.tracking import PREDICTIONS, child_runs, close_lost, data_tags, prediction_rows
from xray_opt.trainer import discard_checkpoint
from xray_opt.tuning import IDENTITY, StudyRecord, TrialRecord, study_notes
from xray_opt.tuning.storage import one_call
from xray_opt.workers import StudyWatcher, Work, ready

#: Tags of a retraining: the trial it confirms, and which retraining it is (``seed-2``, ``split-1``).
CONFIRMS, WHICH = "xray_opt.confirms", "xray_opt.confirmation"
#: Added to the seed of the search for the training on a re-drawn split: apart from every new seed.
APART = 10_000


@dataclass(frozen=True)
class _Retraining:
    trial: TrialRecord
    kind: str
    number: int

    @property
    def which(self) -> str:
        return f"{self.kind}-{self.number}"

    @property
    def seed(self) -> int:
        return self.number + (APART if self.kind == "split" else 0)


def confirm(
    study: StudyConfig,
    workspace: Workspace,
    top: int = 3,
    seeds: int = 3,
    splits: int = 0,
    promote: bool = False,
    watcher: StudyWatcher = StudyWatcher(),
) -> tuple[Confirmation, Promotion | None]:
    """Retrain the ``top`` settings of a study and judge them by that; the verdict is kept in the study's run.

    Args:
        study: as ``tune`` is given it.
        seeds: new seeds a setting, at least 2, on the study's own split.
        splits: trainings a setting on re-drawn splits by patient of train and val: none, or at least 2.
        promote: make the winner the champion, with the evidence attached.

    Raises:
        ConfigError: numbers that say nothing.
        StudyError: no such study, no complete trial, another call is at work, or there is no winner to promote.
        StoreAway: MLflow, where the retrainings are kept, does not answer now; no training is lost.
    """
    if top < 1 or seeds < 2 or splits == 1 or splits < 0:
        raise ConfigError("confirm needs --top of at least 1, --seeds of at least 2, and --splits 0 or at least 2")
    if not study_notes(study.name, workspace, study.storage):
        raise StudyError(f"no study {study.name} to confirm: run xray-opt tune first")
    with one_call(workspace, study, "confirm", "confirmed"), ready(study, workspace, watcher) as work:
        require_sent(work.tracking, "confirm")
        chosen = _best(work.opened.read(), top)
        if len(chosen) < top:
            which = "on its Pareto front" if study.second else "that were trained to their end"
            watcher.say(f"the study has {len(chosen)} settings {which}: all are confirmed")
        plan = [_Retraining(trial, "seed", number) for number in range(1, seeds + 1) for trial in chosen]
        plan += [_Retraining(trial, "split", number) for number in range(1, splits + 1) for trial in chosen]
        for number in range(1, splits + 1):
            # One that cannot be drawn, or that the base has seen, fails here, and not behind hours of training.
            require_apart(work.base, _redrawn(work, number), work.opened.config.config.model, watcher.say)
        failed = _do_missing(work, plan)
        require_sent(work.tracking, "confirm")
        verdict = _judge(work, chosen, plan, failed)
        _keep(work, verdict)
        return verdict, promote_winner(work, verdict) if promote else None


def _best(record: StudyRecord, top: int) -> list[TrialRecord]:
    """The best complete trials, one a setting; of a study with two objectives those of its front."""
    found: dict[str, TrialRecord] = {}
    for trial in record.front if len(record.objectives) > 1 else record.ranked:
        found.setdefault(json.dumps(dict(trial.params), sort_keys=True), trial)
    if not found:
        raise StudyError("the study has no complete trial to confirm: run xray-opt tune first")
    return list(found.values())[:top]


def _done(retrainings: Sequence[Any]) -> dict[tuple[str, str], Any]:
    """(trial, which) → the first finished run."""
    found: dict[tuple[str, str], Any] = {}
    for run in retrainings:
        if run.info.status == "FINISHED":
            found.setdefault((run.data.tags[CONFIRMS], run.data.tags[WHICH]), run)
    return found


def _retrainings(work: Work) -> list[Any]:
    """The runs of retrainings, oldest first."""
    runs = [run for run in child_runs(work.connection, work.tracking.parent_id) if CONFIRMS in run.data.tags]
    return sorted(runs, key=lambda run: run.info.start_time)


def _do_missing(work: Work, plan: Sequence[_Retraining]) -> dict[int, str]:
    """Train what is not done yet; trial → why one of its trainings gave no result."""
    retrainings = _retrainings(work)
    for run in retrainings:
        if run.info.status == "RUNNING":  # of a killed call: nobody else is at work
            close_lost(work.connection, run.info.run_id)
    done, failed = _done(retrainings), {}
    missing = [one for one in plan if (str(one.trial.number), one.which) not in done]
    if len(missing) < len(plan):
        work.watcher.say(f"{len(plan) - len(missing)} of {len(plan)} retrainings are done already")
    for count, one in enumerate(missing, start=1):
        work.watcher.say(f"retraining {count} of {len(missing)}: trial {one.trial.number}, {one.which}")
        try:
            _train(work, one)
        except TrainingError as error:
            failed[one.trial.number] = f"{one.which} gave no result: {error}"
            work.watcher.say(f"trial {one.trial.number}: {failed[one.trial.number]}")
    return failed


def _train(work: Work, one: _Retraining) -> None:
    config = work.opened.config.settings(dict(one.trial.params))
    config = override(config, {"training.seed": config.training.seed + one.seed})
    images = _images(work, one, config)
    tags = {**work.tags, **data_tags(images.manifest), "xray_opt.role": "confirmation"}
    folder = work.opened.workspace.study_folder(work.opened.config.name) / "confirm"
    checkpoint = folder / f"{work.opened.notes[IDENTITY][:8]}-{one.trial.number:05d}-{one.which}.pt"
    job = Job(
        config=config,
        name=f"confirm-{one.trial.number:03d}-{one.which}",
        params=one.trial.params,
        tags=tags | {CONFIRMS: str(one.trial.number), WHICH: one.which},
        checkpoint=checkpoint,
        watch=lambda epoch: work.watcher.epoch(one.trial.number, epoch),
        say=work.watcher.say,
        objective=work.opened.config.second,
    )
    run_experiment(job, images, work.base, work.tracking, work.pseudonyms)
    discard_checkpoint(checkpoint)


def _images(work: Work, one: _Retraining, config: Config) -> Images:
    images = work.films.at(config)
    if one.kind == "seed":
        return images
    return redrawn_images(images, _redrawn(work, one.number))


def _redrawn(work: Work, number: int) -> Manifest:
    """Split ``number`` of train and val.

    Raises:
        DataError: it cannot be drawn.
    """
    return redrawn(work.images.manifest, work.images.manifest.settings.get("seed", 0) + number + APART)


def _judge(
    work: Work, chosen: Sequence[TrialRecord], plan: Sequence[_Retraining], failed: dict[int, str]
) -> Confirmation:
    done, val = _done(_retrainings(work)), work.images.val
    candidates = []
    for trial in chosen:
        runs: dict[str, list[Retrained]] = {"seed": [], "split": []}
        for one in plan:
            run = done.get((str(one.trial.number), one.which))
            if one.trial.number == trial.number and run is not None:
                called = val_probabilities(work, run.info.run_id) >= 0.5 if one.kind == "seed" else None
                runs[one.kind].append(Retrained(run.info.run_id, float(run.data.metrics["best.f1"]), called))
        kinds = tuple(runs["seed"]), tuple(runs["split"])
        candidates.append(
            Candidate(trial.number, trial.params, trial.value or 0.0, *kinds, failed=failed.get(trial.number))
        )
    films = len(work.images.train), len(val)
    return judge(work.opened.config.name, candidates, val.labels, Patients(val.groups), films)


def val_probabilities(work: Work, run_id: str) -> NDArray[np.float64]:
    """(N,) calibrated probabilities of the validation films, in their order, as a run of the study recorded them.

    Raises:
        StudyError: the run's predictions are of other films.
    """
    with tempfile.TemporaryDirectory(prefix="xray-opt-") as folder:
        rows = prediction_rows(work.tracking.download(run_id, PREDICTIONS, Path(folder)))
    if [int(row["label"]) for row in rows] != work.images.val.labels.tolist():
        raise StudyError(f"the predictions of run {run_id} are not of this study's validation films")
    return np.array([float(row["probability"]) for row in rows])


def _keep(work: Work, verdict: Confirmation) -> None:
    """The verdict as a note of the study, as an artifact and as metrics of its run."""
    plain = verdict.to_dict()
    work.opened.annotate("confirmation", plain)
    work.tracking.log_text(json.dumps(plain, indent=1) + "\n", EVIDENCE)
    if verdict.winner is not None:
        best = verdict.of(verdict.winner)
        values = {"value": best.confirmed.value, "lower": best.lower or 0.0, "gap": best.gap.value}
        work.tracking.log_metrics({f"confirmed.{name}": value for name, value in values.items()})
