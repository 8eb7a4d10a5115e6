"""One training run as a generator of epochs.

Every random choice of an epoch (order, augmentation, dropout) follows from ``training.seed`` and the epoch's number
alone, so a run that is resumed from its checkpoint equals one that never stopped, and no global random state is
read or left changed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from xray_opt.adapter import attach, restore, set_mode, trainable_state
from xray_opt.augment import Augment
from xray_opt.backbone import Base, resolve_device, resolve_precision
from xray_opt.cache import Images
from xray_opt.calibration import probability
from xray_opt.config import Config, OptimizerConfig
from xray_opt.errors import ConfigError, ModelError, NotFinite, OutOfMemory, TrainingError, one_line
from xray_opt.faults import SHORTAGES, of_the_machine, out_of_memory
from xray_opt.feed import feed
from xray_opt.loss import FocalLoss
from xray_opt.metrics import scores
from xray_opt.trainer.checkpoint import Checkpoint, State, identity
from xray_opt.trainer.choice import choose
from xray_opt.trainer.records import Epoch, beats, stale
from xray_opt.trainer.statistics import BATCH, reestimate
from xray_opt.trainer.step import Stepper
from xray_opt.trainer.validation import validation_logits

#: Steps between two looks at the loss: each look waits for the device.
STEPS_A_LOOK = 16


class Trainer:
    """Trains one configuration on ``images.train`` and validates on ``images.val`` after every epoch.

    Where ``checkpoint`` is given, each epoch is written there before it is yielded, and a trainer made with the same
    path, settings, base and films goes on behind it: what was trained before stands in ``resumed``. So a watcher that
    dies while it looks at an epoch finds that epoch in ``resumed``, once. Where there is no such file ``earlier`` is
    asked for others to go on from, best first; they are only read.

    The best epoch has the highest validation F1 at 0.5, among equals the lowest validation loss. Early stopping and
    the plateau watch F1 alone. The last batch of an epoch may be short; where BatchNorm trains and one film would be
    left alone, it joins the batch before it.

    Attributes:
        network: the network in training.
        device: where it trains.
        resumed: epochs read from the checkpoint.
        history: all epochs so far.

    Raises:
        TrainingError: the checkpoint belongs to another training, or there are no films.
        ConfigError: BatchNorm is to be trained on batches of one film.
    """

    def __init__(
        self,
        config: Config,
        images: Images,
        base: Base,
        checkpoint: Path | None = None,
        say: Callable[[str], None] = lambda line: None,
        earlier: Callable[[], Iterable[Path]] = tuple,
    ) -> None:
        _check(config, images)
        self.config = config
        self.device = resolve_device(config.training.device)
        # On two AVX2 cores at 64 px channels_last gave 1.3 times the films a second, so it is for the CPU as well.
        network = attach(base, config).to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.network: nn.Module = network
        self.history: tuple[Epoch, ...] = ()
        self._images = images
        self._base_sha256 = base.sha256
        self._augment = Augment(config.augment, config.image.size)
        # Of validation films: their labels are not smoothed.
        self._loss = FocalLoss(config.loss.alpha, config.loss.gamma)
        self._optimizer = make_optimizer(self.network, config.optimizer)
        self._plateau = make_plateau(self._optimizer, config)
        self._stepper = self._make_stepper(say)
        self._best: dict[str, Tensor] = {}
        self._done = False
        self._checkpoint = self._open_checkpoint(base, checkpoint, say, earlier)
        self.resumed: tuple[Epoch, ...] = self.history

    @property
    def best_epoch(self) -> int:
        """Number of the best epoch so far, 0 before the first."""
        return max((epoch.number for epoch in self.history if epoch.is_best), default=0)

    @property
    def micro_batch(self) -> int:
        """Films a forward pass, as memory allowed so far."""
        return self._stepper.micro_batch

    def epochs(self) -> Iterator[Epoch]:
        """Train and yield one new epoch after the other, until their number or early stopping ends it.

        Raises:
            NotFinite: the loss became NaN or infinite.
            OutOfMemory: not even one film at a time fits.
        """
        training = self.config.training
        while not self._done and len(self.history) < training.epochs:
            if stale(self.history) >= training.early_stopping_patience:
                return
            epoch = self._epoch(len(self.history) + 1)
            self._remember(epoch)
            yield epoch

    def best(self) -> nn.Module:
        """The network with the weights of the best epoch, in evaluation mode. This ends the training.

        Raises:
            TrainingError: no epoch was trained.
        """
        if not self.history:
            raise TrainingError("no epoch was trained, so there is no best one; run epochs() to its end first")
        self._done = True
        restore(self.network, self._best)
        return self.network.eval()

    def _epoch(self, number: int) -> Epoch:
        began = time.perf_counter()
        rate = float(self._optimizer.param_groups[0]["lr"])
        try:
            train_loss = self._train(number)
            trained = time.perf_counter() - began
            if self._trains_statistics:
                size, seed = self.config.image.size, seeds(self.config.training.seed, number)[0]
                scarce = self.micro_batch < self.config.training.batch_size
                batch = self.micro_batch if scarce else BATCH
                reestimate(self.network, self._images.train, size, self.device, seed, batch)
            logit = validation_logits(
                self.network, self._images.val, self.config.image.size, self.device, self._base_sha256
            )
        except SHORTAGES as error:
            if not out_of_memory(error):
                raise
            raise OutOfMemory(f"memory of {self.device} ran out in epoch {number}; lower image.size") from error
        labels = self._images.val.labels
        val_loss = float(self._loss(torch.from_numpy(logit), torch.from_numpy(labels).double()))
        if not np.isfinite(val_loss):
            raise NotFinite(f"validation loss is {val_loss} after epoch {number}; lower optimizer.learning_rate")
        val = scores(labels, probability(logit))
        best = beats(val.f1, val_loss, self.history)
        speed = len(self._images.train) / trained
        return Epoch(number, train_loss, val_loss, val, rate, time.perf_counter() - began, best, speed)

    def _train(self, number: int) -> float:
        """One pass over the training films; their mean loss."""
        order_seed, augment_seed, dropout_seed = seeds(self.config.training.seed, number)
        generator = torch.Generator().manual_seed(augment_seed)
        batches = self._batches(np.random.default_rng(order_seed))
        losses: list[Tensor] = []
        set_mode(self.network, True)
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(dropout_seed)
            for pixels, targets in feed(self._images.train, self.device).batches(batches):
                losses.append(self._stepper.step(self._augment(pixels, generator), targets))
                if len(losses) % STEPS_A_LOOK == 0:
                    _look(losses, number)
        return float(np.average(_look(losses, number), weights=[len(indices) for indices in batches]))

    def _batches(self, chance: np.random.Generator) -> list[NDArray[np.int64]]:
        """A new order of all films in batches; the last may be short, but BatchNorm never trains on one film alone."""
        order = chance.permutation(len(self._images.train))
        size = self.config.training.batch_size
        starts = list(range(size, len(order), size))
        if starts and self._trains_statistics and len(order) - starts[-1] == 1:
            starts.pop()
        return np.split(order, starts)

    @property
    def _trains_statistics(self) -> bool:
        return self.config.model.batch_norm == "train"

    def _make_stepper(self, say: Callable[[str], None]) -> Stepper:
        training = self.config.training
        precision = resolve_precision(training.precision, self.device)
        gradients = choose(self.network, self.config, precision, self.device, self._base_sha256, say)
        micro = training.micro_batch or training.batch_size
        return Stepper(gradients, self._optimizer, micro, self._trains_statistics, say)

    def _remember(self, epoch: Epoch) -> None:
        """What an epoch changes for the next ones, and the checkpoint of it all."""
        self._plateau.step(epoch.val.f1)
        self.history = (*self.history, epoch)
        current = trainable_state(self.network)
        # A variance that overflowed gives finite losses; what is restored later must be finite.
        if wrong := [name for name, value in current.items() if not torch.isfinite(value).all()]:
            raise NotFinite(f"{wrong[0]} is not finite after epoch {epoch.number}; lower optimizer.learning_rate")
        if epoch.is_best:
            self._best = current
        if self._checkpoint:
            self._checkpoint.save(self._state(current))

    def _state(self, network: dict[str, Tensor]) -> State:
        return {
            "epochs": [epoch.plain() for epoch in self.history],
            "network": network,
            "best": self._best,
            "optimizer": self._optimizer.state_dict(),
            "plateau": self._plateau.state_dict(),
            "micro_batch": self._stepper.micro_batch,
        }

    def _open_checkpoint(
        self, base: Base, path: Path | None, say: Callable[[str], None], earlier: Callable[[], Iterable[Path]]
    ) -> Checkpoint | None:
        if path is None:
            return None
        own = identity(self.config, base.sha256, self._images.manifest.sha256, self._images.side)
        checkpoint = Checkpoint(path, own, say, earlier)
        if (state := checkpoint.load()) is not None:
            try:
                self._resume(state)
            except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, ModelError) as error:
                if of_the_machine(error):  # says nothing of the file
                    raise
                raise TrainingError(
                    f"checkpoint {checkpoint.found} cannot be resumed from ({one_line(error)}); remove the file to "
                    "start anew"
                ) from error
            say(f"resuming behind epoch {len(self.history)} of {checkpoint.found}")
        return checkpoint

    def _resume(self, state: dict[str, Any]) -> None:
        restore(self.network, state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._plateau.load_state_dict(state["plateau"])
        self._stepper.micro_batch = state["micro_batch"]
        self._best = state["best"]
        self.history = tuple(Epoch.from_plain(values) for values in state["epochs"])


def make_optimizer(network: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over what is trained; no weight decay on biases and other vectors, BatchNorm's included."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in trained if parameter.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [parameter for parameter in trained if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=config.learning_rate, fused=True)


def make_plateau(optimizer: torch.optim.Optimizer, config: Config) -> torch.optim.lr_scheduler.ReduceLROnPlateau:
    """The rate times ``scheduler.factor`` once F1 has not risen for more than ``scheduler.patience`` epochs."""
    scheduler = config.scheduler
    return torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer,
        mode="max",
        factor=scheduler.factor,
        patience=scheduler.patience,
        threshold=0.0,
        threshold_mode="abs",
        eps=0.0,
    )


def seeds(seed: int, epoch: int) -> tuple[int, int, int]:
    """Independent seeds of order, augmentation and dropout of one epoch."""
    order, augment, dropout = np.random.SeedSequence([abs(seed), int(seed < 0), epoch]).generate_state(3).tolist()
    return order, augment, dropout


def _check(config: Config, images: Images) -> None:
    for split in (images.train, images.val):
        if not len(split):
            raise TrainingError(f"the split {split.name} has no films; prepare the data with other fractions")
    if config.model.batch_norm == "train" and len(images.train) < 2:
        raise ConfigError("model.batch_norm=train needs at least 2 training films; raise data.train_films")


def _look(losses: list[Tensor], epoch: int) -> NDArray[np.float64]:
    """The losses of an epoch so far, refused where one is not finite."""
    values = torch.stack(losses).cpu().double().numpy()
    if (wrong := np.flatnonzero(~np.isfinite(values))).size:
        loss, step = values[wrong[0]], wrong[0] + 1
        raise NotFinite(f"training loss is {loss} in epoch {epoch}, step {step}; lower optimizer.learning_rate")
    return values
