"""How a training step is done: kernel by kernel, through ``torch.compile``, as a CUDA graph, or as both."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
from torch import nn

from xray_opt.config import Config
from xray_opt.loss import FocalLoss
from xray_opt.trainer.compiled import Compiled, compiled
from xray_opt.trainer.eager import Eager
from xray_opt.trainer.graphed import Graphed


def choose(
    network: nn.Module,
    config: Config,
    precision: torch.dtype,
    device: torch.device,
    base_sha256: str,
    say: Callable[[str], None],
) -> Eager:
    """What ``training.compile`` and ``training.cuda_graphs`` ask for, as far as ``device`` has it."""
    training, loss = config.training, FocalLoss(config.loss.alpha, config.loss.gamma, config.loss.label_smoothing)
    if training.cuda_graphs and device.type != "cuda":
        say(f"training.cuda_graphs: {device} has no CUDA graphs; training goes on without, with equal results")
    elif training.cuda_graphs:
        same = same_kernels(config, base_sha256)
        if training.compile:
            return Graphed(network, loss, precision, same, compiled)
        return Graphed(network, loss, precision, same)
    return (Compiled if training.compile else Eager)(network, loss, precision)


def same_kernels(config: Config, base_sha256: str) -> Hashable:
    """Equal for two trainings whose captured steps are the same but for shapes, precision and what lies in memory.

    Rank and alpha are not in it where LoRA is folded: the step sees folded weights. The loss's settings lie in memory.
    """
    lora = config.lora
    placement: Hashable = (lora.stages, lora.targets) if lora.dropout == 0 else lora
    return base_sha256, config.model, placement, config.training.compile
