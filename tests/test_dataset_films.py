"""The decoder: every kind of film gives grey pixels, every kind of rubbish one plain reason."""

import io
import os
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from film_bytes import RAMP, dicom_bytes, encoded
from PIL import Image, ImageFile, ImageOps

from xray_opt.dataset import films
from xray_opt.dataset.films import decode, has_colour, inspect, thumbnail, to_square
from xray_opt.errors import BadFilm


def reason(source: bytes | Path, name: str = "") -> str:
    with pytest.raises(BadFilm) as caught:
        decode(source, name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def png_that_declares(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 999)) + chunk(b"IEND", b"")
    )


class TestPixels:
    def test_grey_png_is_exact(self) -> None:
        assert np.array_equal(decode(encoded(RAMP)), RAMP)

    def test_grey_jpeg_is_near(self) -> None:
        assert np.abs(decode(encoded(RAMP, "JPEG", quality=95)).astype(int) - RAMP).max() < 8

    def test_grey_saved_as_rgb_is_the_same_film(self) -> None:
        rgb = Image.fromarray(RAMP).convert("RGB")
        assert np.array_equal(decode(encoded(rgb)), RAMP)
        grey, colour = (decode(encoded(image, "JPEG", quality=95)) for image in (rgb.convert("L"), rgb))
        assert np.array_equal(grey, colour)

    def test_one_bit_and_grey_palette(self) -> None:
        bits = Image.fromarray((RAMP > 90).astype(np.uint8) * 255).convert("1")
        assert set(np.unique(decode(encoded(bits)))) == {0, 255}
        palette = Image.fromarray(RAMP)
        palette.putpalette([value for level in range(256) for value in (level,) * 3])
        assert palette.mode == "P"
        assert np.array_equal(decode(encoded(palette)), RAMP)

    def test_16_bit_png_spans_the_whole_range(self) -> None:
        pixels = decode(encoded(RAMP.astype(np.uint16) * 257))
        assert np.array_equal(pixels, RAMP)

    def test_12_bits_stored_unscaled_are_not_black(self) -> None:
        values = np.linspace(0, 4095, 64 * 48).reshape(48, 64).astype(np.uint16)
        assert np.array_equal(decode(encoded(values)), np.rint(values / 4095 * 255).astype(np.uint8))

    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("kind", ["JPEG", "PNG"])
    def test_exif_orientation_is_applied(self, kind: str, orientation: int, tmp_path: Path) -> None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        content = encoded(RAMP, kind, exif=exif)
        wanted = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))))
        assert np.array_equal(decode(content), wanted)
        (tmp_path / "film").write_bytes(content)
        facts = inspect(tmp_path / "film")
        assert (facts.height, facts.width) == wanted.shape

    def test_junk_exif_does_not_cost_the_film(self) -> None:
        assert decode(encoded(RAMP, "JPEG", exif=b"Exif\0\0junk")).shape == RAMP.shape

    def test_same_bytes_same_pixels_in_many_threads(self) -> None:
        content = encoded(Image.fromarray(RAMP).convert("RGB"), "JPEG")
        with ThreadPoolExecutor(8) as pool:
            results = list(pool.map(decode, [content] * 64))
        assert all(np.array_equal(result, results[0]) for result in results)

    def test_path_and_bytes_agree(self, tmp_path: Path) -> None:
        path = tmp_path / "film.jpeg"
        path.write_bytes(encoded(RAMP, "JPEG"))
        assert np.array_equal(decode(path), decode(path.read_bytes(), "other"))


class TestSquare:
    def test_shape_and_antialiasing(self) -> None:
        stripes = np.tile(np.array([0, 255], np.uint8), (300, 200))
        small = to_square(stripes, 32)
        assert small.shape == (32, 32)
        assert small.dtype == np.uint8
        assert np.abs(small.astype(int) - 127).max() <= 6

    def test_own_side_is_unchanged(self) -> None:
        assert np.array_equal(to_square(RAMP[:48, :48], 48), RAMP[:48, :48])

    def test_thumbnail_is_near_the_decoded_film(self, tmp_path: Path) -> None:
        path = tmp_path / "film.jpeg"
        big = np.asarray(Image.fromarray(RAMP).resize((900, 700), Image.Resampling.BICUBIC))
        path.write_bytes(encoded(big, "JPEG"))
        assert np.abs(thumbnail(path, 16).astype(int) - to_square(decode(path), 16)).max() < 6


