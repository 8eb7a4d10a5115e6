"""Room trainer: epochs that learn, repeat to the bit, resume to the bit, and fit into the memory there is."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from xray_opt.adapter import attach, trainable_state
from xray_opt.backbone import Base, random_base
from xray_opt.cache import Images, open_images
from xray_opt.calibration import probability
from xray_opt.config import Config, DataConfig, Workspace, override
from xray_opt.dataset import prepare
from xray_opt.errors import ConfigError, DiskFault, NotFinite, OutOfMemory, TrainingError
from xray_opt.evaluate import evaluating, predict_logits
from xray_opt.loss import FocalLoss
from xray_opt.metrics import Scores, scores
from xray_opt.trainer import Epoch, Trainer, discard_checkpoint, has_checkpoint
from xray_opt.trainer.eager import Eager
from xray_opt.trainer.records import beats, stale
from xray_opt.trainer.step import Stepper, part_count
from xray_opt.trainer.trainer import make_optimizer, make_plateau, seeds

CPU = torch.device("cpu")
MODES = pytest.mark.parametrize("batch_norm", ["frozen", "train"])


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Equal to the bit means: on equally many threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def base() -> Base:
    return random_base(0)


def blobs(root: Path, patients: int, side: int = 48) -> Path:
    """Noise films, one a patient in Kaggle's layout; those of PNEUMONIA show one bright blob somewhere."""
    chance = np.random.default_rng(0)
    across = np.arange(side)
    for number in range(patients):
        for label, name in (("NORMAL", f"IM-{number:04d}-0001.png"), ("PNEUMONIA", f"person{number}_virus_1.png")):
            film = chance.normal(80, 20, (side, side))
            if label == "PNEUMONIA":
                down, right = chance.uniform(14, side - 14, 2)
                film += 130 * np.exp(-((across[:, None] - down) ** 2 + (across - right) ** 2) / 60)
            (root / "train" / label).mkdir(parents=True, exist_ok=True)
            Image.fromarray(film.clip(0, 255).astype(np.uint8)).save(root / "train" / label / name)
    return root


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    root = blobs(tmp_path_factory.mktemp("films"), patients=16)
    data = DataConfig(root=str(root), train_fraction=0.5, val_fraction=0.25, test_fraction=0.25)
    return open_images(prepare(data), 32, Workspace(tmp_path_factory.mktemp("home")))


def settings(**changed: object) -> Config:
    """A small fast run; ``model_batch_norm="train"`` stands for ``model.batch_norm=train``."""
    small = {
        "image.size": 32,
        "lora.rank": 2,
        "optimizer.learning_rate": 3e-3,
        "training.batch_size": 6,
        "training.epochs": 3,
        "training.device": "cpu",
        "training.precision": "fp32",
    }
    return override(Config(), small | {name.replace("_", ".", 1): value for name, value in changed.items()})


def untimed(epochs: tuple[Epoch, ...]) -> list[Epoch]:
    return [replace(epoch, seconds=0.0, images_per_second=0.0) for epoch in epochs]


