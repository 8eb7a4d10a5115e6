"""The one decoder: JPEG, PNG (8 and 16 bit) and DICOM to upright grey uint8 pixels, or one plain reason why not.

``inspect`` decodes a file once and says what it is; ``decode`` gives its pixels. The same bytes always give the same
pixels. Every malformed file raises :class:`~xray_opt.errors.BadFilm` (never another error), no file makes it wait, and
none makes it allocate more than a film needs. Nothing global of Pillow or ``warnings`` is touched: it runs in threads.
"""

from __future__ import annotations

import hashlib
import io
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from xray_opt.dataset import dicom
from xray_opt.dataset.limits import LEAST_SIDE, MOST_BYTES, MOST_SCANS, check_size
from xray_opt.errors import BadFilm, one_line

Grey = NDArray[np.uint8]

#: Brightest value of a film of 12 bits.
_TWELVE_BITS = 4095
#: Chroma (0 is grey, 128 the most) above which a spot has colour and not merely JPEG's rounding.
_COLOUR = 10
_MODES = ("1", "L", "I;16", "I;16B", "I", "RGB", "P")
_JPEG, _PNG = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"
_SIGNATURES = {
    b"%PDF": "a PDF",
    b"PK\x03\x04": "a ZIP archive",
    b"\x1f\x8b": "a gzip archive",
    b"GIF8": "a GIF",
    b"BM": "a BMP",
    b"II*\0": "a TIFF",
    b"MM\0*": "a TIFF",
    b"RIFF": "a WebP or another RIFF file",
    b"version https://git-lfs": "a Git LFS pointer; fetch the real file with git lfs pull",
    b"<": "HTML or XML text",
}


@dataclass(frozen=True)
class Facts:
    """What a file is: sides in pixels of the upright film, mode (Pillow's, or for example ``DICOM MONOCHROME2``)."""

    width: int
    height: int
    mode: str
    bytes: int
    sha256: str


def inspect(path: Path) -> Facts:
    """Read and decode one file once.

    Raises:
        BadFilm: it cannot be used; the message is the reason alone.
    """
    content = read_bytes(path)
    with _as_bad_film():
        if _is_dicom(content, path.name):
            pixels, photometric = dicom.pixels(content)
            (height, width), mode = pixels.shape, f"DICOM {photometric}"
        else:
            image = _opened(content)
            mode, (width, height) = image.mode, image.size
            image.draft("L", (LEAST_SIDE, LEAST_SIDE))  # reads every byte of a JPEG, yet in a fraction of the time
            image.load()
            if 5 <= _orientation(image) <= 8:
                width, height = height, width
    return Facts(width, height, mode, len(content), hashlib.sha256(content).hexdigest())


def decode(source: Path | bytes, name: str = "") -> Grey:
    """(H, W) uint8 grey pixels, upright (EXIF orientation applied).

    Colour becomes luma. 16-bit values are scaled by the smaller of 4095 and 65535 that holds the brightest pixel, as
    films of 12 bits are often stored unscaled. DICOM: see :func:`xray_opt.dataset.dicom.pixels`.

    Args:
        source: a path, or the file's bytes.
        name: file name of a source of bytes; a name ending in ``.dcm`` marks DICOM that lacks its preamble.

    Raises:
        BadFilm: it cannot be used; the message is the reason alone.
    """
    content, name = (read_bytes(source), source.name) if isinstance(source, Path) else (source, name)
    with _as_bad_film():
        if _is_dicom(content, name):
            return dicom.pixels(content)[0]
        image = _opened(content)
        image.draft("L", None)
        return _upright(image)


def thumbnail(path: Path, side: int) -> Grey:
    """(side, side) uint8 of one film, for screening: near to, not equal to, ``to_square(decode(path), side)``.

    Raises:
        BadFilm: it cannot be used.
    """
    content = read_bytes(path)
    with _as_bad_film():
        if _is_dicom(content, path.name):
            return to_square(dicom.pixels(content)[0], side)
        image = _opened(content)
        image.draft("L", (2 * side, 2 * side))
        return to_square(_upright(image), side)


def has_colour(path: Path) -> bool:
    """Whether an RGB film has any coloured spot (of about 1/64 of its width), not only grey saved as RGB.

    Raises:
        BadFilm: it cannot be used.
    """
    content = read_bytes(path)
    with _as_bad_film():
        image = _opened(content)
        if image.mode != "RGB":
            return False
        image.draft("RGB", (64, 64))
        chroma = np.asarray(image.convert("YCbCr").resize((64, 64), Image.Resampling.BOX))[:, :, 1:]
        return bool(np.abs(chroma.astype(np.int16) - 128).max() > _COLOUR)


def to_square(grey: Grey, side: int) -> Grey:
    """(side, side) uint8 of (H, W) uint8, antialiased; the aspect ratio goes, as it alone tells the class."""
    return np.array(Image.fromarray(grey).resize((side, side), Image.Resampling.BILINEAR))


def dicom_patient(path: Path) -> str:
    """The patient id of a DICOM header, empty where it has none.

    Raises:
        BadFilm: the header cannot be read.
    """
    content = read_bytes(path)
    with _as_bad_film():
        return dicom.patient(content)


def begins_like_a_film(path: Path) -> bool:
    """Whether a regular file begins as JPEG, PNG or DICOM do, whatever it is called; false where it cannot be read."""
    return (head := _head(path)).startswith((_JPEG, _PNG)) or dicom.is_dicom(head)


