"""Which device and which precision a run computes with."""

from __future__ import annotations

import torch

from xray_opt.errors import ConfigError


def resolve_device(name: str) -> torch.device:
    """``auto`` is CUDA, else MPS, else the CPU; anything else is taken at its word.

    Raises:
        ConfigError: the device is not there.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device {name!r} is not auto, cuda, cuda:N, mps or cpu") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"training.device {name} is not there ({torch.cuda.device_count()} CUDA devices); use auto")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("training.device mps is not there; use auto or cpu")
    return device


def resolve_precision(name: str, device: torch.device) -> torch.dtype:
    """Type that training computes in: ``auto`` is bf16 where the device has arithmetic for it, else fp32.

    On CPUs without bf16 instructions, and on MPS, bf16 is emulated and slower.
    """
    if name != "auto":
        return torch.bfloat16 if name == "bf16" else torch.float32
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        native = device.type == "cpu" and _cpu_has_bf16()
    return torch.bfloat16 if native else torch.float32


def _cpu_has_bf16() -> bool:
    return any(getattr(torch.cpu, probe, bool)() for probe in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"))