def assert_equal_states(one: nn.Module, other: nn.Module) -> None:
    first, second = trainable_state(one), trainable_state(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@contextmanager
def memory_for(network: nn.Module, films: int) -> Iterator[None]:
    """Above ``films`` at a time the network computes half of what it would and then runs out of memory."""
    original = network.forward

    def forward(images: Tensor) -> Tensor:
        answer: Tensor = original(images)
        if len(images) > films:
            raise torch.OutOfMemoryError("simulated")
        return answer

    network.forward = forward  # type: ignore[method-assign]
    yield
    network.forward = original  # type: ignore[method-assign]


def test_epochs_tell_what_happened(images: Images, base: Base) -> None:
    trainer = Trainer(settings(), images, base)
    seen = tuple(trainer.epochs())
    assert seen == trainer.history
    assert trainer.resumed == ()
    assert [epoch.number for epoch in seen] == [1, 2, 3]
    assert all(epoch.learning_rate == 3e-3 and epoch.seconds > 0 and epoch.images_per_second > 1 for epoch in seen)
    assert all(math.isfinite(epoch.train_loss) and math.isfinite(epoch.val_loss) for epoch in seen)
    assert seen[0].is_best
    highest = max(seen, key=lambda epoch: (epoch.val.f1, -epoch.val_loss))
    assert trainer.best_epoch == highest.number


def test_best_restores_the_best_epoch_and_ends_the_training(images: Images, base: Base) -> None:
    trainer = Trainer(settings(model_batch_norm="train", training_epochs=4), images, base)
    iterator = trainer.epochs()
    next(iterator), next(iterator)
    network = trainer.best()
    assert not network.training
    probabilities = probability(predict_logits(network, images.val, 32, CPU))
    assert scores(images.val.labels, probabilities) == trainer.history[trainer.best_epoch - 1].val
    assert list(iterator) == []


def test_no_epoch_no_best(images: Images, base: Base) -> None:
    trainer = Trainer(settings(), images, base)
    assert trainer.best_epoch == 0
    with pytest.raises(TrainingError, match="no epoch was trained"):
        trainer.best()


@MODES
def test_two_runs_are_equal_to_the_bit_and_leave_the_global_generator_alone(
    images: Images, base: Base, batch_norm: str
) -> None:
    config = settings(model_batch_norm=batch_norm, training_epochs=2, lora_dropout=0.1)
    one = Trainer(config, images, base)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    list(one.epochs())
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    np.random.seed(2)
    other = Trainer(config, images, base)
    list(other.epochs())
    assert_equal_states(one.network, other.network)
    assert untimed(one.history) == untimed(other.history)


def test_another_seed_gives_another_run(images: Images, base: Base) -> None:
    losses = [next(Trainer(settings(training_seed=seed), images, base).epochs()).train_loss for seed in (0, 1)]
    assert losses[0] != losses[1]


@MODES
def test_resumed_equals_uninterrupted_to_the_bit(images: Images, base: Base, tmp_path: Path, batch_norm: str) -> None:
    config = settings(model_batch_norm=batch_norm, scheduler_patience=0, training_epochs=4, lora_dropout=0.1)
    whole = Trainer(config, images, base)
    list(whole.epochs())
    path, lines = tmp_path / "trial.pt", list[str]()
    for expected in (0, 1, 3):
        trainer = Trainer(config, images, base, path, lines.append)
        assert len(trainer.resumed) == len(trainer.history) == expected
        for epoch in trainer.epochs():
            if epoch.number in (1, 3):
                break
    assert lines == [f"resuming behind epoch {number} of {path}" for number in (1, 3)]
    assert untimed(trainer.history) == untimed(whole.history)
    assert trainer.best_epoch == whole.best_epoch
    assert_equal_states(trainer.network, whole.network)
    assert_equal_states(trainer.best(), whole.best())
    finished = Trainer(config, images, base, path)
    assert list(finished.epochs()) == []
    assert_equal_states(finished.best(), whole.best())


def test_an_epoch_is_on_disk_before_a_watcher_sees_it(images: Images, base: Base, tmp_path: Path) -> None:
    path = tmp_path / "trial.pt"
    for epoch in Trainer(settings(), images, base, path).epochs():
        assert epoch.number == 1
        break  # the watcher dies here
    resumed = Trainer(settings(), images, base, path)
    assert [epoch.number for epoch in resumed.resumed] == [1]
    assert next(resumed.epochs()).number == 2


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def _empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [_truncate, _flip_a_bit, _empty])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    images: Images, base: Base, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    path, lines = tmp_path / "trial.pt", list[str]()
    trainer = Trainer(settings(), images, base, path)
    list(trainer.epochs())
    damage(path)
    again = Trainer(settings(), images, base, path, lines.append)
    assert "is damaged and was removed" in lines[0]
    assert again.resumed == trainer.history[:2]
    list(again.epochs())
    assert untimed(again.history) == untimed(trainer.history)


