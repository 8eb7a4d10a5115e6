"""Films decoded once into a uint8 grey memory map, keyed by manifest and side; what training reads.

Films of the sealed test split are neither opened nor kept. The cache lies in one folder: ``pixels.npy`` (N, side, side)
and ``cache.json`` with its SHA-256. It is built under a temporary name and renamed: a kill leaves no half cache. Where
hosts share the folder and its disk knows no locks, several may build one at once: the first one is used by all.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from xray_opt.config import Workspace
from xray_opt.dataset import Film, Manifest, decode, to_square
from xray_opt.errors import BadFilm, DataError

Progress = Callable[[int, int], None]
FORMAT = 2
#: Seconds after which what another host builds counts as left behind.
OLD = 24 * 3600.0
#: The cache is so many times the training side, so that crops stay sharp.
FACTOR = 1.5


@dataclass(frozen=True)
class Split:
    """The films of one split.

    Attributes:
        labels: (N,) int64, 1 is pneumonia.
        groups: patient group of each film.
        paths: path of each film below the manifest's root.
    """

    name: str
    labels: NDArray[np.int64]
    groups: tuple[str, ...]
    paths: tuple[str, ...]
    pixels: NDArray[np.uint8] = field(repr=False)
    rows: NDArray[np.int64] = field(repr=False)

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: ArrayLike) -> NDArray[np.uint8]:
        """(B, side, side) uint8 copies of the films at these places of the split."""
        return np.asarray(self.pixels[self.rows[np.asarray(indices)]])


@dataclass(frozen=True)
class Images:
    """What training may see: train and validation. There is no test here; it is sealed."""

    train: Split
    val: Split
    side: int
    manifest: Manifest


def open_images(manifest: Manifest, image_size: int, workspace: Workspace, progress: Progress | None = None) -> Images:
    """Train and validation films of ``manifest`` for an input of ``image_size`` px; decodes what is not cached.

    Raises:
        DataError: a film is gone or changed, or the disk is full.
    """
    side = cache_side(manifest, image_size)
    pixels = _open(manifest, side, workspace.caches, progress)
    return Images(_split(manifest, "train", pixels), _split(manifest, "val", pixels), side, manifest)


def cache_side(manifest: Manifest, image_size: int) -> int:
    """Side of the cached squares: 1.5 times the input, no larger than the largest film, no smaller than the input."""
    largest = max(max(film.width, film.height) for film in _films(manifest))
    return max(image_size, min(-(-int(2 * FACTOR * image_size) // 2), largest))


def redrawn_images(images: Images, manifest: Manifest) -> Images:
    """The same decoded films under another split of them into train and val."""
    rows = {
        path: row for split in (images.train, images.val) for path, row in zip(split.paths, split.rows, strict=True)
    }

    def split(name: str) -> Split:
        made = _split(manifest, name, images.train.pixels)
        return replace(made, rows=np.array([rows[path] for path in made.paths], dtype=np.int64))

    return Images(split("train"), split("val"), images.side, manifest)


def _films(manifest: Manifest) -> list[Film]:
    """The films that are decoded, in the order of the cache's rows."""
    return [film for film in manifest.films if film.split != "test"]


def _split(manifest: Manifest, name: str, pixels: NDArray[np.uint8]) -> Split:
    rows = np.array([row for row, film in enumerate(_films(manifest)) if film.split == name], dtype=np.int64)
    films = manifest.of(name)
    labels = np.array([film.label for film in films], dtype=np.int64)
    groups, paths = (tuple(getattr(film, key) for film in films) for key in ("group", "path"))
    return Split(name, labels, groups, paths, pixels, rows)


def _open(manifest: Manifest, side: int, caches: Path, progress: Progress | None) -> NDArray[np.uint8]:
    folder = caches / f"{manifest.sha256[:16]}-{side}"
    found = _whole(folder, manifest, side)
    if found is None:
        with _locked(caches):
            # Another process may have built it while this one waited: only who holds the lock may remove one.
            found = _whole(folder, manifest, side)
            if found is None:
                _build(folder, manifest, side, progress)
                found = _whole(folder, manifest, side)
    if found is None:
        raise DataError(f"the cache {folder} is damaged as soon as it is written; check the disk")
    return found


