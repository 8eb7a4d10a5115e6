"""Made-up chest films, so that the demo and the tests need no download: for trying things out, not for science.

A film is drawn from a few dozen shapes on a small canvas (x and y from -1 to 1, y downwards, bright where much is
absorbed), brought to its size, and given noise, markers and a JPEG quality of its own. Pneumonia adds soft opacities
inside the lungs, focal for bacteria and diffuse for viruses, from hardly visible to plain. Size, aspect, exposure and
quality are drawn alike for both classes: file metadata tells nothing here, unlike in the real set.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from xray_opt.errors import DataError, shortened

Canvas = NDArray[Any]  # float32; numpy's stubs know too little of mixed arithmetic to say so

#: Lies in every folder made here, and is written last: without it the folder is not ours to replace.
MARKER = "phantoms.json"
_SIDE = 176
_PNEUMONIA = 0.73
_OWN_FILE = re.compile(r"(train|val|test)/(NORMAL|PNEUMONIA)/[\w-]+\.jpeg|" + re.escape(MARKER))


@dataclass(frozen=True)
class _Patient:
    """``kind`` is ``normal``, ``bacteria`` or ``virus``; ``first`` the running number of the first film."""

    number: int
    kind: str
    split: str
    films: int
    first: int


def make_phantoms(root: Path, patients: int, seed: int, progress: Callable[[int, int], None] | None = None) -> int:
    """Write the films of ``patients`` made-up patients, one to four each, in Kaggle's layout; say how many films.

    The same arguments give the same films. The folder appears whole or not at all; one made here before is replaced.

    Args:
        patients: at least 12, so that every split has both classes; 73 % have pneumonia.
        progress: called with (films done, films in all).

    Raises:
        DataError: too few patients, the folder holds anything else, or it cannot be written.
    """
    root = Path(os.path.abspath(root))
    if patients < 12:
        raise DataError(f"phantoms need at least 12 patients, so that every split has both classes, not {patients}")
    part = root.with_name(f".{root.name}.part")
    try:
        _require_own(root)
        shutil.rmtree(part, ignore_errors=True)
        films = _write(part, _patients(patients, seed), seed, progress)
        note = {"note": "made-up chest films, not for science", "patients": patients, "seed": seed, "films": films}
        (part / MARKER).write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")
        shutil.rmtree(root, ignore_errors=True)
        part.rename(root)
    except OSError as error:
        raise DataError(
            f"cannot write phantoms to {shortened(str(root))}: {error.strerror}; choose another folder"
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return films


def _require_own(root: Path) -> None:
    if not root.exists() and not root.is_symlink():
        return
    if not root.is_dir() or root.is_symlink():
        raise DataError(f"{root} is no folder; choose a new one for the phantoms")
    files = [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_symlink() or not path.is_dir()]
    other = sorted(name for name in files if not _OWN_FILE.fullmatch(name))
    if files and (other or MARKER not in files):
        raise DataError(
            f"{root} holds files that are no phantoms ({(other or files)[0]}); choose a new or empty folder"
        )


def _patients(count: int, seed: int) -> list[_Patient]:
    """Patients of both classes, dealt to the folders as 80/10/10 within their class."""
    generator = np.random.default_rng((seed, 1))
    sick = round(_PNEUMONIA * count)
    kinds = ["bacteria" if generator.random() < 0.65 else "virus" for _ in range(sick)] + ["normal"] * (count - sick)
    dealt = []
    for size in (sick, count - sick):
        tenth = max(1, round(size / 10))
        splits = ["val"] * tenth + ["test"] * tenth + ["train"] * (size - 2 * tenth)
        dealt += [splits[i] for i in generator.permutation(size)]
    films = generator.choice(4, size=count, p=(0.45, 0.3, 0.15, 0.1)) + 1
    firsts = np.cumsum(films) - films + 1
    rows = zip(kinds, dealt, films, firsts, strict=True)
    return [_Patient(i, kind, split, int(n), int(first)) for i, (kind, split, n, first) in enumerate(rows, start=1)]


def _write(folder: Path, patients: list[_Patient], seed: int, progress: Callable[[int, int], None] | None) -> int:
    for split in ("train", "val", "test"):
        for label in ("NORMAL", "PNEUMONIA"):
            (folder / split / label).mkdir(parents=True)
    jobs = [(patient, film) for patient in patients for film in range(patient.films)]

    def draw(job: tuple[_Patient, int]) -> None:
        patient, film = job
        label = "NORMAL" if patient.kind == "normal" else "PNEUMONIA"
        image, quality = _film(patient, film, seed)
        image.save(folder / patient.split / label / _name(patient, film), "JPEG", quality=quality)

    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        for done, _ in enumerate(pool.map(draw, jobs), start=1):
            if progress:
                progress(done, len(jobs))
    finally:
        pool.shutdown(cancel_futures=True)
    return len(jobs)


def _name(patient: _Patient, film: int) -> str:
    """The grammars of the Kaggle set, in turn."""
    number = patient.number
    if patient.kind != "normal":
        return f"person{number}_{patient.kind}_{patient.first + film}.jpeg"
    if number % 2:
        return f"IM-{number:04d}-{film + 1:04d}.jpeg"
    return f"NORMAL2-IM-{number:04d}-0001{f'-{film:04d}' if film else ''}.jpeg"


def _film(patient: _Patient, film: int, seed: int) -> tuple[Image.Image, int]:
    """One film and its JPEG quality."""
    body = np.random.default_rng((seed, 2, patient.number))
    generator = np.random.default_rng((seed, 3, patient.number, film))
    aspect = generator.uniform(0.95, 1.5)
    height = int(np.exp(generator.uniform(np.log(200), np.log(900 / max(aspect, 1)))))
    width = round(height * aspect)
    canvas = _anatomy(body, generator, patient.kind, aspect)
    image = Image.fromarray(canvas).resize((width, height), Image.Resampling.BICUBIC)
    return _exposed(image, generator), int(generator.integers(60, 96))


def _exposed(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Exposure, noise that grows where little light came through, collimation, marker; one in twenty saved as RGB."""
    pixels = np.asarray(image)
    grain = generator.standard_normal(pixels.shape, dtype=np.float32)
    pixels = pixels + generator.uniform(0.004, 0.02) * (0.5 + pixels) * grain
    low, high = generator.uniform(-0.05, 0.08), generator.uniform(0.92, 1.12)
    pixels = np.clip((pixels - low) / (high - low), 0, 1) ** np.float32(generator.uniform(0.8, 1.3))
    top, left = (int(generator.integers(0, side // 30)) for side in pixels.shape)
    pixels[:top] = pixels[:, :left] = 0.01
    film = Image.fromarray((pixels * 255).astype(np.uint8))
    if generator.random() < 0.6:
        side = max(10, film.height // 14)
        place = (int(film.width * generator.choice((0.05, 0.88))), int(film.height * generator.uniform(0.04, 0.2)))
        ImageDraw.Draw(film).text(place, str(generator.choice(("R", "L"))), fill=235, font=ImageFont.load_default(side))
    return film.convert("RGB") if generator.random() < 0.05 else film


def _step(distance: Canvas, softness: float) -> Canvas:
    """0 far below zero, 1 far above, soft in between."""
    return np.asarray(0.5 + 0.5 * np.tanh(distance / np.float32(2 * softness)), dtype=np.float32)


def _blob(x: Canvas, y: Canvas, centre: tuple[float, float], radii: tuple[float, float]) -> Canvas:
    """A Gaussian hill of height 1."""
    return np.asarray(np.exp(-(((x - centre[0]) / radii[0]) ** 2) - ((y - centre[1]) / radii[1]) ** 2), np.float32)


def _clouds(generator: np.random.Generator, cells: int) -> Canvas:
    """Smooth noise of unit variance with ``cells`` hills along a side."""
    noise = generator.standard_normal((cells, cells), dtype=np.float32)
    smooth = np.asarray(Image.fromarray(noise).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC))
    return np.asarray(smooth / max(float(smooth.std()), 1e-3), np.float32)


def _pose(generator: np.random.Generator, aspect: float) -> tuple[Canvas, Canvas]:
    """Body coordinates (x, y) of the canvas: turned, shifted and zoomed a little; wide films show more of the sides."""
    axis = np.linspace(-1, 1, _SIDE, dtype=np.float32)
    x, y = np.meshgrid(axis * np.float32(0.92 * aspect), axis)
    turn, zoom = generator.normal(0, 0.03), generator.uniform(0.92, 1.04)
    cos, sin = np.float32(np.cos(turn) * zoom), np.float32(np.sin(turn) * zoom)
    across, down = (np.float32(generator.normal(0, 0.035)) for _ in range(2))
    return cos * x - sin * y + across, sin * x + cos * y + down


def _anatomy(body: np.random.Generator, generator: np.random.Generator, kind: str, aspect: float) -> Canvas:
    """The (176, 176) canvas of one film: ``body`` draws what films of a patient share, ``generator`` the rest."""
    x, y = _pose(generator, aspect)
    breath = np.float32(body.normal(0, 0.03) + generator.normal(0, 0.03))
    side = np.abs(x)
    cage_width, heart = np.float32(body.uniform(0.67, 0.86)), np.float32(body.uniform(0.82, 1.22))
    cage = cage_width * np.sqrt(np.clip(1 - np.abs((y - 0.3) / 1.08) ** 2.6, 0, 1))
    shoulders = 0.26 + 0.74 * _step(y + 0.78 - 0.12 * side, 0.05) - 0.1 * _step(y + 0.1, 0.2)
    inside = _step(shoulders * (cage_width + 0.28) - side, 0.012)
    dome = 0.42 + breath + 0.4 * np.square((side - 0.3) / 0.5) + np.where(x < 0, -0.05, 0.02).astype(np.float32)
    middle = 0.13 + 0.03 * _step(y, 0.2)
    lungs = _step(cage - 0.06 - side, 0.014) * _step(side - middle, 0.018) * _step(dome - y, 0.014)
    lungs *= _step(y + 0.76, 0.02)
    heart_x = (x - 0.1) * 0.9 + (y - 0.24) * 0.35
    heart_y = (y - 0.24) - (x - 0.1) * 0.35
    beyond = np.square(heart_x / (0.34 * heart)) + np.abs(heart_y / (0.31 * heart)) ** np.float32(1.7)
    lungs *= 1 - 0.93 * _step(1 - beyond, 0.12)
    tissue = 0.56 + 0.05 * _clouds(generator, 5) + 0.16 * _step(y - dome, 0.04)
    tissue += 0.13 * _step(0.16 - side, 0.035) + 0.07 * _step(1 - beyond, 0.12)
    tissue -= body.uniform(0, 0.3) * _blob(x, y, (0.38, 0.75), (0.13, 0.08))
    air = 0.2 + 0.045 * _clouds(body, 9) + 0.02 * _clouds(generator, 28)
    air += 0.17 * (_blob(side, y, (0.19, 0.0), (0.13, 0.2)) + 0.5 * _blob(side, y, (0.2, 0.2), (0.2, 0.3)))
    air += generator.uniform(0, 0.06) * _step(y - 0.1, 0.15) + generator.uniform(0, 0.04)
    if kind != "normal":
        air += _opacity(body, generator, kind, x, y)
    film = tissue * (1 - lungs) + np.minimum(air, 0.62) * lungs
    film += _bones(body, x, y, cage, dome)
    film -= 0.13 * _step(0.035 - np.abs(x + 0.01), 0.01) * _step(-0.28 - y, 0.05)
    film = np.asarray(film * inside + 0.02, np.float32)
    return film + np.float32(generator.uniform(-0.05, 0.05)) * y * inside


def _opacity(body: np.random.Generator, generator: np.random.Generator, kind: str, x: Canvas, y: Canvas) -> Canvas:
    """What pneumonia adds to the lungs: consolidation of a lobe, or haze and streaks around both hila."""
    strength = np.float32(0.72 * np.clip(body.beta(2.4, 1.0) + generator.normal(0, 0.1), 0.16, 1))
    if kind == "bacteria":
        sign = body.choice((-1.0, 1.0))
        centre = (sign * body.uniform(0.25, 0.55), body.uniform(-0.45, 0.4))
        radius = body.uniform(0.22, 0.48)
        patch = _blob(x, y, centre, (radius, radius * body.uniform(0.7, 1.3)))
        return np.asarray(strength * np.clip(1.5 * patch * (1 + 0.3 * _clouds(generator, 12)), 0, 1.1), np.float32)
    reach = _blob(np.abs(x), y, (0.28, 0.08), (0.35, 0.5))
    streaks = np.clip(0.3 + 0.45 * _clouds(generator, 14) + 0.4 * np.abs(_clouds(generator, 34)), 0, 1.6)
    return np.asarray(0.75 * strength * reach * streaks, np.float32)


def _bones(body: np.random.Generator, x: Canvas, y: Canvas, cage: Canvas, dome: Canvas) -> Canvas:
    """Ribs behind (rising to the spine) and before (sinking to the breastbone), clavicles, spine, shoulder blades."""
    side, gap = np.abs(x), float(body.uniform(0.135, 0.17))
    slope, bend = np.float32(body.uniform(0.05, 0.3)), np.float32(body.uniform(0.5, 0.9))
    within = _step(cage + 0.03 - side, 0.012) * (1 - 0.6 * _step(y - dome, 0.03)) * _step(y + 0.8, 0.03)
    behind = y - np.float32(body.uniform(0, 0.15)) - slope * side - bend * np.square(np.maximum(side - 0.3, 0))
    before = y + 0.75 * side - 0.35 * np.square(side)
    bones = (
        within * _step(side - 0.07, 0.02) * (0.1 * _bands(behind, gap, 0.3) + 0.05 * _bands(before, gap * 1.15, 0.26))
    )
    line = y + body.uniform(0.56, 0.64) + 0.2 * side - 0.1 * np.sin(4 * side).astype(np.float32)
    clavicle = _step(0.03 - np.abs(line), 0.008) * _step(side - 0.09, 0.015) * _step(0.78 - side, 0.03)
    blade = _step(0.06 - np.abs(side - 0.83 + 0.25 * (y + 0.4)), 0.02) * _step(0.3 - np.abs(y + 0.3), 0.05)
    spine = _step(0.075 - np.abs(x), 0.012) * (0.06 + 0.035 * np.sin(y * np.float32(2 * np.pi / 0.14)))
    return np.asarray(bones + 0.15 * clavicle + 0.07 * blade + spine, np.float32)


def _bands(height: Canvas, gap: float, share: float) -> Canvas:
    """Parallel bright bands ``gap`` apart, each ``share`` of the gap wide, with brighter edges like a rib's cortex."""
    offset = np.abs(height / np.float32(gap) - np.round(height / np.float32(gap)))
    edge = np.float32(share / 2)
    rim = np.clip(1 - np.abs(offset - edge * 0.8) / np.float32(0.06), 0, 1)
    return np.asarray(_step(edge - offset, 0.02) * (0.75 + 0.35 * rim), np.float32)