class TestColour:
    def test_jpeg_that_holds_rgb_itself(self, tmp_path: Path) -> None:
        (tmp_path / "film").write_bytes(
            encoded(Image.fromarray(RAMP).convert("RGB"), "JPEG", keep_rgb=True, quality=95)
        )
        assert np.abs(decode(tmp_path / "film").astype(int) - RAMP).max() < 8
        assert not has_colour(tmp_path / "film")

    @pytest.mark.parametrize("kind", ["JPEG", "PNG"])
    def test_only_real_colour_counts(self, kind: str, tmp_path: Path) -> None:
        rgb = Image.fromarray(np.tile(RAMP, (8, 8))).convert("RGB")
        (tmp_path / "grey").write_bytes(encoded(rgb, kind))
        rgb.paste((220, 40, 30), (20, 20, 44, 40))
        (tmp_path / "marked").write_bytes(encoded(rgb, kind))
        (tmp_path / "l").write_bytes(encoded(RAMP, kind))
        assert [has_colour(tmp_path / name) for name in ("grey", "marked", "l")] == [False, True, False]


class TestRefused:
    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (b"", "nothing but zero bytes"),
            (b"\0" * 500, "nothing but zero bytes"),
            (b"<!DOCTYPE html><html>", "HTML or XML"),
            (b"%PDF-1.7 ...", "a PDF"),
            (b"PK\x03\x04rest", "a ZIP archive"),
            (b"GIF89a.....", "a GIF"),
            (b"not found\n", "plain text"),
            (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
            (b"\x01\x02\x03\x04", "no known kind (01 02 03 04)"),
            (b"\xff\xd8", "corrupt or truncated"),
            (encoded(RAMP, "JPEG")[:-30], "truncated"),
            (encoded(RAMP, "PNG")[:-40], "truncated"),
            (encoded(RAMP, "TIFF"), "a TIFF"),
            (encoded(Image.fromarray(RAMP).convert("CMYK"), "JPEG"), "odd mode CMYK"),
            (encoded(Image.fromarray(RAMP).convert("RGBA")), "odd mode RGBA"),
            (encoded(Image.fromarray(RAMP).convert("LA")), "odd mode LA"),
            (encoded(RAMP, transparency=3), "odd mode L with transparency"),
            (encoded(RAMP[:8]), "too small: 64×8"),
            (png_that_declares(50_000, 50_000), "decompression bomb: it declares 50000×50000"),
            (png_that_declares(2_000_000_000, 20), "decompression bomb"),
            (encoded(RAMP, "JPEG") + b"\xff\xda" * 200, "scans"),
        ],
    )
    def test_reason_is_plain(self, content: bytes, said: str) -> None:
        assert said in reason(content)

    def test_colour_palette(self) -> None:
        image = Image.fromarray(RAMP)
        image.putpalette([value % 256 for level in range(256) for value in (level, 255 - level, 7)])
        assert "palette of colours" in reason(encoded(image))

    def test_animated(self) -> None:
        frames = [Image.fromarray(RAMP), Image.fromarray(RAMP[::-1].copy())]
        assert "several frames" in reason(encoded(frames[0], save_all=True, append_images=frames[1:]))
        assert "several frames" in reason(encoded(frames[0], "MPO", save_all=True, append_images=frames[1:]))

    def test_bomb_is_neither_decoded_nor_warned_of(self) -> None:
        import tracemalloc

        content = png_that_declares(50_000, 50_000)
        tracemalloc.start()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert "bomb" in reason(content)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
        tracemalloc.stop()

    def test_what_is_no_file(self, tmp_path: Path) -> None:
        (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
        (tmp_path / "loop").symlink_to(tmp_path / "loop")
        (tmp_path / "empty").touch()
        os.mkfifo(tmp_path / "pipe")
        with (tmp_path / "huge").open("wb") as file:
            file.truncate(films.MOST_BYTES + 1)
        said = {
            "dangling": "broken symbolic link",
            "loop": "cannot be read",
            "empty": "zero bytes",
            "pipe": "not a regular file",
            "huge": "too many",
            "missing": "no such file",
            "empty/inside": "no such file",
            "a\0b": "null byte",
            ".": "a folder",
        }
        for name, text in said.items():
            assert text in reason(tmp_path / name), name

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    def test_permission(self, tmp_path: Path) -> None:
        (tmp_path / "film").write_bytes(encoded(RAMP))
        (tmp_path / "film").chmod(0)
        assert "Permission denied" in reason(tmp_path / "film")

    def test_inspect_refuses_what_decode_refuses(self, tmp_path: Path) -> None:
        for number, content in enumerate((encoded(RAMP, "JPEG")[:-30], encoded(RAMP)[:-40], b"text")):
            (tmp_path / str(number)).write_bytes(content)
            with pytest.raises(BadFilm):
                inspect(tmp_path / str(number))

    def test_global_state_is_left_alone(self) -> None:
        before = (ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS, list(warnings.filters))
        reason(encoded(RAMP, "JPEG")[:-30])
        decode(encoded(RAMP))
        assert before == (ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS, list(warnings.filters))


def mutated(content: bytes, generator: np.random.Generator) -> bytes:
    data = bytearray(content)
    for _ in range(generator.integers(1, 12)):
        place = int(generator.integers(len(data)))
        kind = generator.integers(4)
        if kind == 0:
            data[place] = int(generator.integers(256))
        elif kind == 1:
            del data[place : place + int(generator.integers(1, 40))]
        elif kind == 2:
            data[place:place] = generator.bytes(int(generator.integers(1, 20)))
        else:
            data[place : place + 4] = bytes([0xFF] * 4)
        data = data or bytearray(b"\0")
    return bytes(data)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", ["jpeg", "progressive", "png", "png16", "exif", "dicom", "headless"])
def test_fuzz_gives_pixels_or_a_reason(kind: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    content = {
        "jpeg": lambda: encoded(RAMP, "JPEG"),
        "progressive": lambda: encoded(Image.fromarray(RAMP).convert("RGB"), "JPEG", progressive=True),
        "png": lambda: encoded(RAMP),
        "png16": lambda: encoded(RAMP.astype(np.uint16) * 200),
        "exif": lambda: encoded(RAMP, "JPEG", exif=exif),
        "dicom": lambda: dicom_bytes(RAMP.astype(np.uint16), WindowCenter=100, WindowWidth=80, RescaleSlope=2),
        "headless": lambda: dicom_bytes(RAMP)[132:],
    }[kind]()
    name = "film.dcm" if kind == "headless" else ""
    generator = np.random.default_rng(7)
    refused = []
    for _ in range(300):
        broken = mutated(content, generator)
        try:
            pixels = decode(broken, name)
        except BadFilm as error:
            refused.append(str(error))
        else:
            assert pixels.ndim == 2
            assert pixels.dtype == np.uint8
            (tmp_path / "film").with_suffix(Path(name).suffix).write_bytes(broken)
            facts = inspect((tmp_path / "film").with_suffix(Path(name).suffix))
            assert (facts.height, facts.width) == pixels.shape
    assert refused
    assert all(line and "\n" not in line for line in refused)


@pytest.mark.parametrize("full", [4095, 65535])
def test_every_16_bit_value_is_scaled_and_rounded(full):
    values = np.arange(full + 1, dtype=np.uint16).reshape(-1, 256)
    in_numbers = np.rint(values.astype(np.float32) * (255 / full)).astype(np.uint8)
    assert np.array_equal(decode(encoded(values)), in_numbers)
    assert (in_numbers[0, 0], in_numbers[-1, -1]) == (0, 255)
