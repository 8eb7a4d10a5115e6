"""Base weights: where they come from, and the digest by which adapters know them."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torchvision.models import efficientnet_v2_s

from xray_opt.backbone.download import imagenet_weights
from xray_opt.backbone.lineage import Ancestor, from_header, to_header
from xray_opt.backbone.network import feature_shapes
from xray_opt.config import ModelConfig
from xray_opt.errors import ModelError, one_line
from xray_opt.faults import disk_faults


@dataclass(frozen=True)
class Base:
    """Feature weights and BatchNorm statistics of EfficientNetV2-S, fp32 on the CPU, without a classifier.

    Attributes:
        state: torchvision's name (``features.…``) → tensor.
        sha256: digest of names, shapes and bytes; the same for every file format.
        origin: ``imagenet``, ``random seed N`` or the file's name; a label, nothing is decided by it being ``random``.
        trained_on: the trainings of one's own that it went through, the last one last; none for other weights.
    """

    state: Mapping[str, Tensor] = field(repr=False)
    sha256: str
    origin: str
    trained_on: tuple[Ancestor, ...] = field(default=(), repr=False)

    def without_lists(self) -> Base:
        """The same weights without the lists of films and patients they were trained on: what may leave the machine."""
        return replace(self, trained_on=tuple(one.without_lists() for one in self.trained_on))

    def warning(self) -> str | None:
        """A loud line where the weights are random, whatever they are called, else none.

        The first step of any training moves the statistics of BatchNorm away from mean 0 and variance 1, unless they
        were frozen.
        """
        if self.trained_on:
            return None
        statistics = [(value, name) for name, value in self.state.items() if ".running_" in name]
        if any((value != name.endswith("_var")).any() for value, name in statistics):
            return None
        return (
            f"!!! base weights are RANDOM ({self.origin}), not ImageNet's: scores stay far below what is possible. "
            "Train on ImageNet weights with --set model.base=imagenet, or --weights PATH"
        )


def load_base(model: ModelConfig, cache: Path | None = None) -> Base:
    """The base weights that ``model.base`` names: ``imagenet`` (downloaded once into ``cache``), ``random``, a path.

    Raises:
        ModelError: they cannot be had or do not fit; never falls back to others.
    """
    if model.base == "random":
        return random_base(model.base_seed)
    if model.base == "imagenet":
        path = imagenet_weights(cache)
        return _made(_read_file(path), "imagenet", str(path))
    return read_base(Path(model.base))


def random_base(seed: int) -> Base:
    """torchvision's own initialisation from ``seed``; the global random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = efficientnet_v2_s(weights=None)
    state = network.features.state_dict(prefix="features.")
    return _made(state, f"random seed {seed}", f"random seed {seed}")


def read_base(path: Path) -> Base:
    """Base weights from ``.safetensors`` or torchvision's ``.pth`` (read with ``weights_only``).

    Raises:
        ModelError: missing, unreadable, changed since it was saved, another architecture, or not finite.
    """
    if not os.path.isfile(path):
        raise ModelError(f"no base weights at {path}; give a .safetensors or .pth file of EfficientNetV2-S")
    header = _header(path) if path.suffix == ".safetensors" else {}
    # What has no suffix might be called "imagenet".
    name = path.name if path.suffix else f"file {path.name}"
    base = _made(_read_file(path), " ".join((header.get("origin") or name).split())[:100], str(path))
    if {"origin", "sha256"} <= header.keys() and header["sha256"] != base.sha256:
        raise ModelError(f"{path} was changed or damaged: its weights do not have the SHA-256 of its header")
    return replace(base, trained_on=from_header(header, str(path)))


def trained_base(state: Mapping[str, Any], origin: str, trained_on: tuple[Ancestor, ...]) -> Base:
    """The base that a whole training gave, from torchvision's names and tensors.

    Raises:
        ModelError: a tensor is missing, of another shape or not finite.
    """
    return replace(_made(state, origin, origin), trained_on=trained_on)


def save_base(base: Base, path: Path) -> Path:
    """Write ``base`` as safetensors, atomically; its origin, and what it was trained on, stand in the header.

    Raises:
        DiskFault: the disk refuses.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    with disk_faults():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            about = {"origin": base.origin, "sha256": base.sha256} | to_header(base.trained_on)
            save_file(dict(base.state), part, metadata=about)
            with part.open("rb") as file:
                os.fsync(file.fileno())
            part.replace(path)
        finally:
            with suppress(OSError):
                part.unlink(missing_ok=True)
    return path


def _read_file(path: Path) -> dict[str, Any]:
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, ValueError, EOFError, KeyError) as error:
        raise ModelError(f"{path} holds no readable weights ({one_line(error)})") from error
    except Exception as error:  # pickle's refusals have classes of their own, some private
        raise ModelError(f"{path} is refused: {one_line(error)}") from error
    if not isinstance(state, dict):
        raise ModelError(f"{path} holds a {type(state).__name__}, not a state dict of EfficientNetV2-S")
    return state


def _header(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file."""
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} holds no readable weights ({one_line(error)})") from error


def _made(state: Mapping[str, Any], origin: str, where: str) -> Base:
    """Check shapes and values, keep the features alone, and take their digest; errors name ``where``."""
    features = {}
    for name, shape in feature_shapes().items():
        tensor = state.get(name)
        if not isinstance(tensor, Tensor):
            raise ModelError(f"{where} has no tensor {name}: these are no weights of an EfficientNetV2-S")
        if tensor.shape != shape:
            raise ModelError(f"{where}: {name} is {tuple(tensor.shape)}, should be {tuple(shape)}")
        try:
            features[name] = tensor.detach().to("cpu", torch.float32).contiguous()
            finite = bool(torch.isfinite(features[name]).all())
        except RuntimeError as error:  # a tensor without values, sparse or quantized
            raise ModelError(f"{where}: {name} is no plain tensor ({one_line(error)})") from error
        if not finite:
            raise ModelError(f"{where}: {name} is not finite")
    return Base(features, digest(features), origin)


def digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over sorted names, shapes and fp32 bytes."""
    total = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name]
        total.update(f"{name}:{tuple(tensor.shape)}:".encode())
        total.update(tensor.numpy().tobytes())
    return total.hexdigest()
