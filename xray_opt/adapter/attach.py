"""Puts a strategy on the backbone: which weights are trained, and in which mode its BatchNorm runs."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from xray_opt.adapter.folded import fold_norms, spare_copies
from xray_opt.backbone import Base, build_network
from xray_opt.config import Config, LoraConfig
from xray_opt.errors import ModelError

#: torchvision's stages (``features.N``) of each placement; 0 is the stem, 7 the last convolution.
STAGES = {"early": (1, 2, 3), "late": (4, 5, 6, 7), "all": (1, 2, 3, 4, 5, 6, 7)}
_NORM = nn.BatchNorm2d


def attach(base: Base, config: Config) -> nn.Module:
    """A network of ``base`` with the strategy of ``config`` on it, on the CPU, in evaluation mode.

    The same ``training.seed`` gives the same head and the same adapter; the global random state is left alone.
    Under ``lora`` and ``linear`` the base's weights are frozen, but BatchNorm follows the statistics of the training
    films where ``batch_norm`` is ``train``; under ``full`` every weight is trained, BatchNorm's affine too.
    LoRA without dropout and frozen BatchNorm are folded into their convolution: base weights must stay as they are.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.training.seed)
        plain = build_network(base.state, config.model.dropout, config.model.stochastic_depth)
        nn.init.normal_(plain.classifier[1].weight, std=0.01)
        network: nn.Module = _with_lora(plain, config.lora) if config.model.strategy == "lora" else plain
    spare_copies(network)
    train_norms = config.model.batch_norm == "train"
    if not train_norms and config.model.strategy != "full":
        fold_norms(network)
    for name, parameter in network.named_parameters():
        parameter.requires_grad = config.model.strategy == "full" or "classifier" in name or ".lora_" in name
    for module in norms(network):
        module.track_frozen = not train_norms  # type: ignore[assignment]
    network.eval()
    return network


def _with_lora(network: nn.Module, lora: LoraConfig) -> nn.Module:
    # Its import takes seconds, as it brings transformers: only those wait who train or load LoRA.
    from peft import LoraConfig as PeftLora
    from peft import get_peft_model

    settings = PeftLora(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        target_modules=lora_targets(network, lora),
        bias="none",
    )
    if lora.dropout == 0:  # dropout is on the input of A alone, which needs its own convolution
        from xray_opt.adapter.folded_conv import FoldedConv

        settings._register_custom_module({nn.Conv2d: FoldedConv})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return get_peft_model(network, settings)


def lora_targets(network: nn.Module, lora: LoraConfig) -> list[str]:
    """Names of the convolutions that get LoRA: ungrouped ones of the stages (a grouped one cannot be merged).

    ``dense`` leaves out squeeze-excite (79 of 170 over all stages); ``ungrouped`` takes it and the stem in (140).
    """
    stages = STAGES[lora.stages]
    if lora.targets == "ungrouped" and lora.stages != "late":
        stages = (0, *stages)
    return [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d)
        and module.groups == 1
        and int(name.split(".")[1]) in stages
        and (lora.targets == "ungrouped" or (".fc1" not in name and ".fc2" not in name))
    ]


def without_peft(network: Any) -> Any:
    """Torchvision's network inside PEFT's wrapper, or the network itself where it has none."""
    return network.get_base_model() if hasattr(network, "get_base_model") else network


def norms(network: nn.Module) -> list[nn.Module]:
    """All BatchNorm layers, in order."""
    return [module for module in network.modules() if isinstance(module, _NORM)]


def set_mode(network: nn.Module, training: bool) -> None:
    """Training or evaluation mode; BatchNorm that is frozen stays in evaluation mode."""
    network.train(training)
    for module in norms(network):
        if module.track_frozen:
            module.eval()


def logits(network: nn.Module, images: Tensor) -> Tensor:
    """(B,) logits of (B, 3, H, W) normalised images."""
    answer: Tensor = network(images)
    return answer.squeeze(1)


def trainable(network: nn.Module) -> int:
    """How many weights are trained."""
    return sum(weight.numel() for weight in network.parameters() if weight.requires_grad)


def trainable_state(network: nn.Module) -> dict[str, Tensor]:
    """Copies on the CPU of all that may differ from the base: trained weights, and statistics of trained BatchNorm."""
    return {name: value.detach().cpu().clone() for name, value in _differing(network).items()}


def _differing(network: nn.Module) -> dict[str, Tensor]:
    """All that may differ from the base, by name, as it lies in the network."""
    state: dict[str, Tensor] = {name: value for name, value in network.named_parameters() if value.requires_grad}
    return state | {
        f"{prefix}.{name}": buffer
        for prefix, module in network.named_modules()
        if isinstance(module, _NORM) and not module.track_frozen
        for name, buffer in module.named_buffers()
    }


@torch.no_grad()
def restore(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Write back what :func:`trainable_state` gave; exact.

    Raises:
        ModelError: names, shapes or types are not those of the network, or a value is not finite; nothing is written.
    """
    targets = _differing(network)
    if strangers := sorted(targets.keys() ^ state.keys()):
        fault = "is missing" if strangers[0] in targets else "is left over"
        raise ModelError(f"tensor {strangers[0]} {fault}")
    for name, target in targets.items():
        value = state[name]
        if (value.shape, value.dtype) != (target.shape, target.dtype):
            found, wanted = (f"{tuple(tensor.shape)} {tensor.dtype}" for tensor in (value, target))
            raise ModelError(f"tensor {name} is {found}, should be {wanted}")
        if not torch.isfinite(value).all():
            raise ModelError(f"tensor {name} is not finite")
    for name, target in targets.items():
        target.copy_(state[name])
