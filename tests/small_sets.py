"""Small sets of real image files for the tests of the data rooms."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_film(path: Path, seed: int, size: tuple[int, int] = (40, 32), mode: str = "L") -> Path:
    """A grey JPEG of noise that no other seed gives."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0]), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, quality=90)
    return path


def kaggle_set(root: Path, patients: int = 14, films: int = 2) -> Path:
    """``patients`` normal and as many with pneumonia, in Kaggle's layout; two train to one test patient."""
    seed = 0
    for number in range(patients):
        folder = ("train", "train", "test")[number % 3]
        kind = ("bacteria", "virus")[number % 2]
        for film in range(films):
            write_film(root / folder / "NORMAL" / f"IM-{number:04d}-{film:04d}.jpeg", seed)
            write_film(root / folder / "PNEUMONIA" / f"person{number}_{kind}_{film}.jpeg", seed + 1)
            seed += 2
    return root
