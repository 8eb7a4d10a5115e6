"""What of DICOM a chest film needs: grey pixels as a viewer shows them, and the patient. Nobody else imports pydicom.

The steps are those of DICOM PS3.3 C.11 and C.7.6.3: stored values → modality LUT or rescale slope and intercept →
VOI LUT or window → MONOCHROME1 turned round.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from xray_opt.dataset.limits import check_size
from xray_opt.errors import BadFilm, one_line, shortened

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

Floats = NDArray[np.float64]

#: Transfer syntax whose data set is one zlib stream: it may grow a thousandfold before a single value is read.
_DEFLATED = b"1.2.840.10008.1.2.1.99"


def is_dicom(content: bytes) -> bool:
    """Whether the bytes carry DICOM's mark, whatever the file is called."""
    return content[128:132] == b"DICM"


def patient(content: bytes) -> str:
    """The patient id of a header, empty where it has none. Raises what pydicom raises on malformed bytes."""
    return str(_dataset(content, with_pixels=False).get("PatientID") or "").replace("\0", "").strip()


def pixels(content: bytes) -> tuple[NDArray[np.uint8], str]:
    """(H, W) uint8 grey, bright where the film is, and the photometric interpretation of the header.

    Where the header has no usable window the film's own least and greatest value span the range.

    Raises:
        BadFilm: pydicom is missing, or the data set holds no single grey image; whatever pydicom raises otherwise.
    """
    dataset = _dataset(content, with_pixels=True)
    photometric = _checked(dataset)
    stored = _stored(dataset)
    if stored.shape != (dataset.Rows, dataset.Columns):
        raise BadFilm(f"DICOM pixels of shape {stored.shape} are not one grey image")
    shown = _shown(stored, dataset)
    if not np.isfinite(shown).all():
        raise BadFilm("DICOM pixels that are not finite after rescale and window")
    if photometric == "MONOCHROME1":
        shown = 1 - shown
    return np.rint(shown * 255).astype(np.uint8), photometric


def _dataset(content: bytes, with_pixels: bool) -> Dataset:
    try:
        import pydicom
    except ImportError as error:
        raise BadFilm("DICOM needs pydicom: pip install 'xray-opt[dicom]'") from error
    if _DEFLATED in content:
        raise BadFilm("deflated DICOM; convert it to explicit VR little endian")
    return pydicom.dcmread(io.BytesIO(content), force=not is_dicom(content), stop_before_pixels=not with_pixels)


def _checked(dataset: Dataset) -> str:
    if "PixelData" not in dataset:
        floats = "FloatPixelData" in dataset or "DoubleFloatPixelData" in dataset
        raise BadFilm("DICOM with floating-point pixels" if floats else "DICOM without pixels")
    photometric = str(dataset.get("PhotometricInterpretation", "nothing"))
    if photometric not in ("MONOCHROME1", "MONOCHROME2") or int(dataset.get("SamplesPerPixel") or 1) != 1:
        raise BadFilm(f"odd mode DICOM {shortened(photometric, 40)}; a film is MONOCHROME1 or MONOCHROME2")
    if int(dataset.get("NumberOfFrames") or 1) > 1:
        raise BadFilm(f"several frames in one file ({shortened(str(dataset.NumberOfFrames), 40)})")
    check_size(int(dataset.get("Columns") or 0), int(dataset.get("Rows") or 0))
    return photometric


def _stored(dataset: Dataset) -> NDArray[Any]:
    syntax = dataset.file_meta.get("TransferSyntaxUID") if hasattr(dataset, "file_meta") else None
    try:
        return np.asarray(dataset.pixel_array)
    except Exception as error:  # pydicom and its plugins raise errors of many kinds
        line = one_line(error, 120)
        if syntax is not None and syntax.is_compressed:
            raise BadFilm(f"DICOM pixels in {shortened(syntax.name)} cannot be decoded here: {line}") from error
        raise BadFilm(f"corrupt DICOM pixels: {line}") from error


def _shown(stored: NDArray[Any], dataset: Dataset) -> Floats:
    """Grey in [0, 1] as a viewer shows it, before MONOCHROME1 is turned round."""
    from pydicom.pixels.processing import apply_modality_lut, apply_voi

    values = apply_modality_lut(stored, dataset)
    if dataset.get("VOILUTSequence"):
        bits = int(dataset.VOILUTSequence[0].LUTDescriptor[2])
        return np.clip(np.asarray(apply_voi(values, dataset), dtype=np.float64) / (2.0**bits - 1), 0, 1)
    values = np.asarray(values, dtype=np.float64)
    window = _window(dataset)
    if window is None:
        low, high = values.min(), values.max()
        return (values - low) / (high - low) if high > low else np.zeros_like(values)
    return _windowed(values, *window, str(dataset.get("VOILUTFunction") or "LINEAR"))


def _window(dataset: Dataset) -> tuple[float, float] | None:
    """Centre and width of the first window, none where it lacks one or its width is not positive."""
    centres, widths = (np.atleast_1d(dataset.get(name)) for name in ("WindowCenter", "WindowWidth"))
    if centres[0] is None or widths[0] is None:
        return None
    centre, width = float(centres[0]), float(widths[0])
    return (centre, width) if width > 0 and np.isfinite((centre, width)).all() else None


def _windowed(values: Floats, centre: float, width: float, function: str) -> Floats:
    """The three VOI functions of PS3.3 C.11.2.1.2 and C.11.2.1.3, onto [0, 1]."""
    if function == "SIGMOID":
        return np.asarray(1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -700, 700))))
    if function == "LINEAR":
        centre, width = centre - 0.5, max(width - 1, 1e-9)
    return np.clip((values - centre) / width + 0.5, 0, 1)
