"""What the plain peers share: the data set, the network and the loss that a user would write, and the clock."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from measure import Values, spawned
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors.torch import load_file
from sklearn.metrics import f1_score
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.models import efficientnet_v2_s
from torchvision.ops import sigmoid_focal_loss

Job = dict[str, Any]
#: Passes of a trial that are not counted where there are more: in the first a DataLoader's workers are started, in the
#: second this process copies, page by page, the memory that validation's workers were forked from.
WARM_UP = 2
_NORMALIZE = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Films(Dataset):
    """JPEG files through PIL and torchvision's transforms: (3, s, s) float and its label."""

    def __init__(self, job: Job, split: str) -> None:
        self.root = Path(job["root"])
        self.films = job[split]
        size = (job["size"], job["size"])
        steps = [transforms.Resize(size)]
        if split == "train":
            scale = (job["augment.scale_min"], job["augment.scale_max"])
            ratio = (job["augment.ratio_min"], job["augment.ratio_max"])
            steps = [
                transforms.RandomResizedCrop(size, scale=scale, ratio=ratio),
                transforms.RandomHorizontalFlip(job["augment.flip"]),
                transforms.RandomRotation(job["augment.rotation"]),
            ]
        self.transform = transforms.Compose([*steps, transforms.ToTensor(), _NORMALIZE])

    def __len__(self) -> int:
        return len(self.films)

    def __getitem__(self, index: int) -> tuple[Tensor, float]:
        path, label = self.films[index]
        with Image.open(self.root / path) as film:
            return self.transform(film.convert("RGB")), float(label)


def loader(job: Job, split: str) -> DataLoader:
    """Worker processes that live as long as the loader."""
    workers = job["workers"]
    return DataLoader(
        Films(job, split),
        batch_size=job["batch"],
        shuffle=split == "train",
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=device(job).type == "cuda",
    )


class Network(nn.Module):
    """EfficientNetV2-S with LoRA by peft; BatchNorm may stay in evaluation mode."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.frozen = job["batch_norm"] == "frozen"
        torch.manual_seed(job["seed"])
        network = efficientnet_v2_s(weights=None)
        network.load_state_dict(load_file(job["base"]), strict=False)
        network.classifier = nn.Sequential(nn.Dropout(job["model.dropout"]), nn.Linear(1280, 1))
        lora = LoraConfig(
            r=job["rank"], lora_alpha=job["alpha"], target_modules=job["targets"], modules_to_save=["classifier"]
        )
        self.network = get_peft_model(network, lora)

    def train(self, mode: bool = True) -> Network:
        """As every module's, but frozen BatchNorm keeps the base's statistics."""
        super().train(mode)
        for module in self.modules():
            if self.frozen and isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """(B,) logits."""
        return self.network(images).squeeze(1)

    def trained(self) -> list[nn.Parameter]:
        """What the optimizer updates."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]


def focal(job: Job, logits: Tensor, labels: Tensor) -> Tensor:
    """Mean focal loss."""
    alpha, gamma = job["loss.alpha"], job["loss.gamma"]
    return sigmoid_focal_loss(logits.float(), labels.float(), alpha=alpha, gamma=gamma, reduction="mean")


def device(job: Job) -> torch.device:
    """Where to train."""
    cuda = job["device"].startswith("cuda") or (job["device"] == "auto" and torch.cuda.is_available())
    return torch.device("cuda" if cuda else "cpu")


def autocast(job: Job) -> Any:
    """bf16 where the job says so."""
    return torch.autocast(device(job).type, torch.bfloat16, enabled=job["precision"] == "bf16")


def one_pass(job: Job, network: Network, optimizer: torch.optim.Optimizer, films: DataLoader) -> None:
    """Train on every film once."""
    network.train()
    for images, labels in films:
        images, labels = images.to(device(job), non_blocking=True), labels.to(device(job), non_blocking=True)
        optimizer.zero_grad()
        with autocast(job):
            logits = network(images)
        focal(job, logits, labels).backward()
        optimizer.step()


def f1(labels: Any, logits: Any) -> float:
    """F1 at a probability of 0.5."""
    return float(f1_score([label > 0.5 for label in labels], [logit > 0 for logit in logits], zero_division=0.0))


class Clock:
    """Seconds of training passes alone, and of whole trials."""

    def __init__(self) -> None:
        self.first = 0.0
        self.passes: list[tuple[int, float]] = []
        self.trials: list[float] = []
        self._began = 0.0

    def start(self) -> None:
        """A pass over the training films begins."""
        self._began = time.monotonic()
        self.first = self.first or self._began

    def stop(self, films: int) -> None:
        """It ended."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.passes.append((films, time.monotonic() - self._began))

    @contextmanager
    def trial(self) -> Iterator[None]:
        """A whole trial."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.trials.append(time.monotonic() - began)

    def values(self, trials: int, **more: float) -> Values:
        """What the parent wants to know of so many trials."""
        films, seconds = (sum(column) for column in zip(*self._steady(trials), strict=True))
        return {
            "img_s": films / seconds,
            "img_s_all": sum(films for films, _ in self.passes) / sum(seconds for _, seconds in self.passes),
            "trial_s": statistics.median(self.trials),
            "start_s": self.first - spawned(),
            "first_pass_s": self.passes[0][1],
            "epochs": float(len(self.passes)),
            "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        } | more

    def _steady(self, trials: int) -> list[tuple[int, float]]:
        """The passes behind the first ones of each trial; all where trials are pruned, or too short."""
        each, rest = divmod(len(self.passes), trials)
        if rest or each <= WARM_UP:
            return self.passes
        return [one for place, one in enumerate(self.passes) if place % each >= WARM_UP]


def suggested(trial: Any) -> tuple[float, float]:
    """Learning rate and weight decay of a trial."""
    rate = trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True)
    return rate, trial.suggest_float("weight_decay", 1e-4, 1e-1, log=True)


def search(job: Job, objective: Callable[[Any], float]) -> float:
    """A study of the job's trials in this process; its best value."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=job["seed"])
    study = optuna.create_study(direction="maximize", sampler=sampler, pruner=pruner(job))
    study.optimize(objective, n_trials=job["trials"])
    return float(study.best_value)


def pruner(job: Job) -> Any:
    """Optuna's pruner of a job: the study file's median pruner, or none."""
    import optuna

    if job["pruner"] == "none":
        return optuna.pruners.NopPruner()
    return optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=3)
