"""Adapter bundles on disk: PEFT's own two files, head, BatchNorm and ``bundle.json``; nothing is pickled."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from xray_opt.adapter.attach import attach, restore, trainable_state
from xray_opt.adapter.bundle import Bundle
from xray_opt.backbone import Base, file_sha256
from xray_opt.config import Config, override
from xray_opt.errors import BaseMismatch, ConfigError, ModelError, one_line

RECORD = "bundle.json"
#: PEFT's prefix of its modules' names.
_PEFT = "base_model.model."


def save_bundle(network: nn.Module, folder: Path, bundle: Bundle) -> Path:
    """Write a bundle into the new folder ``folder``, atomically; returns it.

    Raises:
        ModelError: the folder exists.
    """
    if folder.exists():
        raise ModelError(f"{folder} exists already; a bundle is never written over")
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.part")
    part.mkdir()
    try:
        _write_weights(network, part, bundle.strategy)
        files = {path.name: file_sha256(path) for path in sorted(part.iterdir())}
        (part / RECORD).write_text(replace(bundle, files=files).to_json(), encoding="utf-8")
        for path in part.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def _write_weights(network: nn.Module, folder: Path, strategy: str) -> None:
    state = {name.removeprefix(_PEFT): value.contiguous() for name, value in trainable_state(network).items()}
    head = {name: value for name, value in state.items() if name.startswith("classifier.")}
    save_file(head, folder / "head.safetensors")
    rest = {name: value for name, value in state.items() if name not in head and ".lora_" not in name}
    # LoRA wraps convolutions only, so BatchNorm keeps torchvision's names.
    if rest:
        save_file(rest, folder / ("weights.safetensors" if strategy == "full" else "batch_norm.safetensors"))
    if isinstance(network, PeftModel):
        _write_peft(network, folder)


def _write_peft(network: PeftModel, folder: Path) -> None:
    """PEFT's two files as it writes them itself, without its model card."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network.save_pretrained(str(folder), save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)


def read_bundle(folder: Path) -> Bundle:
    """The record of a bundle, its files checked against their digests.

    Raises:
        ModelError: no bundle, or one that was changed.
    """
    path = folder / RECORD
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{folder} is no adapter bundle: {RECORD} cannot be read ({type(error).__name__})") from error
    bundle = Bundle.from_json(text, str(path))
    if not bundle.files:
        raise ModelError(f"{path} names no files")
    for name, digest in bundle.files.items():
        if not re.fullmatch(r"[A-Za-z0-9_]+\.(safetensors|json)", name):
            raise ModelError(f"{path} names a file {name!r} that no bundle has")
        file = folder / name
        if not file.is_file():
            raise ModelError(f"{folder} lacks {name}, which its {RECORD} names")
        if file_sha256(file) != digest:
            raise ModelError(f"{file} was changed or damaged: its SHA-256 is not that of {RECORD}")
    return bundle


def load_bundle(folder: Path, base: Base) -> tuple[nn.Module, Bundle]:
    """The network of a bundle on its base, on the CPU in evaluation mode; logits equal the saved network's bit for bit.

    Raises:
        BaseMismatch: ``base`` is not the one the adapter was trained on.
        ModelError: the bundle is damaged.
    """
    bundle = read_bundle(folder)
    if bundle.base_sha256 != base.sha256:
        raise BaseMismatch(
            f"adapter {folder.name} was trained on base {bundle.base_sha256[:12]} ({bundle.base_origin}), this is "
            f"{base.sha256[:12]} ({base.origin}): refused; give the former with --weights PATH"
        )
    network = attach(base, _config(bundle, folder))
    try:
        state = _read_weights(folder, bundle.files)
        restore(network, _renamed(network, state))
    except (SafetensorError, KeyError, RuntimeError) as error:
        raise ModelError(f"{folder} does not hold the weights of its {RECORD} ({one_line(error)})") from error
    return network, bundle


def _config(bundle: Bundle, folder: Path) -> Config:
    try:
        config = override(Config(), bundle.config)
        chosen = {"model.strategy": bundle.strategy, "model.batch_norm": bundle.batch_norm}
        return override(config, chosen | {"model.dropout": bundle.dropout})
    except ConfigError as error:
        raise ModelError(f"{folder / RECORD}: config: {error}") from error


def _read_weights(folder: Path, files: Mapping[str, str]) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for name in files:
        if name.endswith(".safetensors"):
            state |= load_file(folder / name)
    return state


def _renamed(network: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State under the network's own names: PEFT leaves its adapter's name out of the file, we leave its prefix out."""
    if not isinstance(network, PeftModel):
        return dict(state)
    named = {}
    for name, value in state.items():
        inner = re.sub(r"(\.lora_[AB])\.weight$", r"\1.default.weight", name.removeprefix(_PEFT))
        named[_PEFT + inner] = value
    return named
