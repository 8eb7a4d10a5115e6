"""The twin of our network: what a script with PEFT would train, from the same start; and a base to compare them on.

The oracle of the tests of the folded adapter, and the plain side of ``step.py`` and ``quality.py``.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from xray_opt.adapter import lora_targets
from xray_opt.backbone import Base, build_network, random_base
from xray_opt.backbone.base import digest
from xray_opt.config import Config


def plain_peft(base: Base, config: Config) -> nn.Module:
    """PEFT's own layers and torchvision's own norms, in evaluation mode; the same start as ``attach`` gives."""
    network = build_network(base.state, config.model.dropout, config.model.stochastic_depth)
    lora = LoraConfig(
        r=config.lora.rank,
        lora_alpha=config.lora.alpha,
        lora_dropout=config.lora.dropout,
        target_modules=lora_targets(network, config.lora),
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(config.training.seed)
        nn.init.normal_(network.classifier[1].weight, std=0.01)
        network = get_peft_model(network, lora)
    for name, parameter in network.named_parameters():
        parameter.requires_grad = "classifier" in name or ".lora_" in name
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_frozen = config.model.batch_norm == "frozen"
    return network.eval()


def lively_base(seed: int = 0) -> Base:
    """Random weights with norms as a trained network has them: affine of all sizes, statistics of what flows through.

    With the norms of a fresh network all images give the same logit, and nothing would be compared.
    """
    generator = torch.Generator().manual_seed(seed)
    state = dict(random_base(seed).state)
    for name, value in state.items():
        if value.ndim == 1 and name.endswith("weight"):
            state[name] = 0.5 + torch.rand(value.shape, generator=generator)
        elif value.ndim == 1 and name.endswith("bias"):
            state[name] = 0.1 * torch.randn(value.shape, generator=generator)
    network = build_network(state).train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        network(torch.randn(16, 3, 64, 64, generator=generator))
    return base_of(network, state, "lively")


def base_of(network: nn.Module, names: Iterable[str], origin: str) -> Base:
    """The features of ``network`` as base weights."""
    found = network.state_dict()
    state = {name: found[name].clone() for name in names}
    return Base(state, digest(state), origin)
