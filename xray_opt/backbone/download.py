"""Fetches the ImageNet weights: resumes a broken download, verifies the SHA-256, keeps one copy a machine."""

from __future__ import annotations

import fcntl
import hashlib
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import BinaryIO

from xray_opt.errors import ModelError

#: Digest of torchvision's ``efficientnet_v2_s-dd5fe13b.pth``, quoted in three public places.
IMAGENET_SHA256 = "dd5fe13b1d60ec15317ccc8ca158186e134d3366c3dde9cb9a4e301f2dc66c74"
CHUNK = 1 << 20
TIMEOUT = 20.0
WAYS_ON = "give the file with --weights PATH, or take random weights on purpose with --set model.base=random"

Progress = Callable[[int, int], None]


def weight_cache() -> Path:
    """``XRAY_OPT_CACHE``, else ``~/.cache/xray-opt``."""
    return Path(os.environ.get("XRAY_OPT_CACHE") or Path.home() / ".cache" / "xray-opt")


def imagenet_weights(cache: Path | None = None, progress: Progress | None = None) -> Path:
    """Path of the verified ImageNet weights: ``XRAY_OPT_WEIGHTS`` if set, else downloaded once.

    Raises:
        ModelError: they cannot be had; the line names the ways on.
    """
    if given := os.environ.get("XRAY_OPT_WEIGHTS"):
        if not Path(given).is_file():
            raise ModelError(f"XRAY_OPT_WEIGHTS names {given}, which is no file")
        if file_sha256(Path(given)) != IMAGENET_SHA256:
            raise ModelError(f"XRAY_OPT_WEIGHTS: {given} is not torchvision's ImageNet file; use --weights PATH")
        return Path(given)
    from torchvision.models import EfficientNet_V2_S_Weights

    return download_weights(EfficientNet_V2_S_Weights.IMAGENET1K_V1.url, IMAGENET_SHA256, cache, progress)


def kept_weights(cache: Path | None = None) -> tuple[Path, bool]:
    """Where the ImageNet weights are kept on this machine, and whether a file is there that has their digest."""
    from torchvision.models import EfficientNet_V2_S_Weights

    name = EfficientNet_V2_S_Weights.IMAGENET1K_V1.url.rsplit("/", 1)[-1]
    path = Path(os.environ.get("XRAY_OPT_WEIGHTS") or (cache or weight_cache()) / name)
    return path, path.is_file() and file_sha256(path) == IMAGENET_SHA256


def download_weights(url: str, sha256: str, cache: Path | None = None, progress: Progress | None = None) -> Path:
    """The file behind ``url`` in ``cache``, fetched if it is not there with this digest.

    A broken download goes on where it stopped (HTTP Range). Two processes or hosts may fetch at once: each holds a part
    file of its own under a lock that dies with it.

    Args:
        progress: called with (bytes so far, bytes in all).

    Raises:
        ModelError: no network, or the bytes are not those of ``sha256``.
    """
    folder = cache or weight_cache()
    target = folder / url.rsplit("/", 1)[-1]
    if target.is_file() and file_sha256(target) == sha256:
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _own_part(target) as (part, file):
            _fetch(url, file, progress)
            found = file_sha256(part)
            if found != sha256:
                part.unlink()
                raise ModelError(
                    f"{target.name} has SHA-256 {found[:12]}, not {sha256[:12]}: refused; try again, {WAYS_ON}"
                )
            part.replace(target)
    except (urllib.error.URLError, OSError) as error:
        raise ModelError(f"cannot download {target.name} ({_reason(error)}); try again to resume, {WAYS_ON}") from error
    return target


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _own_part(target: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """The first part file that nobody holds, locked and open for appending: one left by a dead process is resumed."""
    for number in count():
        part = target.with_name(f"{target.name}.{number}.part")
        with part.open("ab") as file:
            if _lock(file) and _still_there(part, file):
                yield part, file
                return


def _lock(file: BinaryIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _still_there(part: Path, file: BinaryIO) -> bool:
    """Whether the path still names this file: its holder may have moved it into place between opening and locking."""
    try:
        return os.path.samestat(part.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _fetch(url: str, file: BinaryIO, progress: Progress | None) -> None:
    have = os.fstat(file.fileno()).st_size
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            if response.status != 206:
                have = 0  # the server does not resume: start over
                file.truncate(0)
            size = have + int(response.headers.get("Content-Length") or 0)
            while chunk := response.read(CHUNK):
                file.write(chunk)
                have += len(chunk)
                if progress:
                    progress(have, size)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        return  # nothing beyond what is here: the digest decides
    finally:
        file.flush()
    if size > have:
        raise OSError(f"the connection broke after {have} of {size} bytes")


def _reason(error: BaseException) -> str:
    reason = getattr(error, "reason", None) or error
    return " ".join(str(reason).split())[:120]
