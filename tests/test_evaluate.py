"""Room evaluate: fp32 probabilities that depend on nothing but the film, and the scores made of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from xray_opt.adapter import Bundle, attach, logits, make_bundle, set_mode
from xray_opt.augment import plain
from xray_opt.backbone import Base, random_base
from xray_opt.cache import Images, open_images
from xray_opt.calibration import probability
from xray_opt.config import Config, DataConfig, Workspace, override
from xray_opt.dataset import prepare
from xray_opt.errors import BadFilm, OutOfMemory
from xray_opt.evaluate import Predictor, assess, evaluating, predict_logits

CPU = torch.device("cpu")
SIZE = 32


@pytest.fixture(scope="module")
def base() -> Base:
    return random_base(0)


@pytest.fixture(scope="module")
def config() -> Config:
    return override(
        Config(), {"image.size": SIZE, "lora.rank": 4, "model.batch_norm": "train", "training.device": "cpu"}
    )


@pytest.fixture(scope="module")
def network(base: Base, config: Config) -> nn.Module:
    """A network whose answers differ between films: its BatchNorm statistics are those of some films."""
    made = attach(base, config)
    norms = [module for module in made.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    set_mode(made, True)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        made(torch.randn(32, 3, SIZE, SIZE))
    return made


@pytest.fixture(scope="module")
def pixels() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (11, 48, 48), dtype=np.uint8)


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 small noise films of 24 patients in Kaggle's layout."""
    root = tmp_path_factory.mktemp("films")
    chance = np.random.default_rng(1)
    for number in range(12):
        for label, name in (("NORMAL", f"IM-{number:04d}-0001.png"), ("PNEUMONIA", f"person{number}_virus_1.png")):
            folder = root / "train" / label
            folder.mkdir(parents=True, exist_ok=True)
            grey = chance.integers(0, 256, (60 + number, 72), dtype=np.uint8)
            Image.fromarray(grey).resize((96, 80)).save(folder / name)
    return root


@pytest.fixture(scope="module")
def images(films: Path, tmp_path_factory: pytest.TempPathFactory) -> Images:
    data = DataConfig(root=str(films), train_fraction=0.5, val_fraction=0.25, test_fraction=0.25)
    return open_images(prepare(data), SIZE, Workspace(tmp_path_factory.mktemp("home")))


@pytest.fixture
def short_of_memory(network: nn.Module) -> Iterator[list[int]]:
    """Lets the network run out of memory above ``allowed[0]`` films."""
    allowed = [3]

    def refuse(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if len(inputs[0]) > allowed[0]:
            raise torch.OutOfMemoryError("simulated")

    handle = network.register_forward_pre_hook(refuse)
    yield allowed
    handle.remove()


def predict(network: nn.Module, films: Images | NDArray[np.uint8], *given: object) -> NDArray[np.float64]:
    return probability(predict_logits(network, films, *given))


def test_predict_is_the_sigmoid_of_the_network_in_evaluation_mode(
    network: nn.Module, pixels: NDArray[np.uint8]
) -> None:
    with evaluating(network), torch.inference_mode():
        expected = torch.sigmoid(logits(network, plain(torch.from_numpy(pixels), SIZE)).double()).numpy()
    found = predict(network, pixels, SIZE, CPU)
    assert found.dtype == np.float64
    assert found.shape == (11,)
    assert found.std() > 1e-4
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 2, 4, 11])
def test_a_probability_does_not_depend_on_the_batch(
    network: nn.Module, pixels: NDArray[np.uint8], batch_size: int
) -> None:
    whole = predict(network, pixels, SIZE, CPU)
    np.testing.assert_allclose(predict(network, pixels, SIZE, CPU, batch_size), whole, atol=1e-6)


def test_no_films_give_no_probabilities(network: nn.Module) -> None:
    assert predict(network, np.empty((0, 48, 48), dtype=np.uint8), SIZE, CPU).shape == (0,)


def test_every_module_gets_its_own_mode_back(network: nn.Module, pixels: NDArray[np.uint8]) -> None:
    set_mode(network, True)
    frozen = next(module for module in network.modules() if isinstance(module, nn.BatchNorm2d))
    frozen.eval()
    before = [module.training for module in network.modules()]
    predict(network, pixels, SIZE, CPU)
    assert [module.training for module in network.modules()] == before
    assert not frozen.training
    assert network.training


def test_modes_come_back_after_an_error(network: nn.Module) -> None:
    set_mode(network, True)
    with contextlib.suppress(ZeroDivisionError), evaluating(network):
        assert not any(module.training for module in network.modules())
        raise ZeroDivisionError
    assert network.training


