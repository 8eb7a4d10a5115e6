"""The forest plot: what is drawn, and that it can be told apart without colour."""

import xml.etree.ElementTree as ET

import numpy as np
import pytest
from PIL import Image

from xray_opt.report import Line, Panel, forest, save
from xray_opt.report.forest import STYLES

LINES = (
    Line("LoRA", 0.95, 0.92, 0.97, 0),
    Line("linear probe", 0.90, 0.86, 0.93, 1),
    Line("file metadata", 0.80, None, None, 2),
    Line("nothing", float("nan"), None, None, 2),
)


@pytest.fixture
def figure():
    return forest([Panel("F1", LINES), Panel("gain", LINES[:2], zero=True)], "a study")


def test_every_value_has_its_mark_and_only_known_intervals_a_line(figure):
    first, second = figure.axes
    bars = [line for line in first.lines if len(line.get_xdata()) == 2]
    assert [list(line.get_xdata()) for line in bars] == [[0.92, 0.97], [0.86, 0.93]]
    marks = [line.get_xdata()[0] for line in first.lines if len(line.get_xdata()) == 1]
    assert marks == [0.95, 0.90, 0.80]
    assert [text.get_text() for text in first.get_yticklabels()] == [line.label for line in LINES]
    assert first.get_ylim()[0] > first.get_ylim()[1], "the first line is on top"
    assert any(list(line.get_xdata()) == [0, 0] for line in second.lines)
    assert not any(list(line.get_xdata()) == [0, 0] for line in first.lines)


def test_kinds_differ_by_mark_and_by_grey_as_well():
    greys = [sum(weight * int(colour[at : at + 2], 16) for weight, at in ((0.3, 1), (0.59, 3), (0.11, 5)))
             for colour, _ in STYLES]  # fmt: skip
    assert len({mark for _, mark in STYLES}) == len(STYLES)
    assert all(grey < 160 for grey in greys), "dark enough on white"


def test_the_files_are_a_picture_and_text_and_the_same_each_time(figure, tmp_path):
    png, svg = save(figure, tmp_path, "plot")
    pixels = np.asarray(Image.open(png).convert("RGB")).reshape(-1, 3)
    for colour, _ in STYLES:
        wanted = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
        assert (np.abs(pixels.astype(int) - wanted).sum(axis=1) < 12).any(), colour
    words = " ".join("".join(node.itertext()) for node in ET.parse(svg).iter() if node.tag.endswith("text"))
    assert all(word in words for word in ("linear probe", "0.950", "+0.900", "a study"))
    (tmp_path / "again").mkdir()
    again = save(
        forest([Panel("F1", LINES), Panel("gain", LINES[:2], zero=True)], "a study"), tmp_path / "again", "plot"
    )
    assert [path.read_bytes() for path in again] == [png.read_bytes(), svg.read_bytes()]
