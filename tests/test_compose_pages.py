"""What a person sees: both interfaces of the running service in a real browser, as a team uses them after a tune.

``XRAY_OPT_PICTURES=FOLDER`` keeps the pages as pictures there; docs/pictures was made so.
"""

import os
import re
import shutil
from pathlib import Path

import pytest

pytest.importorskip("playwright", reason="playwright is not installed: make setup brings it")
from playwright.sync_api import Error, Page

pytestmark = [
    pytest.mark.compose,
    pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium here: apt-get install chromium"),
]
#: Milliseconds; generous, as the pages are large and the machine may be loaded.
PATIENCE = 120_000
#: A chart that plotly has drawn.
DRAWN = ".js-plotly-plot .main-svg"


@pytest.fixture
def thrown():
    """What scripts of the pages threw."""
    return []


@pytest.fixture
def page(stack, tuned_here, browser, thrown):
    """A browser that has the login of .env."""
    held = stack.values()
    login = {"username": held["MLFLOW_TRACKING_USERNAME"], "password": held["MLFLOW_TRACKING_PASSWORD"]}
    with browser.new_context(http_credentials=login, viewport={"width": 1400, "height": 900}) as context:
        context.set_default_timeout(PATIENCE)
        page = context.new_page()
        page.on("pageerror", lambda error: thrown.append(str(error)))
        yield page


def keep(page: Page, name: str) -> None:
    """A picture of the page, where pictures are asked for, without MLflow's assistant beside it."""
    if folder := os.environ.get("XRAY_OPT_PICTURES"):
        for button in page.get_by_role("button", name="Close").all():
            button.click()
        page.wait_for_timeout(2000)  # charts come to rest
        page.screenshot(path=Path(folder) / f"{name}.png")


def url(stack, name: str) -> str:
    return f"http://127.0.0.1:{stack.port(name)}"


def study_page(stack) -> str:
    study = stack.sql("optuna", "SELECT study_id FROM studies WHERE study_name = 'from-the-host'")[0]
    return f"{url(stack, 'DASHBOARD')}/dashboard/studies/{study}"


def open_runs(stack, page: Page) -> None:
    """The table of the study's experiment, with its trials unfolded."""
    experiment = stack.sql("mlflow", "SELECT experiment_id FROM experiments WHERE name = 'from-the-host'")[0]
    page.goto(f"{url(stack, 'MLFLOW')}/#/experiments/{experiment}/runs")
    page.get_by_role("row").filter(has_text="from-the-host").first.get_by_role("button").first.click()
    page.get_by_role("link", name="trial-000").first.wait_for()


@pytest.mark.parametrize("name", ["MLFLOW", "DASHBOARD"])
def test_without_the_login_a_browser_sees_nothing(stack, browser, name):
    with browser.new_context() as context:
        page = context.new_page()
        with pytest.raises(Error, match="ERR_INVALID_AUTH_CREDENTIALS"):  # what becomes of a 401 that nobody answers
            page.goto(url(stack, name))


def test_two_trials_are_selected_in_their_experiment_and_compared(stack, page, thrown):
    open_runs(stack, page)
    boxes = page.locator("input[type=checkbox][aria-label*='row selection']")
    for number in (1, 2):  # the first is the study's own run
        boxes.nth(number).check()
    page.get_by_role("button", name="Compare").click()
    page.locator(".js-plotly-plot .parcoords .y-axis").first.wait_for()
    assert "Comparing 2 Runs" in page.inner_text("h1, h2")
    # The learning rate and a metric, and the rank where the sampler drew another one.
    assert page.locator(".parcoords .y-axis").count() in (2, 3)
    keep(page, "service-compare")
    page.get_by_role("link", name="val.f1").first.click()
    page.locator(f"{DRAWN} .scatterlayer .trace").nth(1).wait_for()
    keep(page, "service-metric")
    assert page.get_by_role("cell", name=re.compile("^trial-")).count() == 2
    assert thrown == []


def test_the_charts_of_an_experiment_show_every_trial(stack, page, thrown):
    open_runs(stack, page)
    page.goto(f"{page.url.split('?')[0]}?compareRunsMode=CHART")
    page.locator(f"{DRAWN} .barlayer .point").first.wait_for()
    charts = page.locator(".js-plotly-plot")
    assert charts.first.locator(".barlayer .point").count() >= 4
    keep(page, "service-charts")
    assert thrown == []


def test_the_registered_model_leads_to_its_version_and_that_to_its_run(stack, page, thrown):
    page.goto(f"{url(stack, 'MLFLOW')}/#/models/xray-pneumonia")
    page.get_by_text("champion").first.wait_for()
    page.get_by_role("link", name="Version 1").click()
    source = page.get_by_role("link", name=re.compile("^trial-"))
    source.wait_for()
    keep(page, "service-model")
    source.click()
    page.get_by_text("About this run").wait_for()
    assert "/runs/" in page.url
    assert thrown == []


def test_the_dashboard_draws_history_values_and_importance(stack, page, thrown):
    page.goto(study_page(stack))
    points = {}
    for name in ("plot-history", "graph-intermediate-values", "graph-hyperparameter-importances"):
        page.locator(f"#{name} .main-svg .point").first.wait_for()
        points[name] = page.locator(f"#{name} .main-svg .point").count()
    assert points["plot-history"] >= 4
    assert points["graph-intermediate-values"] >= 2 * 4
    assert points["graph-hyperparameter-importances"] == 2  # a bar a setting
    keep(page, "service-dashboard")
    assert thrown == []


def test_a_trial_leads_from_its_note_to_its_run_and_from_there_back(stack, page, thrown):
    trial = f"{study_page(stack)}/trials?numbers=1"
    page.goto(trial)
    page.get_by_role("link", name="Run of trial 1 in MLflow").wait_for()
    keep(page, "service-trial")
    page.get_by_role("link", name="Run of trial 1 in MLflow").click()
    back = page.get_by_role("link", name="Trial 1 of study from-the-host in optuna-dashboard")
    back.wait_for()
    keep(page, "service-run")
    with page.expect_popup() as opened:
        back.click()
    opened.value.get_by_role("heading", name=re.compile("^Trial 1 ")).wait_for()
    assert opened.value.url == trial
    assert thrown == []
