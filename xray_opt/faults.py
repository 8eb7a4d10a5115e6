"""Tells a machine that failed from a training that failed, whichever library says so."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from xray_opt.errors import REFUSALS, DeviceFault, DiskFault, OutOfMemory, XrayError, one_line

#: What the libraries below PyTorch say when the GPU, or this process's context on it, is broken.
BROKEN = re.compile(r"\b(CUDA|cuDNN|CUBLAS|cuFFT|NVRTC|HIP|MPS).{0,40}(error|failed)|device-side assert", re.IGNORECASE)
#: What they say where memory ran out: the libraries' own ways to say it, the driver's, PyTorch's on a CPU, and C++'s.
MEMORY = re.compile(
    r"(CUBLAS|CUDNN|CUFFT|CUSOLVER|CUSPARSE)_\w*ALLOC\w*_FAILED|out of memory"
    r"|DefaultCPUAllocator|allocate memory|not enough memory|std::bad_alloc"
    # oneDNN says no more than this; what it has no code for it calls a descriptor.
    r"|could not create a (memory object|primitive)(?! desc)",
    re.IGNORECASE,
)
#: The kinds of error that may say so.
SHORTAGES = (RuntimeError, MemoryError, OSError)
#: What the system says of a disk that refuses, which other libraries repeat in errors of their own.
SAID = tuple(os.strerror(number) for number in REFUSALS)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error of Python, numpy, PyTorch or the system says that memory ran out, in whatever words.

    The memory of the GPU or that of the machine; neither is broken by that.
    """
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and bool(MEMORY.search(str(error)))
    )


def of_the_machine(error: BaseException) -> bool:
    """Whether an error tells of the machine it met, memory or a GPU, and nothing of what was asked of it."""
    return out_of_memory(error) or isinstance(error, torch.AcceleratorError) or _broken(error)


def _broken(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and bool(BROKEN.search(str(error)))


@contextmanager
def device_faults() -> Iterator[None]:
    """Find out in which case whatever runs next in this process would fail as well.

    Raises:
        DeviceFault: the GPU failed.
        OutOfMemory: its memory ran out, which is no such failure, where nobody could make do with less.
    """
    try:
        yield
    except SHORTAGES as error:
        if out_of_memory(error):
            raise OutOfMemory(f"memory ran out ({one_line(error)}); lower image.size, or free the device") from error
        if not of_the_machine(error):
            raise
        raise DeviceFault(
            f"the GPU failed under this process ({one_line(error)}); nothing is lost, run the same command again"
        ) from error


@contextmanager
def disk_faults() -> Iterator[None]:
    """Find out in which case it was the disk that refused.

    Raises:
        DiskFault: full, over its quota, read-only, closed to this user, or failing.
    """
    try:
        yield
    except XrayError:
        raise
    except Exception as error:
        if any(words in str(error) for words in SAID):
            raise DiskFault(f"{one_line(error)}; free some space or check permissions, and run it again") from error
        raise
