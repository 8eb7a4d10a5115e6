"""Image files: each is decoded to the very pixels that Pillow or pydicom give, or refused with one plain reason."""

import importlib
import io
import tempfile
import warnings
from pathlib import Path

import numpy as np
from film_cases import film_case, opened
from harness import Limits, fuzz
from PIL import ImageOps

from xray_opt.dataset.films import decode, dicom_patient, has_colour, inspect, thumbnail
from xray_opt.errors import BadFilm

FOLDER = Path(tempfile.gettempdir())


def read_film(given):
    content, name = given
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        try:
            facts = inspect(path)
        except BadFilm:
            refused_by(decode, path)
            raise
        pixels = decode(path)
        assert pixels.dtype == np.uint8
        assert (facts.width, facts.height, facts.bytes) == (*pixels.shape[::-1], len(content))
        assert np.array_equal(pixels, decode(content, name))
        assert thumbnail(path, 32).shape == (32, 32)
        if facts.mode.startswith("DICOM"):
            assert isinstance(dicom_patient(path), str)
            right_dicom(content, pixels, facts.mode)
        else:
            assert has_colour(path) in (True, False)
            assert np.array_equal(pixels, expected(content))


read_film.ready = lambda: importlib.import_module("pydicom.pixels.processing")


def refused_by(reader, path):
    """What is no film for the index is none for training and predicting."""
    try:
        reader(path)
    except BadFilm:
        return
    raise AssertionError("decoded, though the index refuses it")


def expected(content):
    """Pillow's own grey, upright; deeper films by the rule of the docs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = opened(content)
        image.load()
        try:
            upright = ImageOps.exif_transpose(image)
        except Exception:  # unreadable EXIF tells no orientation
            upright = image
        if not image.mode.startswith("I"):
            return np.asarray(upright.convert("L"))
        deep = np.asarray(upright).astype(np.int64)
        return np.rint(deep * (255 / (4095 if deep.max() <= 4095 else 65535))).astype(np.uint8)


def right_dicom(content, pixels, mode):
    """What pydicom shows, its darkest value as 0 and its brightest as 255, to a rounding."""
    import pydicom
    from pydicom.pixels.processing import apply_modality_lut, apply_windowing

    dataset = pydicom.dcmread(io.BytesIO(content), force=True)
    values = np.asarray(apply_modality_lut(dataset.pixel_array, dataset), dtype=np.float64)
    if dataset.get("VOILUTSequence"):
        return
    if "WindowWidth" in dataset and "WindowCenter" in dataset:
        try:
            shown = np.asarray(apply_windowing(values, dataset))
            low, high = apply_windowing(np.array([-1e300, 1e300]), dataset)
        except Exception:  # a width that pydicom does not take
            return
    else:
        shown, low, high = values, values.min(), values.max()
    grey = (shown - low) / (high - low) if high > low else np.zeros_like(values)
    grey = 1 - grey if mode.endswith("MONOCHROME1") else grey
    assert np.abs(pixels - 255 * grey).max() <= 1.01


def test_every_image_file_is_decoded_rightly_or_refused_with_one_reason(reported):
    tally = fuzz("films", "test_fuzz_films:read_film", film_case, 250, 0.75, 2000, Limits(20, 1024))
    reported(tally)
    assert not tally.faults, tally.told()
    assert tally.accepted > tally.cases / 20
    assert tally.refused > tally.cases / 3
    assert len(tally.reasons) > 10
