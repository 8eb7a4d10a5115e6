"""An adapter merged into its base: the plain network of torchvision, which needs neither PEFT nor this package."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import EfficientNet

from xray_opt.adapter.attach import without_peft
from xray_opt.backbone import build_network


@torch.no_grad()
def merged(network: nn.Module) -> EfficientNet:
    """A network of plain torchvision layers that computes what ``network`` does, on the CPU in evaluation mode.

    ``W + s B A`` is summed in float64 and cast to fp32 once. BatchNorm stands apart again, with the statistics that
    ``network`` has.
    """
    inner: Any = without_peft(network)
    state = {
        name.replace(".base_layer.", "."): value.detach().cpu()
        for name, value in inner.state_dict().items()
        if ".lora_" not in name
    }
    for name, layer in inner.named_modules():
        if hasattr(layer, "lora_A"):
            state[f"{name}.weight"] = _folded(layer)
    plain = build_network({name: value for name, value in state.items() if name.startswith("features.")})
    plain.load_state_dict(state)
    return plain.eval().requires_grad_(False)


def _folded(layer: Any) -> Tensor:
    """(O, I, h, w) weight of one convolution with its adapter; only ungrouped ones have one."""
    weight, down, up = (one.weight.detach().cpu().double() for one in _parts(layer))
    update = (up.flatten(1) @ down.flatten(1)).view_as(weight)
    return torch.add(weight, update, alpha=float(layer.scaling["default"])).float()


def _parts(layer: Any) -> tuple[Any, Any, Any]:
    return layer.get_base_layer(), layer.lora_A["default"], layer.lora_B["default"]
