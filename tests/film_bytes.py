"""Bytes of small films for the decoder's tests: a ramp as JPEG, PNG or DICOM."""

import io

import numpy as np
import pytest
from PIL import Image

RAMP = (np.add.outer(np.arange(48), np.arange(64)) * 2).astype(np.uint8)


def encoded(pixels: np.ndarray | Image.Image, kind: str = "PNG", **options: object) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def dicom_bytes(stored: np.ndarray, **fields: object) -> bytes:
    pydicom = pytest.importorskip("pydicom")
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = fields.pop("syntax", pydicom.uid.ExplicitVRLittleEndian)
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1", "1.2.3"
    dataset = pydicom.Dataset()
    dataset.file_meta = meta
    dataset.Rows, dataset.Columns = stored.shape[-2:]
    bits = stored.dtype.itemsize * 8
    dataset.BitsAllocated = dataset.BitsStored = bits
    dataset.HighBit, dataset.PixelRepresentation = bits - 1, int(stored.dtype.kind == "i")
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.PixelData = stored.tobytes()
    for name, value in fields.items():
        setattr(dataset, name, value)
    dataset["PixelData"].VR = "OB" if bits == 8 else "OW"
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()