def test_predict_leaves_statistics_and_gradients_alone(network: nn.Module, pixels: NDArray[np.uint8]) -> None:
    set_mode(network, True)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    predict(network, pixels, SIZE, CPU)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_scores_are_fp32_even_inside_autocast(network: nn.Module, pixels: NDArray[np.uint8]) -> None:
    outside = predict_logits(network, pixels, SIZE, CPU)
    with torch.autocast("cpu", torch.bfloat16):
        inside = predict_logits(network, pixels, SIZE, CPU)
    np.testing.assert_array_equal(inside, outside)


def test_a_batch_that_does_not_fit_is_halved(
    network: nn.Module, pixels: NDArray[np.uint8], short_of_memory: list[int]
) -> None:
    short_of_memory[0] = 100
    whole = predict(network, pixels, SIZE, CPU)
    short_of_memory[0] = 3
    np.testing.assert_allclose(predict(network, pixels, SIZE, CPU), whole, atol=1e-6)


def test_not_one_film_fits(network: nn.Module, pixels: NDArray[np.uint8], short_of_memory: list[int]) -> None:
    short_of_memory[0] = 0
    with pytest.raises(OutOfMemory, match=r"one film of 32 px on cpu; lower image\.size"):
        predict(network, pixels, SIZE, CPU)


def test_probability_is_a_stable_sigmoid_with_temperature() -> None:
    logit = np.array([-1e4, -2.0, 0.0, 2.0, 1e4])
    expected = [0.0, 1 / (1 + np.exp(2.0)), 0.5, 1 / (1 + np.exp(-2.0)), 1.0]
    np.testing.assert_allclose(probability(logit), expected, atol=1e-15)
    np.testing.assert_allclose(probability(logit * 3, temperature=3.0), expected, atol=1e-15)


def test_assess_gives_scores_at_half_and_at_the_best_threshold() -> None:
    labels, logits = [0, 0, 1, 1, 1], [-2.2, -1.4, -0.8, -0.4, 2.2]
    assessment = assess(labels, logits)
    assert assessment.scores.recall == pytest.approx(1 / 3)
    assert assessment.scores.precision == 1.0
    assert assessment.scores.auc == assessment.at_threshold.auc == 1.0
    low, high = probability(np.array([-1.4, -0.8]), assessment.calibration.temperature)
    assert low < assessment.threshold < high
    assert assessment.at_threshold.f1 == 1.0


def test_assess_of_one_class_keeps_the_threshold() -> None:
    assessment = assess([1, 1], [0.7, -1.2])
    assert assessment.threshold == 0.5
    assert np.isnan(assessment.scores.auc)
    assert assessment.scores == assessment.at_threshold or np.isnan(assessment.at_threshold.auc)


@pytest.fixture(scope="module")
def bundle(base: Base, config: Config, images: Images) -> Bundle:
    return make_bundle(base, config, images.side)


def test_predictor_repeats_the_validation_probabilities(
    network: nn.Module, bundle: Bundle, images: Images, films: Path
) -> None:
    recorded = predict(network, images.val, SIZE, CPU)
    assert len(recorded) == len(images.val) > 2
    predictor = Predictor(network, bundle, CPU)
    paths = [films / path for path in images.val.paths]
    np.testing.assert_allclose(predictor.probabilities(paths), recorded, atol=1e-6)
    as_bytes = [path.read_bytes() for path in paths]
    np.testing.assert_array_equal(predictor.probabilities(as_bytes), predictor.probabilities(paths))


def test_predictor_divides_logits_by_the_temperature(
    network: nn.Module, bundle: Bundle, images: Images, films: Path
) -> None:
    paths = [films / path for path in images.val.paths]
    plainly = Predictor(network, bundle, CPU).probabilities(paths)
    cooler = Predictor(network, replace(bundle, temperature=4.0), CPU).probabilities(paths)
    np.testing.assert_allclose(np.log(cooler / (1 - cooler)) * 4, np.log(plainly / (1 - plainly)), atol=1e-6)


def test_predictor_names_the_film_it_cannot_read(network: nn.Module, bundle: Bundle, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"not an image")
    predictor = Predictor(network, bundle, CPU)
    with pytest.raises(BadFilm, match=r"broken\.png cannot be read: "):
        predictor.probabilities([broken])
    with pytest.raises(BadFilm, match="image 0 cannot be read: "):
        predictor.probabilities([b"not an image"])


def test_predictor_of_nothing(network: nn.Module, bundle: Bundle) -> None:
    assert Predictor(network, bundle, CPU).probabilities([]).shape == (0,)
