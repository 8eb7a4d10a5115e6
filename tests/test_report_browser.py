"""The page in a real browser: no error, no sideways scroll at a phone's and a desk's width, every figure seen.

``XRAY_OPT_PICTURES=FOLDER`` keeps both as pictures there; docs/pictures was made so.
"""

import io
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from report_records import RANK, RATE, hostile, study, trial, whole

from xray_opt.report import Evidence, page

pytest.importorskip("playwright", reason="playwright is not installed: make setup brings it")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium here: apt-get install chromium"),
]
WIDTHS = (390, 1280)
#: Height of the kept pictures.
TALL = 1700
#: The figures of a page with every record, and of one with two objectives, as their titles are named.
CURVES = [f"{split}-{kind}" for split in ("validation", "test") for kind in ("roc", "pr", "reliability")]
STUDY = ["history", "epochs", "importances", "parallel", "slice-0", "slice-1"]
MORE = ["confirmation", "rivals-val-auc", "rivals-val-gain", "robust-val-flipped", "robust-val-auc"]
FIGURES = {"whole": {*STUDY, *CURVES, *MORE}, "front": {*STUDY, "front", "importances-second"}}


def front() -> Evidence:
    """A study with two objectives, whose front has three of its four trials."""
    scored = [(0.9, 1e6), (0.8, 1e4), (0.7, 1e5), (0.5, 1e3)]
    own = [replace(trial(number, "COMPLETE", f1), second=cost) for number, (f1, cost) in enumerate(scored)]
    made, shares = study(*own), {RATE: 0.6, RANK: 0.4}
    rules = made.notes["rules"] | {"objectives": ["val.f1", "parameters"]}
    return Evidence(replace(made, notes={"rules": rules}), "now", "0.1.0", shares, importances_second=shares)


@pytest.fixture(params=["whole", "front", "hostile", "empty"])
def file(request, tmp_path) -> Path:
    made = {"whole": whole, "front": front, "hostile": hostile, "empty": lambda: Evidence(study(), "now", "0.1.0")}
    path = tmp_path / f"{request.param}.html"
    path.write_text(page(made[request.param]()), encoding="utf-8")
    return path


@pytest.fixture
def told():
    """What went wrong in the page, and every address that it asked for."""
    return {"wrong": [], "asked": []}


@pytest.fixture
def view(browser, told, request):
    with browser.new_context(viewport={"width": request.param, "height": 900}) as context:
        one = context.new_page()
        one.on("console", lambda message: told["wrong"].append(message.text))
        one.on("pageerror", lambda error: told["wrong"].append(str(error)))
        one.on("request", lambda asked: told["asked"].append(asked.url))
        yield one


@pytest.mark.parametrize("view", WIDTHS, indirect=True, ids=str)
def test_it_is_read_at_both_widths(view, file, told):
    view.goto(file.as_uri())
    view.wait_for_load_state("networkidle")
    width = view.viewport_size["width"]
    assert view.evaluate("document.documentElement.scrollWidth") <= width
    for figure in view.locator("figure svg").all():
        box = figure.bounding_box()
        assert box["width"] > 200
        assert box["height"] > 100
        assert figure.evaluate("one => one.getBBox().width") > 50, "something is drawn"
    seen = [figure for figure in view.locator("figure").all() if figure.is_visible()]
    assert len(seen) == view.locator("figure").count()
    drawn = view.evaluate("[...document.querySelectorAll('figure svg > title')].map(one => one.id)")
    assert set(drawn) >= {f"{name}-title" for name in FIGURES.get(file.stem, ())}
    pictures = view.locator("img").all()
    assert len(pictures) == (file.stem in ("whole", "hostile")), "the sheet of heat maps"
    for picture in pictures:
        assert picture.evaluate("async one => { await one.decode(); return one.naturalWidth; }") > 0
        assert picture.bounding_box()["width"] > 200
    outside = """[...document.querySelectorAll('body *')].filter(one => !one.closest('.scroll, pre'))
                 .filter(one => one.getBoundingClientRect().right > innerWidth + 1).map(one => one.outerHTML)"""
    assert view.evaluate(outside) == []
    assert told["wrong"] == []
    assert [address for address in told["asked"] if not address.startswith(("file:", "data:"))] == []
    if (folder := os.environ.get("XRAY_OPT_PICTURES")) and file.stem == "whole":
        part = {"x": 0, "y": 0, "width": width, "height": TALL}
        picture = Image.open(io.BytesIO(view.screenshot(full_page=True, clip=part)))
        picture.quantize(64).save(Path(folder) / f"report-{width}.png", optimize=True)


@pytest.mark.parametrize("view", [390], indirect=True)
def test_letters_in_figures_are_large_enough_on_a_phone(view, tmp_path, told):
    path = tmp_path / "whole.html"
    path.write_text(page(whole()), encoding="utf-8")
    view.goto(path.as_uri())
    heights = view.evaluate("[...document.querySelectorAll('svg text')].map(one => one.getBoundingClientRect().height)")
    assert len(heights) > 100
    assert min(heights) >= 8
    assert told["wrong"] == []


@pytest.mark.parametrize("view", [1280], indirect=True)
def test_a_script_in_a_record_could_not_run(view, tmp_path, told):
    path = tmp_path / "bad.html"
    bad = "<script>document.title = 'broken into'</script><img src=x onerror=\"document.title = 'broken into'\">"
    path.write_text(page(whole()).replace("</main>", f"{bad}</main>"), encoding="utf-8")
    view.goto(path.as_uri())
    assert view.title() == "Study made-up"
    assert any("Content Security Policy" in line for line in told["wrong"])


@pytest.mark.parametrize("view", [1280], indirect=True)
def test_it_prints_to_a_few_sheets(view, file, told):
    view.goto(file.as_uri())
    sheets = view.pdf(format="A4")
    assert 0 < len(re.findall(rb"/Type\s*/Page\b", sheets)) < 20
    assert told["wrong"] == []
