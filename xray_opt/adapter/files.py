"""Adapter bundles on disk: PEFT's own two files, head, BatchNorm and ``bundle.json``; nothing is pickled."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from xray_opt.adapter.attach import attach, restore, trainable_state
from xray_opt.adapter.bundle import Bundle
from xray_opt.backbone import Base, file_sha256
from xray_opt.config import Config, override
from xray_opt.errors import BaseMismatch, ConfigError, ModelError, one_line

if TYPE_CHECKING:
    from peft import PeftModel

RECORD = "bundle.json"
#: Bytes of the two files of JSON in a bundle; they have a few thousand.
MOST_RECORD = 1 << 20
_HEAD, _NORMS, _ALL = "head.safetensors", "batch_norm.safetensors", "weights.safetensors"
_PEFT_CONFIG, _PEFT_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
#: Fields of PEFT's config that say nothing of what the adapter computes.
_IDLE = {"auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision"}
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


def _text(path: Path) -> str:
    """Text of a small regular file: a pipe would wait, a device never end."""
    if not path.exists():
        raise FileNotFoundError("no such file")
    if not path.is_file():
        raise ValueError("not a regular file")
    with path.open("rb") as file:
        content = file.read(MOST_RECORD + 1)
    if len(content) > MOST_RECORD:
        raise ValueError(f"more than {MOST_RECORD >> 20} MiB")
    return content.decode("utf-8")


def file_names(bundle: Bundle) -> set[str]:
    """The files that a bundle of this strategy has beside its record."""
    if bundle.strategy == "full":
        return {_HEAD, _ALL}
    norms = {_NORMS} if bundle.batch_norm == "train" else set()
    return norms | ({_HEAD, _PEFT_CONFIG, _PEFT_WEIGHTS} if bundle.strategy == "lora" else {_HEAD})


def _write_weights(network: nn.Module, folder: Path, strategy: str) -> None:
    state = {name.removeprefix(_PEFT): value.contiguous() for name, value in trainable_state(network).items()}
    head = {name: value for name, value in state.items() if name.startswith("classifier.")}
    save_file(head, folder / _HEAD)
    rest = {name: value for name, value in state.items() if name not in head and ".lora_" not in name}
    # LoRA wraps convolutions only, so BatchNorm keeps torchvision's names.
    if rest:
        save_file(rest, folder / (_ALL if strategy == "full" else _NORMS))
    if strategy == "lora":
        _write_peft(cast("PeftModel", network), folder)


def _write_peft(network: PeftModel, folder: Path) -> None:
    """PEFT's two files as it writes them itself, without its model card; the same adapter gives the same bytes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network.save_pretrained(str(folder), save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
    settings = json.loads((folder / _PEFT_CONFIG).read_text(encoding="utf-8"))
    settings["target_modules"].sort()  # PEFT keeps a set
    (folder / _PEFT_CONFIG).write_text(json.dumps(settings, indent=2, sort_keys=True), encoding="utf-8")


def read_bundle(folder: Path) -> Bundle:
    """The record of a bundle, its files checked against their digests.

    Raises:
        ModelError: no bundle, or one that was changed.
    """
    path = folder / RECORD
    try:
        text = _text(path)
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder} is no adapter bundle: {RECORD} cannot be read ({one_line(error)})") from error
    bundle = Bundle.from_json(text, str(path))
    if strangers := sorted(bundle.files.keys() ^ file_names(bundle)):
        fault = "does not name the file" if strangers[0] in file_names(bundle) else "names the file"
        raise ModelError(f"{path} {fault} {strangers[0]!r}, unlike every bundle of strategy {bundle.strategy}")
    for name, digest in bundle.files.items():
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
        ModelError: the bundle is damaged, or its parts do not agree with each other.
    """
    bundle = read_bundle(folder)
    if bundle.base_sha256 != base.sha256:
        raise BaseMismatch(
            f"adapter {folder.name} was trained on base {bundle.base_sha256[:12]} ({bundle.base_origin}), this is "
            f"{base.sha256[:12]} ({base.origin}): refused; give the former with --weights PATH"
        )
    try:
        network = attach(base, _config(bundle))
        if bundle.strategy == "lora":
            _check_peft(cast("PeftModel", network), folder)
        restore(network, _read_weights(folder, bundle))
    except (ConfigError, ModelError, SafetensorError, OSError) as error:
        raise ModelError(f"{folder}: weights and {RECORD} do not agree ({one_line(error)})") from error
    return network, bundle


def _config(bundle: Bundle) -> Config:
    """The settings of the run, which must agree with the record's own fields."""
    own = {
        "model.strategy": bundle.strategy,
        "model.batch_norm": bundle.batch_norm,
        "model.dropout": bundle.dropout,
        "image.size": bundle.image_size,
    }
    for name, value in own.items():
        if bundle.config.get(name, value) != value:
            raise ModelError(f"config says {name} {bundle.config[name]!r}, the record {value!r}")
    return override(Config(), dict(bundle.config) | own)


def _check_peft(network: PeftModel, folder: Path) -> None:
    """PEFT's own config of the adapter must be that of ``network``: it is what other readers go by."""
    wanted: dict[str, Any] = network.peft_config["default"].to_dict()
    try:
        found = json.loads(_text(folder / _PEFT_CONFIG))
        found["target_modules"] = set(found["target_modules"])
    except (ValueError, RecursionError, LookupError, TypeError) as error:
        raise ModelError(f"{_PEFT_CONFIG} cannot be read: {one_line(error)}") from error
    # A field that another version of PEFT has and this one has not says nothing here.
    for name in sorted((wanted.keys() & found.keys() | {"r", "lora_alpha", "lora_dropout"}) - _IDLE):
        if found.get(name) != wanted[name]:
            raise ModelError(f"{_PEFT_CONFIG}: {name} is not that of {RECORD}")


def _read_weights(folder: Path, bundle: Bundle) -> dict[str, Tensor]:
    """All tensors of a bundle under the network's own names."""
    state: dict[str, Tensor] = {}
    for file in sorted(file_names(bundle) - {_PEFT_CONFIG}):
        for name, value in load_file(folder / file).items():
            own = _network_name(name) if bundle.strategy == "lora" else name
            if own in state:
                raise ModelError(f"tensor {name} stands in two files")
            state[own] = value
    return state


def _network_name(name: str) -> str:
    """PEFT leaves its adapter's name out of the file, we leave its prefix out."""
    return _PEFT + re.sub(r"(\.lora_[AB])\.weight$", r"\1.default.weight", name.removeprefix(_PEFT))
