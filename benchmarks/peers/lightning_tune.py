"""Peer (b): Lightning, with Optuna's pruning callback from optuna-integration."""

from __future__ import annotations

import logging
import time
import warnings
from typing import Any

from measure import Values, need, serve, spawned

need("lightning", "optuna_integration")

import lightning  # noqa: E402  a missing library is reported first
import torch  # noqa: E402
from common import Clock, Job, Network, device, f1, focal, loader, search, suggested  # noqa: E402
from optuna_integration import PyTorchLightningPruningCallback  # noqa: E402
from torch import Tensor  # noqa: E402


def run(job: Job) -> Values:
    """All trials of a job."""
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    clock = Clock()
    best = search(job, lambda trial: objective(job, clock, trial))
    return clock.values(job["trials"], wall_s=time.monotonic() - spawned(), f1=best)


def objective(job: Job, clock: Clock, trial: Any) -> float:
    """Train one network; its last validation F1."""
    with clock.trial():
        module = Module(job, *suggested(trial))
        module.train()
        trainer = lightning.Trainer(
            max_epochs=job["epochs"],
            accelerator="gpu" if device(job).type == "cuda" else "cpu",
            devices=1,
            precision="bf16-mixed" if job["precision"] == "bf16" else "32-true",
            callbacks=[PyTorchLightningPruningCallback(trial, monitor="val_f1"), Passes(clock, len(job["train"]))],
            num_sanity_val_steps=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, loader(job, "train"), loader(job, "val"))
        return float(trainer.callback_metrics["val_f1"])


class Passes(lightning.Callback):
    """Times training passes; Lightning validates within its training epoch."""

    def __init__(self, clock: Clock, films: int) -> None:
        self.clock, self.films = clock, films

    def on_train_epoch_start(self, *_: Any) -> None:
        """The pass begins."""
        self.clock.start()

    def on_validation_start(self, *_: Any) -> None:
        """It is over."""
        self.clock.stop(self.films)


class Module(lightning.LightningModule):
    """The network in Lightning's terms."""

    def __init__(self, job: Job, rate: float, decay: float) -> None:
        super().__init__()
        self.job, self.rate, self.decay = job, rate, decay
        self.network = Network(job)
        self.truth: list[float] = []
        self.found: list[float] = []

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        """Loss of a batch."""
        return focal(self.job, self.network(batch[0]), batch[1])

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        """Collect logits."""
        self.found += self.network(batch[0]).float().tolist()
        self.truth += batch[1].tolist()

    def on_validation_epoch_end(self) -> None:
        """F1 of all that was collected."""
        self.log("val_f1", f1(self.truth, self.found))
        self.truth, self.found = [], []

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW over what is trained."""
        return torch.optim.AdamW(self.network.trained(), lr=self.rate, weight_decay=self.decay)


if __name__ == "__main__":
    serve(run)