def test_killed_between_the_two_renames(images: Images, base: Base, tmp_path: Path) -> None:
    path = tmp_path / "trial.pt"
    next(Trainer(settings(), images, base, path).epochs())
    os.replace(path, tmp_path / "trial.pt.previous")
    assert len(Trainer(settings(), images, base, path).resumed) == 1


def test_nothing_whole_left_starts_again(images: Images, base: Base, tmp_path: Path) -> None:
    path, lines = tmp_path / "trial.pt", list[str]()
    list(Trainer(settings(training_epochs=2), images, base, path).epochs())
    _truncate(path)
    _empty(tmp_path / "trial.pt.previous")
    assert Trainer(settings(training_epochs=2), images, base, path, lines.append).resumed == ()
    assert len(lines) == 2


def test_a_checkpoint_of_another_training_is_refused(images: Images, base: Base, tmp_path: Path) -> None:
    path = tmp_path / "trial.pt"
    next(Trainer(settings(), images, base, path).epochs())
    with pytest.raises(TrainingError, match=r"another training: lora.rank was 2, now 4; remove") as caught:
        Trainer(settings(lora_rank=4), images, base, path)
    assert "\n" not in str(caught.value)
    with pytest.raises(TrainingError, match="another training: base was"):
        Trainer(settings(), images, random_base(1), path)
    films = images.manifest.films
    other = replace(images, manifest=replace(images.manifest, films=films[:-1]))
    with pytest.raises(TrainingError, match="another training: manifest was"):
        Trainer(settings(), other, base, path)
    assert len(Trainer(settings(tracking_registered_model="other"), images, base, path).resumed) == 1


