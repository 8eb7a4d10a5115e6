"""Every setting of one training run, frozen and checked where it is made.

A setting has one dotted name (``optimizer.learning_rate``) in YAML, in ``--set``, in Optuna's params and in
MLflow's params. A new hyper-parameter is a field here, its use in its room, and a line of YAML.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from xray_opt.config.checks import one_of as _one_of
from xray_opt.config.checks import require as _require
from xray_opt.config.tracking import TrackingConfig
from xray_opt.errors import ConfigError

STAGES = ("early", "late", "all")


@dataclass(frozen=True)
class DataConfig:
    """Which films, and how they are split. ``data.*`` belongs to the study and may not be searched.

    Attributes:
        root: folder (Kaggle layout or class folders) or CSV with ``path,label,patient``; none means the data
            that ``xray-opt data prepare`` prepared last.
        seed: seed of the patient-level split.
        train_fraction, val_fraction, test_fraction: shares of films a split, summing to 1.
        keep_test: keep the folder's own test split and leave out other films of its patients.
        skip_bad: leave out films that cannot be read instead of refusing the set.
        train_films, val_films: use about so many films of a split, chosen by patient; none means all.
        negative, positive: names of the two classes (label 0 and 1) in class folders or a CSV, in any case.
    """

    root: str | None = None
    seed: int = 0
    train_fraction: float = 0.8
    val_fraction: float = 0.1
    test_fraction: float = 0.1
    keep_test: bool = False
    skip_bad: bool = False
    train_films: int | None = None
    val_films: int | None = None
    negative: str = "NORMAL"
    positive: str = "PNEUMONIA"

    @property
    def classes(self) -> tuple[str, str]:
        """Class names in the order of their label."""
        return self.negative, self.positive

    def __post_init__(self) -> None:
        shares = (self.train_fraction, self.val_fraction, self.test_fraction)
        _require(all(0 < share < 1 for share in shares), "data.*_fraction", "between 0 and 1", shares)
        _require(abs(sum(shares) - 1) < 1e-6, "data.*_fraction", "shares that sum to 1", shares)
        for name, films in (("data.train_films", self.train_films), ("data.val_films", self.val_films)):
            _require(films is None or films >= 2, name, "at least 2, or null for all", films)
        for name, label in (("data.negative", self.negative), ("data.positive", self.positive)):
            plain = (
                label.strip() == label and label.isprintable() and 0 < len(label) <= 40 and not set(label) & set("/\\")
            )
            _require(plain and label not in ("0", "1"), name, "1 to 40 printable characters without slashes", label)
        apart = self.negative.lower() != self.positive.lower()
        _require(apart, "data.negative and data.positive", "two different names", self.positive)


@dataclass(frozen=True)
class ImageConfig:
    """Input side in pixels of the square image that the network sees."""

    size: int = 384

    def __post_init__(self) -> None:
        _require(32 <= self.size <= 1024, "image.size", "between 32 and 1024 pixels", self.size)


@dataclass(frozen=True)
class ModelConfig:
    """The network and what of it is trained.

    Attributes:
        base: ``imagenet`` (downloaded and verified), ``random`` (from ``base_seed``), or a path to weights.
        base_overlap: where the base was trained on patients of val or test: ``refuse``, or ``warn`` and note it.
        strategy: ``lora``, ``linear`` (head only) or ``full``.
        batch_norm: ``frozen`` (evaluation mode, base statistics) or ``train`` (statistics of the training films,
            saved with the adapter). Its affine is trained with ``full`` only.
        dropout: dropout before the one-logit head.
        stochastic_depth: chance that the last residual block is skipped in training, falling to 0 at the first
            (Huang et al. 2016).
    """

    base: str = "imagenet"
    base_seed: int = 0
    base_overlap: str = "refuse"
    strategy: str = "lora"
    batch_norm: str = "frozen"
    dropout: float = 0.2
    stochastic_depth: float = 0.2

    def __post_init__(self) -> None:
        _require(bool(self.base), "model.base", "imagenet, random or a path", self.base)
        _one_of("model.base_overlap", self.base_overlap, ("refuse", "warn"))
        _one_of("model.strategy", self.strategy, ("lora", "linear", "full"))
        _one_of("model.batch_norm", self.batch_norm, ("frozen", "train"))
        _require(0 <= self.dropout < 1, "model.dropout", "in [0, 1)", self.dropout)
        _require(0 <= self.stochastic_depth < 1, "model.stochastic_depth", "in [0, 1)", self.stochastic_depth)


@dataclass(frozen=True)
class LoraConfig:
    """LoRA (Hu et al. 2021) on the convolutions of the backbone.

    Attributes:
        rank, alpha: the update is ``alpha / rank * B @ A``.
        dropout: dropout on the input of A.
        stages: ``early`` (features.1–3), ``late`` (features.4–7) or ``all``.
        targets: ``dense`` (the 79 ungrouped convolutions outside squeeze-excite and stem) or ``ungrouped``
            (all 140 ungrouped ones).
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    stages: str = "all"
    targets: str = "dense"

    def __post_init__(self) -> None:
        _require(1 <= self.rank <= 256, "lora.rank", "between 1 and 256", self.rank)
        _require(self.alpha > 0, "lora.alpha", "positive", self.alpha)
        _require(0 <= self.dropout < 1, "lora.dropout", "in [0, 1)", self.dropout)
        _one_of("lora.stages", self.stages, STAGES)
        _one_of("lora.targets", self.targets, ("dense", "ungrouped"))


