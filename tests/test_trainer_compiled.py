"""Compiled training steps: the gradients of uncompiled ones, and nothing compiled anew for another rank or alpha."""

import pytest
import torch
from torch._dynamo.utils import counters

from xray_opt.adapter import attach, trainable_state
from xray_opt.adapter.live import LiveWeights, halves
from xray_opt.backbone import Base, random_base
from xray_opt.config import Config, override
from xray_opt.evaluate import predict_logits
from xray_opt.loss import FocalLoss
from xray_opt.trainer.compiled import Compiled
from xray_opt.trainer.eager import Eager
from xray_opt.trainer.step import Stepper
from xray_opt.trainer.trainer import make_optimizer

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def base() -> Base:
    return random_base(0)


def network(base: Base, rank: int, alpha: float, norm: str = "frozen"):
    plain = {"model.stochastic_depth": 0.0, "model.dropout": 0.0, "image.size": 32, "model.batch_norm": norm}
    config = override(Config(), plain | {"lora.rank": rank, "lora.alpha": alpha})
    made = attach(base, config).to(memory_format=torch.channels_last)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.01 * torch.randn(parameter.shape, generator=generator))
    return made, make_optimizer(made, config.optimizer)


def stepped(base: Base, rank: int, alpha: float, compiled: bool):
    made, optimizer = network(base, rank, alpha)
    loss = FocalLoss(0.25, 2.0)
    gradients = Compiled(made, loss, torch.float32, "aot_eager") if compiled else Eager(made, loss, torch.float32)
    step = Stepper(gradients, optimizer, 4, False, print).step
    generator = torch.Generator().manual_seed(3)
    for films in (4, 4, 3):  # the last batch is short
        images = torch.randn(films, 3, 32, 32, generator=generator)
        step(images, torch.tensor([1.0, 0.0, 1.0, 1.0])[:films])
        predict_logits(made, torch.zeros(2, 48, 48, dtype=torch.uint8).numpy(), 32, CPU)
    return trainable_state(made)


def test_the_gradients_reach_a_and_b(base):
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = []
    for lives in (False, True):
        made, _ = network(base, 4, 8.0, "train")
        live = LiveWeights(made, torch.float32) if lives else None
        if live:
            adapter = live.adapter(made)
            for tensor in live.tensors:
                tensor.detach().zero_()
            live.fold(adapter)
        made(images).square().sum().backward()
        if live:
            halves_ = live.project(adapter, [tensor.grad for tensor in live.tensors])
            for half, gradient in zip(halves(adapter), halves_, strict=True):
                half.grad = gradient
        found.append({name: p.grad for name, p in made.named_parameters() if p.requires_grad})
    plain, through = found
    assert plain.keys() == through.keys()
    largest = max(float(gradient.abs().max()) for gradient in plain.values())
    for name, gradient in plain.items():
        torch.testing.assert_close(through[name], gradient, rtol=1e-3, atol=1e-5 * largest, msg=name)


def test_a_step_that_broke_off_leaves_no_gradient(base):
    """Two halves of a step that broke off and was begun again give what one undisturbed step gives."""
    found = []
    images, targets = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.tensor([1.0, 0.0])
    for broken in (False, True):
        made, _ = network(base, 4, 8.0)
        gradients = Compiled(made, FocalLoss(0.25, 2.0), torch.float32, "eager")
        gradients._graph = lambda images, made=made: made(images).squeeze(1)
        if broken:
            gradients.begin()
            gradients.part(images, targets, 1.0)
            made.zero_grad()
        gradients.begin()
        gradients.part(images, targets, 1.0)
        gradients.end()
        found.append({name: parameter.grad for name, parameter in made.named_parameters() if parameter.requires_grad})
    assert any(gradient.abs().max() > 0 for gradient in found[0].values())
    assert all(torch.equal(gradient, found[1][name]) for name, gradient in found[0].items())


@pytest.mark.slow
def test_ranks_and_alphas_share_one_graph_and_give_the_uncompiled_weights(base):
    torch._dynamo.reset()
    counters.clear()
    graphs = []
    for rank, alpha in ((4, 8.0), (8, 16.0), (16, 8.0), (32, 64.0)):
        through, plain = (stepped(base, rank, alpha, compiled) for compiled in (True, False))
        graphs.append(counters["stats"]["unique_graphs"])
        assert through.keys() == plain.keys()
        for name, value in plain.items():
            torch.testing.assert_close(through[name], value, rtol=1e-3, atol=2e-4, msg=name)
    assert graphs == [1, 1, 1, 1]
    assert not counters["graph_break"]
