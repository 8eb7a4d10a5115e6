"""What a file may declare of itself and still be taken for a film."""

from __future__ import annotations

from xray_opt.errors import BadFilm

#: Declared pixels above which a file is a decompression bomb; a detector gives about 20 million.
MOST_PIXELS = 100_000_000
#: Bytes above which a file is no film.
MOST_BYTES = 256 * 1024 * 1024
#: Shortest side in pixels.
LEAST_SIDE = 16
#: Scans of a progressive JPEG; real ones have about ten, each costs a pass over all pixels.
MOST_SCANS = 100


def check_size(width: int, height: int) -> None:
    """Raise BadFilm where the declared sides (pixels) are no film's."""
    if width * height > MOST_PIXELS:
        raise BadFilm(f"decompression bomb: it declares {width}×{height} pixels")
    if min(width, height) < LEAST_SIDE:
        raise BadFilm(f"too small: {width}×{height} pixels")
