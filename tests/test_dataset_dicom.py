"""DICOM as a viewer shows it: rescale, window, MONOCHROME1; and what is refused."""

import hashlib
import io
import sys
from pathlib import Path

import numpy as np
import pytest
from film_bytes import RAMP, dicom_bytes

from xray_opt.dataset.films import Facts, decode, dicom_patient, inspect, thumbnail, to_square
from xray_opt.errors import BadFilm


def reason(source: bytes | Path, name: str = "") -> str:
    with pytest.raises(BadFilm) as caught:
        decode(source, name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class TestDicom:
    def test_without_window_the_films_own_range(self) -> None:
        stored = (RAMP.astype(np.uint16) * 10) + 300
        pixels = decode(dicom_bytes(stored))
        assert (pixels.min(), pixels.max()) == (0, 255)
        assert np.abs(pixels - (stored - stored.min()) / np.ptp(stored) * 255).max() <= 0.5

    def test_monochrome1_is_turned_round(self) -> None:
        stored = RAMP.astype(np.uint16)
        turned = decode(dicom_bytes(stored, PhotometricInterpretation="MONOCHROME1"))
        assert np.abs(turned.astype(int) - (255 - decode(dicom_bytes(stored)))).max() <= 1

    def test_rescale_then_window(self) -> None:
        stored = np.arange(48 * 64, dtype=np.uint16).reshape(48, 64)
        fields = {"RescaleSlope": 2, "RescaleIntercept": -1000, "WindowCenter": [500.0, 9], "WindowWidth": [400.0, 9]}
        pixels = decode(dicom_bytes(stored, **fields))
        value = stored * 2.0 - 1000
        wanted = np.clip((value - 499.5) / 399 + 0.5, 0, 1) * 255
        assert np.abs(pixels - wanted).max() <= 0.5

    def test_window_agrees_with_pydicom(self) -> None:
        pydicom = pytest.importorskip("pydicom")
        from pydicom.pixels.processing import apply_windowing

        content = dicom_bytes(np.arange(48 * 64, dtype=np.uint16).reshape(48, 64), WindowCenter=1200, WindowWidth=900)
        dataset = pydicom.dcmread(io.BytesIO(content))
        wanted = apply_windowing(dataset.pixel_array, dataset) / 65535 * 255
        assert np.abs(decode(content) - wanted).max() <= 0.51

    def test_sigmoid_and_exact_windows(self) -> None:
        stored = np.arange(48 * 64, dtype=np.uint16).reshape(48, 64)
        window = {"WindowCenter": 1000, "WindowWidth": 600}
        sigmoid = decode(dicom_bytes(stored, VOILUTFunction="SIGMOID", **window))
        exact = decode(dicom_bytes(stored, VOILUTFunction="LINEAR_EXACT", **window))
        assert sigmoid[stored == 1000] == exact[stored == 1000] == 128
        assert exact[stored == 1300] == 255 > sigmoid[stored == 1300]

    @pytest.mark.filterwarnings("ignore:Invalid value for VR DS")
    @pytest.mark.parametrize("width", [0, -5, "nan"])
    def test_useless_window_is_left_aside(self, width: object) -> None:
        stored = RAMP.astype(np.uint16)
        pixels = decode(dicom_bytes(stored, WindowCenter=100, WindowWidth=width))
        assert np.array_equal(pixels, decode(dicom_bytes(stored)))

    def test_voi_lut_sequence(self) -> None:
        pydicom = pytest.importorskip("pydicom")
        item = pydicom.Dataset()
        item.LUTDescriptor = [256, 0, 16]
        item.LUTData = [65535 - level * 257 for level in range(256)]
        item["LUTDescriptor"].VR = item["LUTData"].VR = "US"
        assert np.array_equal(decode(dicom_bytes(RAMP, VOILUTSequence=[item])), 255 - RAMP)

    def test_signed_and_constant(self) -> None:
        signed = RAMP.astype(np.int16) - 100
        assert np.array_equal(decode(dicom_bytes(signed)), decode(dicom_bytes(RAMP.astype(np.uint16))))
        assert not decode(dicom_bytes(np.full((48, 64), 7, np.uint16))).any()

    def test_known_by_content_or_suffix(self, tmp_path: Path) -> None:
        content = dicom_bytes(RAMP, PatientID=" P 7 ")
        path = tmp_path / "film.jpeg"
        path.write_bytes(content)
        assert inspect(path) == Facts(64, 48, "DICOM MONOCHROME2", len(content), hashlib.sha256(content).hexdigest())
        assert dicom_patient(path) == "P 7"
        assert np.array_equal(thumbnail(path, 16), to_square(decode(content), 16))
        assert "no known kind" in reason(content[132:])
        assert "not an image" not in reason(b"plain rubbish" * 50, "film.dcm")

    def test_no_patient_id_is_empty(self, tmp_path: Path) -> None:
        (tmp_path / "a.dcm").write_bytes(dicom_bytes(RAMP))
        assert dicom_patient(tmp_path / "a.dcm") == ""

    @pytest.mark.parametrize(
        ("fields", "said"),
        [
            ({"PhotometricInterpretation": "RGB"}, "odd mode DICOM RGB"),
            ({"SamplesPerPixel": 3}, "odd mode"),
            ({"NumberOfFrames": 5}, "several frames"),
            ({"Rows": 60000, "Columns": 60000}, "decompression bomb"),
            ({"Rows": 3}, "too small"),
            ({"Rows": 4000}, "corrupt DICOM pixels"),
        ],
    )
    def test_refused(self, fields: dict[str, object], said: str) -> None:
        assert said in reason(dicom_bytes(RAMP, **fields))

    def test_compression_without_decoder_is_named(self) -> None:
        pydicom = pytest.importorskip("pydicom")
        buffer = pydicom.encaps.encapsulate([b"\xff\xd8\xff\xf7junk"])
        said = reason(dicom_bytes(RAMP, syntax=pydicom.uid.JPEGLSLossless, PixelData=buffer))
        assert "JPEG-LS" in said
        assert "decoded" in said

    def test_rle_is_read(self) -> None:
        pydicom = pytest.importorskip("pydicom")
        dataset = pydicom.dcmread(io.BytesIO(dicom_bytes(RAMP)))
        dataset.SOPInstanceUID = "1.2.3"
        dataset.compress(pydicom.uid.RLELossless, generate_instance_uid=False)
        buffer = io.BytesIO()
        dataset.save_as(buffer)
        assert np.array_equal(decode(buffer.getvalue()), decode(dicom_bytes(RAMP)))

    def test_without_pydicom_it_says_how(self, monkeypatch: pytest.MonkeyPatch) -> None:
        content = dicom_bytes(RAMP)
        monkeypatch.setitem(sys.modules, "pydicom", None)
        assert "pip install 'xray-opt[dicom]'" in reason(content)

    def test_deflated_is_refused_unopened(self) -> None:
        pydicom = pytest.importorskip("pydicom")
        assert "deflated" in reason(dicom_bytes(RAMP, syntax=pydicom.uid.DeflatedExplicitVRLittleEndian))


def test_what_a_header_says_of_itself_cannot_break_the_reason() -> None:
    said = reason(dicom_bytes(RAMP, PhotometricInterpretation="RGB\x0e" + "x" * 500))
    assert said.isprintable()
    assert len(said) < 150
