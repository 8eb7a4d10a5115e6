"""Peer (c): transformers' Trainer and its hyperparameter_search with Optuna behind it."""

from __future__ import annotations

import tempfile
import time
import warnings
from typing import Any

from measure import Values, need, serve, spawned

need("transformers", "accelerate")

import optuna  # noqa: E402  a missing library is reported first
import torch  # noqa: E402
import transformers  # noqa: E402
from common import Clock, Films, Job, Network, device, f1, focal, suggested  # noqa: E402
from torch import Tensor, nn  # noqa: E402


def run(job: Job) -> Values:
    """All trials of a job; a trial's seconds are those of the search over its trials."""
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    clock = Clock()
    with tempfile.TemporaryDirectory(prefix="xray-bench-") as folder:
        trainer = transformers.Trainer(
            model_init=lambda: Model(job),
            args=arguments(job, folder),
            train_dataset=Films(job, "train"),
            eval_dataset=Films(job, "val"),
            data_collator=collate,
            compute_metrics=lambda output: {"f1": f1(output.label_ids, output.predictions)},
            callbacks=[Passes(clock, len(job["train"]))],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        began = time.monotonic()
        best = trainer.hyperparameter_search(
            hp_space=lambda trial: dict(zip(("learning_rate", "weight_decay"), suggested(trial), strict=True)),
            compute_objective=lambda metrics: metrics["eval_f1"],
            n_trials=job["trials"],
            direction="maximize",
            backend="optuna",
            sampler=optuna.samplers.TPESampler(seed=job["seed"]),
        )
        clock.trials.append((time.monotonic() - began) / job["trials"])
    return clock.values(job["trials"], wall_s=time.monotonic() - spawned(), f1=best.objective)


def arguments(job: Job, folder: str) -> transformers.TrainingArguments:
    """The settings of the other peers in transformers' terms: constant rate, no clipping, nothing saved."""
    return transformers.TrainingArguments(
        output_dir=folder,
        num_train_epochs=job["epochs"],
        per_device_train_batch_size=job["batch"],
        per_device_eval_batch_size=job["batch"],
        bf16=job["precision"] == "bf16",
        use_cpu=device(job).type == "cpu",
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        eval_strategy="epoch",
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_num_workers=job["workers"],
        dataloader_persistent_workers=job["workers"] > 0,
        seed=job["seed"],
    )


def collate(films: list[tuple[Tensor, float]]) -> dict[str, Tensor]:
    """A batch by the names of :meth:`Model.forward`."""
    return {"images": torch.stack([film for film, _ in films]), "labels": torch.tensor([label for _, label in films])}


class Model(nn.Module):
    """The network with its loss, as transformers wants it."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.job = job
        self.network = Network(job)

    def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Loss and logits of a batch."""
        logits = self.network(images)
        return {"loss": focal(self.job, logits, labels), "logits": logits.float()}


class Passes(transformers.TrainerCallback):
    """Times training passes; transformers evaluates behind them."""

    def __init__(self, clock: Clock, films: int) -> None:
        self.clock, self.films = clock, films

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        """The pass begins."""
        self.clock.start()

    def on_epoch_end(self, *_: Any, **__: Any) -> None:
        """It is over."""
        self.clock.stop(self.films)


if __name__ == "__main__":
    serve(run)
