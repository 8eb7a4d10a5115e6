"""What a study may weigh against F1, measured on real networks and real files of films."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_sets import kaggle_set

from xray_opt import objectives
from xray_opt.adapter import attach, make_bundle, trainable
from xray_opt.backbone import random_base
from xray_opt.cache import open_images
from xray_opt.config import OBJECTIVES, Config, Workspace, override
from xray_opt.dataset import prepare
from xray_opt.errors import DataError
from xray_opt.objectives import CHANGES, measure
from xray_opt.robustness import PERTURBATIONS, Rescored

CPU = torch.device("cpu")
SMALL = {"image.size": 32, "model.base": "random", "model.strategy": "linear", "training.device": "cpu"}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    workspace = Workspace(tmp_path_factory.mktemp("objectives"))
    root = kaggle_set(workspace.root / "set", patients=16, films=1)
    config = override(Config(), SMALL | {"data.root": str(root)})
    return config, open_images(prepare(config.data), 32, workspace), random_base(0)


def measured(world, name, **changes):
    config, images, base = world
    config = override(config, {key.replace("_", ".", 1): value for key, value in changes.items()})
    return measure(name, attach(base, config), make_bundle(base, config, images.side), images, CPU)


def test_each_second_objective_is_measured():
    assert objectives._MEASURES.keys() == OBJECTIVES.keys() - {"val.f1"}
    assert set(CHANGES) <= PERTURBATIONS.keys()


def test_parameters_are_those_that_are_trained(world):
    probe = measured(world, "parameters")
    assert probe == 1280 + 1
    assert measured(world, "parameters", model_strategy="lora", lora_rank=4) == 356_321
    config, _, base = world
    whole = attach(base, override(config, {"model.strategy": "full"}))
    assert trainable(whole) == measured(world, "parameters", model_strategy="full") > 20e6


def test_latency_is_of_a_film_and_that_of_a_pass(world, monkeypatch):
    passes, real = [], objectives.predict_logits

    def counting(network, films, size, device):
        passes.append((len(films), size))
        return real(network, films, size, device)

    monkeypatch.setattr(objectives, "predict_logits", counting)
    found = measured(world, "latency")
    assert passes == [(len(world[1].val), 32)] * 4
    assert 0 < found < 10_000


def test_robustness_is_the_worst_share_of_decisions_that_stay(world, monkeypatch):
    asked = []
    logits = np.array([[2.0, 2, -2, -2], [2, 2, 2, -2], [2, 3, -1, -1], [-1, -1, -1, 1]])

    def answers(predictor, paths, changes):
        asked.append((paths, tuple(changes)))
        return Rescored(tuple(changes), logits, np.arange(4), ())

    monkeypatch.setattr(objectives, "rescore", answers)
    assert measured(world, "robustness") == 0.25
    ((paths, names),) = asked
    assert names == CHANGES
    assert all(path.is_file() for path in paths)
    assert len(paths) == len(world[1].val)


def test_a_network_that_says_the_same_of_all_films_is_robust(world):
    config, images, base = world
    network = attach(base, config)
    torch.nn.init.zeros_(network.classifier[1].weight)
    assert measure("robustness", network, make_bundle(base, config, images.side), images, CPU) == 1.0
    found = measured(world, "robustness")
    assert 0 <= found <= 1


def test_films_that_are_gone_are_one_line(world, tmp_path):
    config, images, base = world
    gone = replace(images, manifest=replace(images.manifest, root=str(tmp_path)))
    with pytest.raises(DataError, match=r"none of these \d+ validation films can be read"):
        measure("robustness", attach(base, config), make_bundle(base, config, images.side), gone, CPU)