@dataclass(frozen=True)
class LossConfig:
    """Focal loss (Lin et al. 2017): ``alpha`` weighs pneumonia, ``1 - alpha`` normal; gamma 0 is cross-entropy.

    In training ``label_smoothing`` of each label is spread evenly over both classes (Szegedy et al. 2016).
    """

    alpha: float = 0.25
    gamma: float = 2.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        _require(0 < self.alpha < 1, "loss.alpha", "between 0 and 1", self.alpha)
        _require(0 <= self.gamma <= 10, "loss.gamma", "between 0 and 10", self.gamma)
        _require(0 <= self.label_smoothing < 1, "loss.label_smoothing", "in [0, 1)", self.label_smoothing)


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (Loshchilov and Hutter 2019)."""

    learning_rate: float = 1.0e-4
    weight_decay: float = 1.0e-2

    def __post_init__(self) -> None:
        _require(0 < self.learning_rate < 10, "optimizer.learning_rate", "positive and below 10", self.learning_rate)
        _require(0 <= self.weight_decay < 10, "optimizer.weight_decay", "in [0, 10)", self.weight_decay)


@dataclass(frozen=True)
class SchedulerConfig:
    """ReduceLROnPlateau on validation F1: after ``patience`` epochs without gain the rate is times ``factor``."""

    patience: int = 2
    factor: float = 0.1

    def __post_init__(self) -> None:
        _require(self.patience >= 0, "scheduler.patience", "0 or more epochs", self.patience)
        _require(0 < self.factor < 1, "scheduler.factor", "between 0 and 1", self.factor)


@dataclass(frozen=True)
class AugmentConfig:
    """RandomResizedCrop (area share and aspect range), horizontal flip, rotation in degrees either way.

    What follows them counters shortcuts (docs/robustness.md) and is off at 0: then nothing is drawn for it either.

    Attributes:
        border: each edge of the film loses its own share of the side, at most this one, before the crop.
        recompress: chance that a film is quantised as JPEG does it, at a quality from ``quality_min`` to
            ``quality_max``; at the size of the cache, not of the file.
        gamma: the greys are taken to a power from ``1 / (1 + gamma)`` to ``1 + gamma``.
        brightness: the greys are moved by at most this share of the full scale, either way.
        equalise: chance that a film's histogram is made flat.
    """

    scale_min: float = 0.7
    scale_max: float = 1.0
    ratio_min: float = 0.75
    ratio_max: float = 4 / 3
    flip: float = 0.5
    rotation: float = 15.0
    border: float = 0.0
    recompress: float = 0.0
    quality_min: int = 30
    quality_max: int = 95
    gamma: float = 0.0
    brightness: float = 0.0
    equalise: float = 0.0

    def __post_init__(self) -> None:
        scale, ratio = (self.scale_min, self.scale_max), (self.ratio_min, self.ratio_max)
        _require(0 < scale[0] <= scale[1] <= 1, "augment.scale_min/max", "0 < min <= max <= 1", scale)
        _require(0 < ratio[0] <= ratio[1] <= 10, "augment.ratio_min/max", "0 < min <= max <= 10", ratio)
        _require(0 <= self.flip <= 1, "augment.flip", "a probability", self.flip)
        _require(0 <= self.rotation <= 180, "augment.rotation", "0 to 180 degrees", self.rotation)
        _require(0 <= self.border <= 0.4, "augment.border", "0 to 0.4 of a side", self.border)
        _require(0 <= self.recompress <= 1, "augment.recompress", "a probability", self.recompress)
        quality = (self.quality_min, self.quality_max)
        _require(1 <= quality[0] <= quality[1] <= 100, "augment.quality_min/max", "1 <= min <= max <= 100", quality)
        _require(0 <= self.gamma <= 4, "augment.gamma", "0 to 4", self.gamma)
        _require(0 <= self.brightness <= 1, "augment.brightness", "0 to 1", self.brightness)
        _require(0 <= self.equalise <= 1, "augment.equalise", "a probability", self.equalise)


@dataclass(frozen=True)
class TrainingConfig:
    """How long, with which batch, where.

    Attributes:
        epochs: at most so many passes over the training films.
        batch_size: films an optimizer step (the effective batch).
        micro_batch: films a forward pass; none means ``batch_size``, halved when CUDA runs out of memory.
        early_stopping_patience: epochs without a better validation F1 before training stops.
        seed: seed of initial adapter and head, order of films, augmentation and dropout.
        device: ``auto`` (cuda, else mps, else cpu), ``cuda``, ``cuda:N``, ``mps`` or ``cpu``.
        precision: ``auto`` (bf16 where the device is faster with it), ``bf16`` or ``fp32``.
        compile: training steps through ``torch.compile``; the first one then takes minutes on a CPU.
        cuda_graphs: training steps as one captured CUDA graph; on other devices without effect, and that is said.
            Never run on hardware yet.
    """

    epochs: int = 20
    batch_size: int = 16
    micro_batch: int | None = None
    early_stopping_patience: int = 4
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    compile: bool = False
    cuda_graphs: bool = False

    def __post_init__(self) -> None:
        _require(self.epochs >= 1, "training.epochs", "at least 1", self.epochs)
        _require(self.batch_size >= 1, "training.batch_size", "at least 1", self.batch_size)
        micro = self.micro_batch
        _require(micro is None or 1 <= micro <= self.batch_size, "training.micro_batch", "1 to batch_size", micro)
        patience = self.early_stopping_patience
        _require(patience >= 1, "training.early_stopping_patience", "at least 1", patience)
        known = re.fullmatch(r"auto|cuda|mps|cpu|cuda:[0-9]{1,4}", self.device)
        _require(bool(known), "training.device", "auto, cuda, cuda:N, mps or cpu", self.device)
        _one_of("training.precision", self.precision, ("auto", "bf16", "fp32"))


@dataclass(frozen=True)
class Config:
    """All settings of one run; ``flatten`` gives their dotted names, ``override`` a changed copy."""

    data: DataConfig = field(default_factory=DataConfig)
    image: ImageConfig = field(default_factory=ImageConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        training = self.training
        smallest = min(training.batch_size, training.micro_batch or training.batch_size)
        if self.model.batch_norm == "train" and smallest < 2:
            raise ConfigError(
                "model.batch_norm=train needs at least 2 films a batch; raise training.batch_size/micro_batch"
            )
