"""Films to fuzz with: small ones of every mode and format, and what may be wrong with them."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable

import numpy as np
from film_bytes import dicom_bytes, encoded
from harness import Case
from mutations import mutated
from PIL import Image

NOISE = np.random.default_rng(5).integers(0, 255, (40, 56), dtype=np.uint8)
RAMP = (np.add.outer(np.arange(40), np.arange(56)) * 2).astype(np.uint8)
DEEP = RAMP.astype(np.uint16) * 257
EXTENSIONS = (".jpeg", ".png", ".dcm", ".JPG", ".gif", "", ".txt")


def grey(pixels: np.ndarray = RAMP, mode: str = "L") -> Image.Image:
    return Image.fromarray(pixels).convert(mode)


def turned(orientation: int, kind: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(grey(NOISE), kind, exif=exif)


def animated(kind: str) -> bytes:
    return encoded(grey(RAMP), kind, save_all=True, append_images=[grey(NOISE)])


def bases() -> dict[str, bytes]:
    """Kind → bytes of a whole film, or of something that is none."""
    found = {f"jpeg {mode}": encoded(grey(RAMP, mode), "JPEG") for mode in ("L", "RGB", "CMYK")}
    found |= {f"png {mode}": encoded(grey(RAMP, mode)) for mode in ("L", "RGB", "P", "1", "LA", "RGBA")}
    found |= {"png 16": encoded(DEEP), "png 12": encoded(DEEP // 16), "jpeg noise": encoded(grey(NOISE), "JPEG")}
    found |= {"jpeg progressive": encoded(grey(NOISE, "RGB"), "JPEG", progressive=True)}
    found |= {"png clear": encoded(grey(), transparency=3), "png text": encoded(grey(), icc_profile=b"x" * 500)}
    found |= {f"exif {n} {kind}": turned(n, kind) for n in (0, 1, 3, 6, 8, 9) for kind in ("JPEG", "PNG")}
    found |= {f"animated {kind}": animated(kind) for kind in ("GIF", "PNG", "WEBP", "TIFF")}
    found |= {kind: encoded(grey(), kind) for kind in ("BMP", "TIFF", "GIF")}
    found |= {
        f"{n}×{m}": encoded(grey(NOISE[:n, :m]), k) for n, m, k in ((1, 1, "PNG"), (1, 40, "JPEG"), (16, 16, "PNG"))
    }
    found |= {f"dicom {t}": dicom_bytes(RAMP.astype(t)) for t in ("uint8", "uint16", "int16")}
    found |= {"dicom inverse": dicom_bytes(RAMP, PhotometricInterpretation="MONOCHROME1")}
    found |= {"dicom window": dicom_bytes(DEEP, WindowCenter=30000, WindowWidth=20000, PatientID="p1")}
    found |= {"dicom rescale": dicom_bytes(DEEP, RescaleSlope="0.5", RescaleIntercept="-1024")}
    return found | {"empty": b"", "text": b"hello", "zeros": bytes(300), "html": b"<html></html>"}


def chunks(content: bytes) -> list[bytes]:
    """The chunks of a PNG with lengths and checksums, behind its signature."""
    found, at = [], 8
    while at + 12 <= len(content):
        (size,) = struct.unpack(">I", content[at : at + 4])
        found.append(content[at : at + 12 + size])
        at += 12 + size
    return found


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(*parts: bytes) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def shuffled_chunks(content: bytes, chance: random.Random) -> bytes:
    parts = chunks(content)
    chance.shuffle(parts)
    return png(*parts, *chance.choices(parts, k=chance.randrange(3)))


def mended_chunks(content: bytes, chance: random.Random) -> bytes:
    """A PNG with changed chunks whose checksums are right again: what is wrong is inside."""
    parts = []
    for one in chunks(content):
        body = mutated(one[8:-4], chance)[1] if chance.random() < 0.5 else one[8:-4]
        if one[4:8] == b"IDAT" and chance.random() < 0.5:
            body = zlib.compress(mutated(zlib.decompress(one[8:-4]), chance)[1])
        parts.append(chunk(one[4:8], body))
    return png(*parts)


def declared(chance: random.Random) -> bytes:
    """Sides, depth and colour that a header declares, over little data, over all of it, or over none."""
    sides = (0, 1, 15, 16, 17, 2000, 9000, 10000, 10001, 2**16, 2**31 - 1, 2**31, 2**32 - 1)
    width, height = chance.choice(sides), chance.choice(sides)
    depth, colour = chance.choice((1, 2, 4, 8, 16)), chance.choice((0, 0, 2, 3, 4, 6, 7))
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, chance.choice((0, 0, 1)))
    row = 1 + width * depth * {2: 3, 4: 2, 6: 4}.get(colour, 1) // 8
    body = chance.choice(
        (b"", bytes(100), bytes(min(row * height, 10**7)), bytes(row * height * (row * height < 7 * 10**8)))
    )
    palette = [chunk(b"PLTE", bytes(range(48)))] if chance.random() < 0.3 else []
    return png(chunk(b"IHDR", head), *palette, chunk(b"IDAT", zlib.compress(body, 1)), chunk(b"IEND", b""))


def bomb(chance: random.Random) -> bytes:
    """A little that becomes a lot: texts and profiles of a PNG, scans of a JPEG, a deflated DICOM."""
    match chance.randrange(5):
        case 0 | 1:
            kind, head = chance.choice(((b"zTXt", b"a\0\0"), (b"iTXt", b"a\0\1\0\0\0"), (b"iCCP", b"a\0\0")))
            lot = chunk(kind, head + zlib.compress(bytes(chance.choice((10**5, 3 * 10**7))), 9))
            parts = chunks(bases_of["png L"])
            return png(parts[0], *[lot] * chance.choice((1, 1, 20)), *parts[1:])
        case 2:
            return big_jpeg(chance.choice((1000, 9000)), chance.choice((1, 30, 99, 101)))
        case 3:
            return bases_of["dicom uint8"].replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99")
        case _:
            return jpeg_sides(bases_of["jpeg L"], chance.choice((17, 9999, 65535)), chance.choice((17, 9999, 65535)))


def jpeg_sides(content: bytes, width: int, height: int) -> bytes:
    """A JPEG that declares other sides."""
    at = next(at for at in range(len(content)) if content[at] == 0xFF and content[at + 1] in (0xC0, 0xC2))
    return content[: at + 5] + struct.pack(">HH", height, width) + content[at + 9 :]


def big_jpeg(side: int, scans: int) -> bytes:
    """A progressive JPEG whose first scans are repeated: each is a pass over all of its pixels."""
    content = jpeg_sides(bases_of["jpeg progressive"], side, side)
    first, second = (content.index(b"\xff\xda", content.index(b"\xff\xda") + skip) for skip in (0, 2))
    return content[:first] + content[first:second] * scans + content[second:]


def dicom_fields(chance: random.Random) -> bytes:
    """DICOM whose fields say odd things."""
    odd = {
        "Rows": (0, 1, 39, 65535),
        "Columns": (0, 57, 65535),
        "BitsAllocated": (1, 7, 8, 32, 64),
        "BitsStored": (0, 1, 4, 12, 200),
        "SamplesPerPixel": (0, 3),
        "NumberOfFrames": (0, 2, 10**6),
        "WindowWidth": ("0", "-5", "1", "1e300", ["1", "2"], "0.5"),
        "WindowCenter": ("0", "-1e300", ["5", "6"], "100"),
        "RescaleSlope": ("0", "-1", "1e308", "-1e308"),
        "RescaleIntercept": ("0", "1e308", "-5"),
        "PhotometricInterpretation": ("MONOCHROME1", "RGB", "PALETTE COLOR", "", "monochrome2"),
        "VOILUTFunction": ("SIGMOID", "LINEAR", "LINEAR_EXACT", "odd"),
        "PixelRepresentation": (0, 1, 7),
        "PatientID": ("", "a\\b", "x" * 64, "é"),
    }
    chosen = chance.sample(sorted(odd), chance.choice((1, 2, 4)))
    pixels = RAMP if chance.random() < 0.5 else DEEP
    return dicom_bytes(pixels, **{name: chance.choice(odd[name]) for name in chosen})


bases_of = bases()
MADE: dict[str, Callable[[random.Random], bytes]] = {
    "declared sides": declared,
    "bomb": bomb,
    "dicom fields": dicom_fields,
    "chunks shuffled": lambda chance: shuffled_chunks(_a_png(chance), chance),
    "chunks changed": lambda chance: mended_chunks(_a_png(chance), chance),
}


def _a_png(chance: random.Random) -> bytes:
    return bases_of[chance.choice([kind for kind, content in bases_of.items() if content.startswith(b"\x89PNG")])]


def film_case(chance: random.Random, number: int) -> Case:
    """Whole films first, each once under each extension; then changed ones."""
    whole = list(bases_of)
    if number < len(whole):
        return Case("whole", (bases_of[whole[number]], "film" + EXTENSIONS[number % len(EXTENSIONS)]))
    extension = chance.choice(EXTENSIONS)
    if chance.random() < 0.35:
        kind = chance.choice(list(MADE))
        return Case(kind, (MADE[kind](chance), "film" + extension))
    content, kinds = bases_of[chance.choice(whole)], []
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        kind, content = mutated(content, chance, list(bases_of.values()))
        kinds.append(kind)
    return Case(kinds[0], (content, "film" + extension))


def opened(content: bytes) -> Image.Image:
    """As Pillow opens it, its brightness read without its colour where it is a JPEG."""
    image = Image.open(io.BytesIO(content))
    image.draft("L", None)
    return image