@contextlib.contextmanager
def _locked(caches: Path) -> Iterator[None]:
    """One builder a workspace and host at a time, over all hosts where the disk knows locks of folders (NFS does not);
    the system lets go of the lock when a process dies, however it dies."""
    try:
        caches.mkdir(parents=True, exist_ok=True)
        handle = os.open(caches, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise DataError(f"cannot write the cache {caches}: {error.strerror or error}; free some space") from error
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _whole(folder: Path, manifest: Manifest, side: int) -> NDArray[np.uint8] | None:
    """The pixels if the cache is there and what its record says, else none."""
    try:
        record = json.loads((folder / "cache.json").read_text(encoding="utf-8"))
        file = folder / "pixels.npy"
        fits = record["format"] == FORMAT and record["manifest"] == manifest.sha256 and record["side"] == side
        if not fits or record["sha256"] != _sha256(file):
            return None
        pixels = np.lib.format.open_memmap(file, mode="r")
    except Exception:  # on a damaged header numpy raises errors of nearly every kind
        return None
    return pixels if pixels.shape == (len(_films(manifest)), side, side) and pixels.dtype == np.uint8 else None


def _build(folder: Path, manifest: Manifest, side: int, progress: Progress | None) -> None:
    part = folder.with_name(f".{folder.name}.{_host()}-{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        _sweep(folder.parent)
        part.mkdir()
        _decode_all(part / "pixels.npy", manifest, side, progress)
        record = {"format": FORMAT, "manifest": manifest.sha256, "side": side, "sha256": _sha256(part / "pixels.npy")}
        (part / "cache.json").write_text(json.dumps(record), encoding="utf-8")
        for file in part.iterdir():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        _move(part, folder, manifest, side)
    except OSError as error:
        raise DataError(f"cannot write the cache {folder}: {error.strerror or error}; free some space") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _decode_all(file: Path, manifest: Manifest, side: int, progress: Progress | None) -> None:
    """Decode in threads, write in order; written, not mapped: a full disk is then an error and not a bus fault."""
    films = _films(manifest)
    shape = (len(films), side, side)
    root = Path(manifest.root)
    with file.open("wb") as handle, ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        np.lib.format.write_array_header_1_0(handle, {"descr": "|u1", "fortran_order": False, "shape": shape})
        squares = pool.map(lambda film: _square(root, film, side), films)
        for row, square in enumerate(squares):
            handle.write(square.tobytes())
            if progress:
                progress(row + 1, shape[0])


def _square(root: Path, film: Film, side: int) -> NDArray[np.uint8]:
    try:
        content = (root / film.path).read_bytes()
        if hashlib.sha256(content).hexdigest() != film.sha256:
            raise DataError(f"{film.path} changed since it was prepared; run xray-opt data prepare {root} again")
        return to_square(decode(content, film.path), side)
    except (BadFilm, FileNotFoundError) as error:
        raise DataError(f"{film.path} cannot be decoded any more ({error}); run xray-opt data prepare again") from error


def _move(part: Path, folder: Path, manifest: Manifest, side: int) -> None:
    """Put what was built in its place; a whole one that another host put there meanwhile is as good, and stays."""
    try:
        part.rename(folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        if _whole(folder, manifest, side) is None:  # it is damaged
            shutil.rmtree(folder, ignore_errors=True)
            part.rename(folder)


def _sweep(caches: Path) -> None:
    """Remove what killed builders left: of this host, whose living ones the lock keeps out or are seen, and old ones of
    others, who may be building still."""
    for part in caches.glob(".*.part"):
        host, _, pid = part.name.removesuffix(".part").rpartition(".")[2].rpartition("-")[0].rpartition("-")
        if (host == _host() and not _lives(pid)) or time.time() - _changed(part) > OLD:
            shutil.rmtree(part, ignore_errors=True)


def _host() -> str:
    """This host and its view of processes, in eight characters: containers of one name have different ones."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        sight = f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        sight = socket.gethostname()
    return hashlib.sha256(sight.encode()).hexdigest()[:8]


def _lives(pid: str) -> bool:
    """Whether a process of this host runs; this one builds nothing while it sweeps."""
    if not pid.isdecimal() or int(pid) == os.getpid():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _changed(part: Path) -> float:
    """When something was last written below a folder, by this host's clock; now where it is gone."""
    try:
        return max(file.stat().st_mtime for file in (part, *part.iterdir()))
    except OSError:
        return time.time()


def _sha256(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