def test_discard_removes_every_file(images: Images, base: Base, tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "trial.pt"
    trainer = Trainer(settings(training_epochs=2), images, base, path)
    list(trainer.epochs())
    assert len(list(path.parent.iterdir())) == 2
    discard_checkpoint(path)
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("change", [{"network": {}}, {"epochs": [{}]}, {"plateau": 3}, {"optimizer": {}}])
def test_a_checkpoint_that_lacks_what_resuming_needs_is_one_line(
    images: Images, base: Base, tmp_path: Path, change: dict[str, object]
) -> None:
    path = tmp_path / "trial.pt"
    trainer = Trainer(settings(), images, base, checkpoint=path)
    next(trainer.epochs())
    checkpoint = trainer._checkpoint
    assert checkpoint is not None
    checkpoint.save(checkpoint.load() | change)
    with pytest.raises(TrainingError, match=r"cannot be resumed from .*; remove the file") as caught:
        Trainer(settings(), images, base, checkpoint=path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("says", ["CUDA error: device-side assert triggered", "can't allocate memory: 12 bytes"])
def test_an_error_of_the_machine_does_not_blame_the_checkpoint(
    images: Images, base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str
) -> None:
    path = tmp_path / "trial.pt"
    next(Trainer(settings(), images, base, checkpoint=path).epochs())

    def failing(trainer: Trainer, state: object) -> None:
        raise RuntimeError(says)

    monkeypatch.setattr(Trainer, "_resume", failing)
    with pytest.raises(RuntimeError, match=says):
        Trainer(settings(), images, base, checkpoint=path)
    assert path.exists()


def test_a_checkpoint_that_cannot_be_written_is_one_line(images: Images, base: Base, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskFault, match="cannot write checkpoint"):
        next(Trainer(settings(), images, base, tmp_path / "file" / "trial.pt").epochs())


@MODES
def test_memory_running_out_equals_a_smaller_micro_batch(images: Images, base: Base, batch_norm: str) -> None:
    config, lines = settings(model_batch_norm=batch_norm, training_epochs=1, lora_dropout=0.1), list[str]()
    halved = Trainer(config, images, base, say=lines.append)
    with memory_for(halved.network, 3):
        list(halved.epochs())
    asked = Trainer(override(config, {"training.micro_batch": 3}), images, base)
    list(asked.epochs())
    assert halved.micro_batch == 3
    assert lines == ["memory of cpu ran out: going on with 3 films at a time, same batch"]
    assert_equal_states(halved.network, asked.network)


def test_not_even_one_film_fits(images: Images, base: Base) -> None:
    trainer = Trainer(settings(), images, base)
    with memory_for(trainer.network, 0), pytest.raises(OutOfMemory, match="with 1 film") as caught:
        next(trainer.epochs())
    assert caught.value.reason == "oom"


@pytest.mark.parametrize("micro_batch", [1, 3, 5])
def test_accumulated_parts_equal_one_batch(base: Base, micro_batch: int) -> None:
    config = settings()
    batch, targets = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 2
    gradients = []
    for films in (8, micro_batch):
        network = attach(base, config)
        optimizer = torch.optim.SGD([weight for weight in network.parameters() if weight.requires_grad], lr=1.0)
        before = trainable_state(network)
        gradients_of = Eager(network, FocalLoss(0.25, 2.0), torch.float32)
        stepper = Stepper(gradients_of, optimizer, films, False, print)
        with evaluating(network):
            loss = stepper.step(batch, targets.float())
        gradients.append({name: before[name] - tensor for name, tensor in trainable_state(network).items()})
        assert loss.ndim == 0
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-4)


@given(st.integers(1, 200), st.integers(1, 64), st.integers(1, 2))
def test_parts_are_neither_too_large_nor_too_small(films: int, micro_batch: int, fewest: int) -> None:
    micro_batch = max(micro_batch, fewest)
    sizes = [len(part) for part in torch.arange(films).tensor_split(part_count(films, micro_batch, fewest))]
    assert sum(sizes) == films
    assert min(sizes) >= min(films, fewest)
    assert max(sizes) <= micro_batch + fewest - 1


def test_a_loss_that_is_not_finite_names_epoch_and_step(images: Images, base: Base) -> None:
    trainer = Trainer(settings(), images, base)
    next(trainer.epochs())
    with torch.no_grad():
        next(weight for weight in trainer.network.parameters() if weight.requires_grad).fill_(math.nan)
    with pytest.raises(NotFinite, match="loss is nan in epoch 2, step 1; lower") as caught:
        next(trainer.epochs())
    assert caught.value.reason == "nan"


def test_early_stopping_and_plateau_watch_f1(images: Images, base: Base) -> None:
    still = settings(
        optimizer_learning_rate=1e-9, training_epochs=20, training_early_stopping_patience=4, scheduler_patience=1
    )
    trainer = Trainer(still, images, base)
    epochs = list(trainer.epochs())
    assert len({epoch.val.f1 for epoch in epochs}) == 1
    assert len(epochs) == 5
    assert [epoch.learning_rate for epoch in epochs] == pytest.approx([1e-9, 1e-9, 1e-9, 1e-10, 1e-10], rel=0.2)


def _epoch(number: int, f1: float, val_loss: float = 1.0) -> Epoch:
    return Epoch(number, 1.0, val_loss, Scores(f1, 0.5, 0.5, 0.5, 0.5), 1e-3, 1.0, False, 1.0)


def test_better_is_higher_f1_or_equal_f1_and_lower_loss() -> None:
    past = [_epoch(1, 0.5, 0.9), _epoch(2, 0.7, 0.8)]
    assert beats(0.0, 9.0, [])
    assert beats(0.71, 9.0, past)
    assert beats(0.7, 0.7, past)
    assert not beats(0.7, 0.8, past)
    assert not beats(0.6, 0.1, past)


def test_stale_counts_epochs_since_f1_rose() -> None:
    assert stale([]) == 0
    assert stale([_epoch(1, 0.0)]) == 0
    assert stale([_epoch(1, 0.5), _epoch(2, 0.5, 0.1), _epoch(3, 0.4)]) == 2
    assert stale([_epoch(1, 0.5), _epoch(2, 0.4), _epoch(3, 0.6)]) == 0


def test_an_epoch_survives_as_plain_numbers() -> None:
    epoch = _epoch(3, 0.5)
    assert Epoch.from_plain(copy.deepcopy(epoch.plain())) == epoch
    assert asdict(epoch) == epoch.plain()


def test_plateau_takes_the_smallest_gain_for_a_gain() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    plateau = make_plateau(optimizer, settings(scheduler_patience=2, scheduler_factor=0.5))
    rates = []
    for f1 in (0.5, 0.5, 0.5, 0.500001, 0.5, 0.5, 0.5, 0.4):
        plateau.step(f1)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.5, 0.5]


