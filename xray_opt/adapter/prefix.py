"""The stages before the first trained one: what they give for a film that is not augmented never changes."""

from __future__ import annotations

from torch import Tensor, nn

from xray_opt.adapter.attach import norms, without_peft


def frozen_prefix(network: nn.Module) -> int:
    """How many of the network's leading parts neither train nor follow the training films' statistics."""
    parts = _parts(network)
    for place, part in enumerate(parts):
        trained = any(parameter.requires_grad for parameter in part.parameters())
        if trained or any(not norm.track_frozen for norm in norms(part)):
            return place
    return len(parts)


def run_prefix(network: nn.Module, length: int, images: Tensor) -> Tensor:
    """Output of the first ``length`` parts for (B, 3, H, W) normalised ``images``."""
    for part in _parts(network)[:length]:
        images = part(images)
    return images


def run_rest(network: nn.Module, length: int, inner: Tensor) -> Tensor:
    """(B,) logits from what :func:`run_prefix` gave."""
    for part in _parts(network)[length:]:
        inner = part(inner)
    return inner.squeeze(1)


def _parts(network: nn.Module) -> list[nn.Module]:
    """Torchvision's forward as a list: eight stages, pooling and flattening, the head."""
    plain = without_peft(network)
    return [*plain.features, nn.Sequential(plain.avgpool, nn.Flatten()), plain.classifier]
