"""Validation from kept outputs of frozen stages: the same logits to the bit, and used only where they are exact."""

import gc

import numpy as np
import pytest
import torch
from test_trainer import blobs

from xray_opt.adapter import attach, frozen_prefix
from xray_opt.backbone import Base, random_base
from xray_opt.cache import Images, open_images
from xray_opt.config import Config, DataConfig, Workspace, override
from xray_opt.dataset import prepare
from xray_opt.evaluate import predict_logits
from xray_opt.loss import FocalLoss
from xray_opt.trainer import validation
from xray_opt.trainer.eager import Eager
from xray_opt.trainer.step import Stepper
from xray_opt.trainer.validation import validation_logits

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def base() -> Base:
    return random_base(0)


def make_images(folder) -> Images:
    manifest = prepare(DataConfig(root=str(blobs(folder / "films", 12))))
    return open_images(manifest, 32, Workspace(folder))


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Images:
    return make_images(tmp_path_factory.mktemp("validation"))


def network(base: Base, **settings):
    named = {name.replace("__", "."): value for name, value in settings.items()}
    made = attach(base, override(Config(), {"image.size": 32, "lora.rank": 2} | named))
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.requires_grad:
                parameter.add_(0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return made


@pytest.mark.parametrize(
    ("settings", "length"),
    [
        ({"lora__stages": "late"}, 4),
        ({"lora__stages": "early"}, 1),
        ({"lora__targets": "ungrouped"}, 0),
        ({"lora__stages": "late", "model__batch_norm": "train"}, 0),
        ({"model__strategy": "linear"}, 9),
        ({"model__strategy": "full"}, 0),
    ],
)
def test_the_frozen_prefix_ends_where_training_begins(base, settings, length):
    assert frozen_prefix(network(base, **settings)) == length


@pytest.mark.parametrize("settings", [{"lora__stages": "late"}, {"model__strategy": "linear"}])
def test_kept_outputs_give_the_same_logits_to_the_bit(base, images, settings, monkeypatch):
    monkeypatch.setattr(validation, "_KEPT", {})
    first, second = network(base, **settings), network(base, **settings)
    with torch.no_grad():
        second.get_parameter(next(n for n, p in second.named_parameters() if p.requires_grad)).mul_(3)
    for made in (first, second, first):
        kept = validation_logits(made, images.val, 32, CPU, base.sha256)
        assert np.array_equal(kept, predict_logits(made, images.val, 32, CPU))
    assert len(validation._KEPT) == 1
    assert not np.array_equal(kept, validation_logits(second, images.val, 32, CPU, base.sha256))


def test_outputs_are_made_anew_for_another_base(base, images):
    other = random_base(1)
    for given in (base, other, base):
        made = network(given, model__strategy="linear")
        kept = validation_logits(made, images.val, 32, CPU, given.sha256)
        assert np.array_equal(kept, predict_logits(made, images.val, 32, CPU))


def test_outputs_that_would_take_too_much_memory_are_not_kept(base, images, monkeypatch):
    monkeypatch.setattr(validation, "_KEPT", {})
    monkeypatch.setattr(validation, "_free", lambda device: 1000)
    made = network(base, lora__stages="late")
    kept = validation_logits(made, images.val, 32, CPU, base.sha256)
    assert np.array_equal(kept, predict_logits(made, images.val, 32, CPU))
    assert validation._KEPT == {}


def test_outputs_go_with_their_films(base, tmp_path, monkeypatch):
    monkeypatch.setattr(validation, "_KEPT", kept := {})
    own = make_images(tmp_path)
    validation_logits(network(base, model__strategy="linear"), own.val, 32, CPU, base.sha256)
    assert len(kept) == 1
    del own
    gc.collect()
    assert not kept


def test_what_is_kept_goes_when_training_runs_out_of_memory_and_comes_back_the_same(base, images, monkeypatch):
    monkeypatch.setattr(validation, "_KEPT", {})
    made = network(base, model__strategy="linear")
    first = validation_logits(made, images.val, 32, CPU, base.sha256)
    assert validation._KEPT
    seen, lines = [], []

    class Short(Eager):
        def part(self, images, targets, share):
            seen.append((len(images), len(validation._KEPT)))
            if len(images) > 2:
                raise torch.OutOfMemoryError("simulated")
            return super().part(images, targets, share)

    optimizer = torch.optim.SGD([weight for weight in made.parameters() if weight.requires_grad], lr=0.0)
    stepper = Stepper(Short(made, FocalLoss(0.25, 2.0), torch.float32), optimizer, 4, False, lines.append)
    stepper.step(torch.randn(4, 3, 32, 32), torch.tensor([1.0, 0.0, 1.0, 0.0]))
    assert seen == [(4, 1), (2, 0), (2, 0)]
    assert len(lines) == 1
    assert np.array_equal(first, validation_logits(made, images.val, 32, CPU, base.sha256))
