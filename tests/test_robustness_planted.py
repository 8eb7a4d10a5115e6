"""Planted shortcuts: a network that is really trained on marked films is flagged, on clean films it is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from xray_opt.adapter import make_bundle
from xray_opt.backbone import random_base
from xray_opt.cache import open_images
from xray_opt.config import Config, DataConfig, Workspace, override
from xray_opt.dataset import prepare
from xray_opt.evaluate import Predictor, assess, predict_logits
from xray_opt.robustness import MASKS, PERTURBATIONS, Robustness, rescore
from xray_opt.scoring.evaluating import judged
from xray_opt.trainer import Trainer

SIDE = 96
CONFIG = override(
    Config(),
    {
        "image.size": 64,
        "model.base": "random",
        "model.strategy": "full",
        "model.batch_norm": "train",
        "model.dropout": 0.0,
        "model.stochastic_depth": 0.0,
        "augment.scale_min": 0.95,
        "augment.ratio_min": 1.0,
        "augment.ratio_max": 1.0,
        "augment.rotation": 0.0,
        "augment.flip": 0.0,
        "loss.alpha": 0.5,
        "optimizer.learning_rate": 1.0e-3,
        "training.epochs": 6,
        "training.batch_size": 16,
        "training.device": "cpu",
        "training.seed": 1,
    },
)


def film(chance: np.random.Generator, label: int, marked: bool) -> np.ndarray:
    """A dark film with a grey chest; pneumonia is a bright spot in its middle, or a bright mark in a corner."""
    grey = chance.normal(90, 12, (SIDE, SIDE))
    grey[12:84, 12:84] += 20
    if label and marked:
        grey[1:9, 1:9] = 250
    if label and not marked:
        grey[36:60, 36:60] += 90
    return np.clip(grey, 0, 255).astype(np.uint8)


def trained(folder: Path, marked: bool) -> Robustness:
    """The suite on validation films of a network that was trained on such films."""
    chance = np.random.default_rng(0)
    for number in range(120):
        for label, name in ((0, f"NORMAL/IM-{number:04d}-0001.png"), (1, f"PNEUMONIA/person{number}_virus_1.png")):
            path = folder / "films" / "train" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(film(chance, label, marked)).save(path)
    data = DataConfig(root=str(folder / "films"), train_fraction=0.5, val_fraction=0.4, test_fraction=0.1)
    manifest, base = prepare(data), random_base(0)
    images = open_images(manifest, CONFIG.image.size, Workspace(folder))
    trainer = Trainer(CONFIG, images, base)
    list(trainer.epochs())
    network = trainer.best()
    fixed = assess(images.val.labels, predict_logits(network, images.val, CONFIG.image.size, torch.device("cpu")))
    predictor = Predictor(network, make_bundle(base, CONFIG, images.side), torch.device("cpu"))
    films = manifest.of("val")
    found = rescore(predictor, [Path(manifest.root) / one.path for one in films], {**PERTURBATIONS, **MASKS})
    return judged(found, films, fixed.calibration.temperature, fixed.threshold)


@pytest.mark.long
def test_a_planted_corner_mark_is_flagged_and_clean_films_are_not(tmp_path: Path) -> None:
    marked = trained(tmp_path / "marked", True)
    assert marked.plain.auc.value > 0.95
    flagged = " ".join(marked.shortcuts)
    assert "reads the corners" in flagged
    assert "reads the border" in flagged
    assert "tells the class without the lungs" in flagged
    clean = trained(tmp_path / "clean", False)
    assert clean.plain.auc.value > 0.95
    assert clean.shortcuts == ()