def may_be_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM does, or is called so."""
    return _is_dicom(_head(path), path.name)


def _head(path: Path) -> bytes:
    """The first bytes of a regular file; none where it cannot be read."""
    with suppress(OSError):
        if stat.S_ISREG(path.stat().st_mode):  # a pipe would wait
            with path.open("rb") as file:
                return file.read(132)
    return b""


def read_bytes(path: Path) -> bytes:
    """All bytes of a regular file of a film's size.

    Raises:
        BadFilm: missing, a folder, a pipe (not even opened: that would wait), unreadable, empty or far too large.
    """
    try:
        facts = path.stat()
        if stat.S_ISDIR(facts.st_mode):
            raise BadFilm("a folder, not a file")
        if not stat.S_ISREG(facts.st_mode):
            raise BadFilm("not a regular file (a pipe, socket or device)")
        if facts.st_size == 0:
            raise BadFilm("zero bytes")
        if facts.st_size > MOST_BYTES:
            raise BadFilm(f"{facts.st_size:,} bytes are too many for a film")
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BadFilm("broken symbolic link" if path.is_symlink() else "no such file") from error
    except OSError as error:
        raise BadFilm(f"cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # a NUL in the path
        raise BadFilm(f"cannot be read: {error}") from error


@contextmanager
def _as_bad_film() -> Iterator[None]:
    """Decoders raise errors of nearly every kind on malformed bytes; all of them mean that the film is bad."""
    try:
        yield
    except BadFilm:
        raise
    except MemoryError as error:
        raise BadFilm("needs more memory than there is") from error
    except Exception as error:
        line = one_line(error, 120)
        if isinstance(error, EOFError) or "truncated" in line.lower():
            line = "truncated: the file ends before its picture does"
        elif isinstance(error, SyntaxError):
            line = "corrupt or truncated header"
        else:
            line = f"corrupt: {line}"
        raise BadFilm(line) from error


def _is_dicom(content: bytes, name: str) -> bool:
    if content.startswith((_JPEG, _PNG)):
        return False
    return dicom.is_dicom(content) or name.lower().endswith((".dcm", ".dicom"))


def _opened(content: bytes) -> ImageFile.ImageFile:
    """An image of a usable format, size and mode, its pixels not decoded yet.

    The plugins are called directly: ``Image.open`` warns by ``warnings``, whose state threads share.
    """
    image: ImageFile.ImageFile
    if content.startswith(_JPEG):
        if content.count(b"\xff\xda") > MOST_SCANS:
            raise BadFilm(f"decompression bomb: a JPEG of more than {MOST_SCANS} scans")
        image = JpegImageFile(io.BytesIO(content))
    elif content.startswith(_PNG):
        image = PngImageFile(io.BytesIO(content))
    else:
        raise BadFilm(f"not an image but {_what(content)}; films are JPEG, PNG or DICOM")
    check_size(*image.size)
    if "mp" in image.info or getattr(image, "n_frames", 1) > 1:
        raise BadFilm("several frames in one file")
    if image.mode not in _MODES:
        raise BadFilm(f"odd mode {image.mode}; a film is grey, or grey saved as RGB")
    if "transparency" in image.info:
        raise BadFilm(f"odd mode {image.mode} with transparency; a film is grey, or grey saved as RGB")
    if image.mode == "P" and not _grey_palette(image):
        raise BadFilm("odd mode P with a palette of colours; a film is grey, or grey saved as RGB")
    return image


def _grey_palette(image: Image.Image) -> bool:
    colours = np.array(image.getpalette() or [], dtype=np.uint8).reshape(-1, 3)
    return bool((colours == colours[:, :1]).all())


def _what(content: bytes) -> str:
    start = content[:512].lstrip()
    if known := next((what for signature, what in _SIGNATURES.items() if start.startswith(signature)), None):
        return known
    if not content.strip(b"\0"):
        return "nothing but zero bytes"
    if start.isascii() and all(byte >= 32 or byte in b"\t\r\n\f" for byte in start):
        return "plain text"
    return f"bytes of no known kind ({content[:4].hex(' ')})"


def _orientation(image: Image.Image) -> int:
    """EXIF orientation of an image that was loaded: asking earlier would load it here and hide its errors."""
    try:
        value = image.getexif().get(0x0112)
    except Exception:  # unreadable EXIF tells no orientation, and the pixels may still be good
        return 1
    return value if isinstance(value, int) else 1


def _upright(image: Image.Image) -> Grey:
    grey = _grey(image)
    orientation = _orientation(image)
    if 5 <= orientation <= 8:
        grey = grey.T
    if orientation in (2, 3, 6, 7):
        grey = grey[:, ::-1]
    if orientation in (3, 4, 7, 8):
        grey = grey[::-1]
    return np.ascontiguousarray(grey)


def _grey(image: Image.Image) -> Grey:
    if not image.mode.startswith("I"):
        return np.asarray(image.convert("L"), dtype=np.uint8)
    values = np.asarray(image)
    if values.dtype != np.uint16:
        values = np.clip(values, 0, 65535).astype(np.uint16)
    table = _greys(_TWELVE_BITS if values.max() <= _TWELVE_BITS else 65535)
    grey: Grey = np.empty(values.shape, np.uint8)
    for row, deep in zip(grey, values, strict=True):  # numpy looks up by 8 bytes a pixel: never of a whole film
        row[:] = table[deep]
    return grey


def _greys(full: int) -> Grey:
    """(full + 1,) uint8: the grey of every value of a film whose brightest may be ``full``."""
    table: Grey = np.rint(np.arange(full + 1, dtype=np.float32) * (255 / full)).astype(np.uint8)
    return table
