"""The one composition root: train one config, track it, save its adapter, record its fp32 scores.

Knows no Optuna: who wants to prune passes a ``watch`` that raises :class:`~xray_opt.errors.Pruned`.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from xray_opt.adapter import Bundle, load_bundle, make_bundle, save_bundle
from xray_opt.backbone import Base, resolve_device, save_base
from xray_opt.cache import Images
from xray_opt.calibration import probability
from xray_opt.config import Config
from xray_opt.dataset import Pseudonyms
from xray_opt.evaluate import Assessment, assess, predict_logits
from xray_opt.faults import device_faults, disk_faults
from xray_opt.intervals import Interval, Patients, scored
from xray_opt.ledger import keep_known
from xray_opt.metrics import Cases
from xray_opt.objectives import measure
from xray_opt.tracking import Run, Tracking
from xray_opt.trainer import Epoch, Trainer

#: Folder of the adapter bundle among the artifacts of a run.
ADAPTER_ARTIFACT = "adapter"


@dataclass(frozen=True)
class Result:
    """What one finished run gave.

    Attributes:
        run_id: MLflow run; see ``tracking.Run.id`` for what it is while MLflow is away.
        was_waiting: whether it had another name when it was told to ``Job.started``.
        best_epoch: epoch whose weights were kept.
        epochs: every epoch, also those trained before a resume.
        assessment: fp32 validation scores of the saved adapter, at 0.5 and at its own threshold.
        second: what the job's objective measured, if it has one.
        intervals: of F1 at 0.5 and AUC of these validation films (``f1``, ``auc``), over patients. That this training
            may be the best of many they do not know.
        seconds: wall time from first film to last artifact.
    """

    run_id: str
    best_epoch: int
    epochs: tuple[Epoch, ...]
    assessment: Assessment
    seconds: float
    was_waiting: bool = False
    second: float | None = None
    intervals: Mapping[str, Interval] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """One run to do: its settings, its place in the tracking, its checkpoint, and who watches.

    ``earlier`` gives the checkpoints to go on from where it has none yet, see ``trainer.Trainer``; ``upload`` keeps its
    own among the run's artifacts as well; ``watch`` sees every new epoch, ``replay`` those of a resumed checkpoint,
    ``started`` the run's id; ``keep`` is a new folder for a copy of the adapter bundle, its base weights and what tells
    its films; ``objective`` is what else than F1 is measured (see :mod:`xray_opt.objectives`) and logged as
    ``objective.NAME``.
    """

    config: Config
    name: str
    params: Mapping[str, object]
    tags: Mapping[str, str]
    checkpoint: Path | None = None
    earlier: Callable[[], Iterable[Path]] = tuple
    upload: bool = False
    watch: Callable[[Epoch], None] = lambda epoch: None
    replay: Callable[[Epoch], None] = lambda epoch: None
    started: Callable[[str], None] = lambda run_id: None
    say: Callable[[str], None] = lambda line: None
    keep: Path | None = None
    objective: str | None = None


def run_experiment(job: Job, images: Images, base: Base, tracking: Tracking, pseudonyms: Pseudonyms) -> Result:
    """Train and record ``job``; the run's state in MLflow follows from how this ends (see ``tracking.Run``).

    Raises:
        Pruned: from ``job.watch``.
        TrainingError: no result (NaN, memory).
        DeviceFault, DiskFault: the machine failed, which says nothing of the job.
    """
    began = time.monotonic()
    with tracking.run(job.name, job.config, job.params, job.tags) as run, device_faults(), disk_faults():
        job.started(first := run.id)
        trainer = Trainer(job.config, images, base, job.checkpoint, job.say, job.earlier)
        for epoch in trainer.resumed:
            run.log_epoch(epoch)
            job.replay(epoch)
        for epoch in trainer.epochs():
            run.log_epoch(epoch)
            if job.upload and job.checkpoint is not None:
                run.keep_checkpoint(job.checkpoint, epoch.number)
            job.watch(epoch)
        assessment, intervals, second = _record(job, trainer, images, base, run, pseudonyms)
        seconds = time.monotonic() - began
        waited = run.id != first
        return Result(run.id, trainer.best_epoch, trainer.history, assessment, seconds, waited, second, intervals)


@dataclass(frozen=True)
class Saved:
    """An adapter as it was saved, read back and scored in fp32.

    Attributes:
        folder: its bundle.
        logits: (N,) of the validation films.
    """

    network: nn.Module
    bundle: Bundle
    folder: Path
    assessment: Assessment
    logits: NDArray[np.float64]

    def metrics(self) -> dict[str, float]:
        """What a finished run records of it."""
        calibration = self.assessment.calibration
        values = {f"best.{name}": value for name, value in asdict(self.assessment.scores).items()}
        fixed = {"best.threshold": calibration.threshold, "best.temperature": calibration.temperature}
        return values | {"best.epoch": self.bundle.scores["best.epoch"]} | fixed


def save_best(trainer: Trainer, config: Config, images: Images, base: Base, folder: Path) -> Saved:
    """Save the best adapter of a training below ``folder`` and score what was saved; this ends the training.

    It is saved twice: once to be read back and scored, then with the temperature and thresholds found by that.
    """
    draft = make_bundle(base, config, images.side)
    save_bundle(trainer.best(), folder / "draft", draft)
    saved, _ = load_bundle(folder / "draft", base)
    logits = predict_logits(saved, images.val, config.image.size, resolve_device(config.training.device))
    assessment = assess(images.val.labels, logits)
    bundle = _with_scores(draft, assessment, trainer.best_epoch)
    path = save_bundle(saved, folder / ADAPTER_ARTIFACT, bundle)
    return Saved(saved, bundle, path, assessment, logits)


def _record(
    job: Job, trainer: Trainer, images: Images, base: Base, run: Run, pseudonyms: Pseudonyms
) -> tuple[Assessment, dict[str, Interval], float | None]:
    """Save the best adapter, score what was saved in fp32, measure the second objective, log all."""
    with tempfile.TemporaryDirectory(prefix="xray-opt-") as folder:
        saved = save_best(trainer, job.config, images, base, Path(folder))
        run.log_folder(saved.folder, ADAPTER_ARTIFACT)
    if job.keep is not None:
        save_bundle(saved.network, job.keep / ADAPTER_ARTIFACT, saved.bundle)
        save_base(base, job.keep / "base.safetensors")
        keep_known(images.manifest, job.keep)
    probabilities = probability(saved.logits, saved.assessment.calibration.temperature)
    run.log_predictions(images.val.paths, images.val.labels, probabilities, pseudonyms)
    run.log_metrics(saved.metrics())
    found = scored(Cases(images.val.labels, probabilities), Patients(images.val.groups), 0.5)
    intervals = {name: found[name] for name in ("f1", "auc")}
    if job.objective is None:
        return saved.assessment, intervals, None
    second = measure(job.objective, saved.network, saved.bundle, images, resolve_device(job.config.training.device))
    run.log_metrics({f"objective.{job.objective}": second})
    return saved.assessment, intervals, second


def _with_scores(draft: Bundle, assessment: Assessment, epoch: int) -> Bundle:
    scores = {f"val.{name}": value for name, value in asdict(assessment.scores).items()}
    fixed = vars(assessment.calibration)
    return replace(draft, **fixed, scores=scores | {"best.epoch": float(epoch)})