def test_vectors_do_not_decay_and_only_what_is_trained_is_optimised(base: Base) -> None:
    network = attach(base, settings(model_batch_norm="train"))
    decayed, kept = make_optimizer(network, settings().optimizer).param_groups
    assert decayed["weight_decay"] == 0.01
    assert kept["weight_decay"] == 0.0
    assert all(parameter.ndim > 1 for parameter in decayed["params"])
    assert all(parameter.ndim <= 1 for parameter in kept["params"])
    trained = sum(parameter.requires_grad for parameter in network.parameters())
    assert len(decayed["params"]) + len(kept["params"]) == trained < len(list(network.parameters()))


@pytest.mark.parametrize(("batch_norm", "sizes"), [("frozen", [5, 5, 5, 1]), ("train", [5, 5, 6])])
def test_every_film_once_an_epoch_but_batch_norm_never_sees_one_alone(
    images: Images, base: Base, batch_norm: str, sizes: list[int]
) -> None:
    assert len(images.train) == 16
    trainer = Trainer(settings(model_batch_norm=batch_norm, training_batch_size=5), images, base)
    batches = trainer._batches(np.random.default_rng(0))
    assert [len(batch) for batch in batches] == sizes
    assert sorted(np.concatenate(batches)) == list(range(16))


def test_batch_norm_needs_two_films(images: Images, base: Base) -> None:
    with pytest.raises(ConfigError, match="at least 2 films a batch"):
        Trainer(settings(model_batch_norm="train", training_batch_size=1), images, base)


def test_seeds_differ_by_seed_epoch_and_use() -> None:
    drawn = [number for seed in (-1, 0, 1) for epoch in (1, 2, 3) for number in seeds(seed, epoch)]
    assert len(set(drawn)) == len(drawn) == 27
    assert seeds(0, 1) == seeds(0, 1)


def test_bf16_trains_too_and_is_validated_in_fp32(images: Images, base: Base) -> None:
    trainer = Trainer(settings(training_precision="bf16", training_epochs=1), images, base)
    epoch = next(trainer.epochs())
    probabilities = probability(predict_logits(trainer.network, images.val, 32, CPU))
    assert scores(images.val.labels, probabilities) == epoch.val
    assert all(weight.dtype == torch.float32 for weight in trainer.network.parameters())


@pytest.mark.slow
def test_it_learns(base: Base, tmp_path: Path) -> None:
    data = DataConfig(root=str(blobs(tmp_path / "films", patients=50)), seed=1)
    images = open_images(prepare(data), 32, Workspace(tmp_path / "home"))
    config = settings(
        model_batch_norm="train",
        lora_rank=8,
        training_epochs=8,
        training_batch_size=8,
        training_early_stopping_patience=8,
    )
    trainer = Trainer(config, images, base)
    assert max(epoch.val.auc for epoch in trainer.epochs()) > 0.9


def test_a_variance_that_overflowed_ends_the_training(
    images: Images, base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses stay finite, as x / sqrt(inf) is 0; the epoch must not become one to restore."""

    def overflow(network: nn.Module, *_: object) -> None:
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d) and module.running_var is not None:
                module.running_var.fill_(math.inf)

    monkeypatch.setattr("xray_opt.trainer.trainer.reestimate", overflow)
    trainer = Trainer(settings(model_batch_norm="train"), images, base, tmp_path / "own.pt")
    with pytest.raises(NotFinite, match=r"running_var is not finite after epoch 1"):
        next(trainer.epochs())
    assert not has_checkpoint(tmp_path / "own.pt")


def test_a_predecessor_alone_is_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "own.pt"
    assert not has_checkpoint(path)
    path.with_name("own.pt.previous").touch()
    assert has_checkpoint(path)
    discard_checkpoint(path)
    assert not has_checkpoint(path)
