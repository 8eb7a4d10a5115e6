"""EfficientNetV2-S (Tan and Le 2021) of torchvision with a one-logit head."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from functools import lru_cache

import torch
from torch import Tensor, nn
from torchvision.models import EfficientNet, efficientnet_v2_s

#: Width of the features that the head sees.
FEATURES = 1280


def empty_network(dropout: float = 0.0, stochastic_depth: float = 0.0) -> EfficientNet:
    """The network on the meta device: shapes without memory or initialisation."""
    # Copied: torchvision draws weights even on the meta device, which takes most of a trial's start.
    return deepcopy(_prototype(dropout, stochastic_depth))


@lru_cache(maxsize=8)
def _prototype(dropout: float, stochastic_depth: float) -> EfficientNet:
    with torch.device("meta"):
        network: EfficientNet = efficientnet_v2_s(weights=None, stochastic_depth_prob=stochastic_depth)
        network.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(FEATURES, 1))
    return network


def build_network(state: Mapping[str, Tensor], dropout: float = 0.0, stochastic_depth: float = 0.0) -> EfficientNet:
    """A network with a copy of the feature weights ``state`` and a head of zeros; takes well under a second.

    Forward is (B, 3, H, W) float → (B, 1) logits.
    """
    network = empty_network(dropout, stochastic_depth).to_empty(device="cpu")
    network.load_state_dict(dict(state), strict=False)
    for name, buffer in network.named_buffers():
        if name.endswith("num_batches_tracked"):
            buffer.zero_()
    head = network.classifier[1]
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return network


def feature_shapes() -> dict[str, torch.Size]:
    """Name → shape of every weight and statistic of the features, without batch counters."""
    state = empty_network().features.state_dict(prefix="features.")
    return {name: value.shape for name, value in state.items() if not name.endswith("num_batches_tracked")}
