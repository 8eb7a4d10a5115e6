"""Tells a machine that failed from a training that failed, whichever library says so."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from xray_opt.errors import DeviceFault, DiskFault, XrayError, one_line

#: What the libraries below PyTorch say when the GPU, or this process's context on it, is broken.
BROKEN = re.compile(r"\b(CUDA|cuDNN|CUBLAS|cuFFT|NVRTC|HIP|MPS).{0,40}(error|failed)|device-side assert", re.IGNORECASE)
#: What the system says of a disk that refuses.
REFUSALS = tuple(os.strerror(number) for number in (errno.ENOSPC, errno.EROFS, errno.EDQUOT))


@contextmanager
def device_faults() -> Iterator[None]:
    """Find out in which case whatever runs next in this process would fail as well.

    Raises:
        DeviceFault: the GPU failed. That memory ran out is no such failure.
    """
    try:
        yield
    except RuntimeError as error:
        broken = isinstance(error, torch.AcceleratorError) or BROKEN.search(str(error))
        if isinstance(error, torch.OutOfMemoryError) or not broken:
            raise
        raise DeviceFault(
            f"the GPU failed under this process ({one_line(error)}); nothing is lost, run the same command again"
        ) from error


@contextmanager
def disk_faults() -> Iterator[None]:
    """Find out in which case it was the disk that refused.

    Raises:
        DiskFault: full, over its quota, or read-only.
    """
    try:
        yield
    except XrayError:
        raise
    except Exception as error:
        if any(words in str(error) for words in REFUSALS):
            raise DiskFault(f"{one_line(error)}; free some space or check permissions, and run it again") from error
        raise
