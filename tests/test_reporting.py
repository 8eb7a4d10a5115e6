"""The report of a real study: its records are gathered, the files written and logged, and nothing of test is opened."""

import html
import json
import os
import re
from pathlib import Path

import pytest
from conftest import make_place

from xray_opt.config import PrunerConfig, StudyConfig, TrackingConfig, Workspace, load_study
from xray_opt.dataset import kept_manifests
from xray_opt.leaderboard import openings
from xray_opt.ledger import TRIVIAL_RECORD
from xray_opt.mlflow_client import connect
from xray_opt.report.html import gained
from xray_opt.tracking import MANIFEST
from xray_opt.tuning import Outcome, annotate, open_study, read_study


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """The report of a study of this module's own, as others open the test split of the shared one; what was printed."""
    place = make_place(tmp_path_factory.mktemp("reported"))
    place.json("tune", "--study", "tiny")
    return place, place.json("report", "tiny")


def client(place):
    return connect(TrackingConfig(), place.workspace).client


def test_page_and_card_lie_in_the_workspace_and_in_the_study_run(reported):
    place, made = reported
    written = Path(made["page"])
    assert written == place.workspace.root / "reports" / "tiny.html"
    assert Path(made["card"]).read_text().startswith("# Model card: study tiny")
    parent = read_study("tiny", place.workspace).notes["mlflow_parent"]
    assert made["logged"] == f"runs:/{parent}/report/report.html"
    kept = Path(client(place).download_artifacts(parent, "report/report.html")).read_text()
    assert kept == written.read_text()
    assert Path(client(place).download_artifacts(parent, "report/model-card.md")).read_text().count("\n## ") == 9


def test_the_registered_version_leads_to_it(reported):
    place, made = reported
    version = client(place).get_model_version_by_alias("xray-pneumonia", "champion")
    assert version.tags["xray_opt.report"] == made["logged"]
    assert version.tags["xray_opt.model_card"].endswith("report/model-card.md")
    assert made["versions"] == [f"xray-pneumonia version {version.version} (champion)"]


def test_the_page_tells_what_the_study_holds(reported):
    place, made = reported
    shown, record = Path(made["page"]).read_text(), read_study("tiny", place.workspace)
    assert f"{record.best.value:.4f}" in shown
    assert len(re.findall(r'id="epochs-t\d+"', shown)) == 3
    assert shown.count('id="validation-roc-curve"') == 1
    run = client(place).get_run(record.best.notes["mlflow_run"]).data
    assert run.tags["xray_opt.host"] in shown
    assert f"{run.metrics['best.threshold']:.4f}" in shown
    assert "train</th>" in shown
    auc = client(place).get_run(record.notes["mlflow_parent"]).data.metrics["shortcut.thumbnail_auc"]
    assert f"{auc:.4f}" in shown
    assert "xray-opt tune --study ./tiny.yaml --data FOLDER --set training.device=cpu" in shown


def test_the_study_file_on_the_page_starts_the_same_study(reported, tmp_path):
    place, made = reported
    pre = re.search(r"<pre[^>]*>(name: tiny.*?)</pre>", Path(made["page"]).read_text(), re.DOTALL)
    (tmp_path / "tiny.yaml").write_text(html.unescape(pre[1]))
    again, first = load_study(tmp_path / "tiny.yaml"), load_study(place.workspace.studies / "tiny.yaml")
    assert again.rules() == read_study("tiny", place.workspace).notes["rules"]
    assert (again.space, again.search(), again.trials) == (first.space, first.search(), 3)


def test_films_and_places_of_this_machine_are_not_named(reported):
    place, made = reported
    texts = Path(made["page"]).read_text() + Path(made["card"]).read_text()
    assert str(place.workspace.root) not in texts
    names = {path.name for path in place.films.rglob("*.*")}
    assert len(names) > 50
    assert not [name for name in names if name in texts]


def test_making_a_report_opens_nothing(reported):
    place, _ = reported
    before = openings(read_study("tiny", place.workspace))
    assert place.run("report", "tiny", "--no-log").returncode == 0
    assert openings(read_study("tiny", place.workspace)) == before


def record_of(place) -> Path:
    """The file of trivial models in the champion's run."""
    run = client(place).get_run(read_study("tiny", place.workspace).best.notes["mlflow_run"])
    return Path(run.info.artifact_uri.removeprefix("file://")) / TRIVIAL_RECORD


def test_tune_alone_is_enough_for_the_gain_over_trivial_models_and_a_second_report_makes_nothing(reported):
    place, _ = reported
    kept = record_of(place)
    kept.unlink(missing_ok=True)
    first = place.run("report", "tiny")
    assert first.returncode == 0, first.stderr
    assert first.stderr.count("\n") == 1
    assert first.stderr.startswith("reading 52 films: ")
    record, written = json.loads(kept.read_text()), kept.stat().st_mtime_ns
    best = record["models"][0]
    shown = html.unescape((place.workspace.root / "reports" / "tiny.html").read_text())
    assert f"On validation: AUC {gained(best['gains']['auc'])} over {best['name']}" in shown
    # The recorded predictions are scored to the last bit as evaluate scores the model anew.
    told = place.json("evaluate")
    assert best["image"]["scores"] == {
        name: one for name, one in told["baselines"][0]["image"]["scores"].items() if name != "loss"
    }
    assert record["image"]["scores"]["auc"]["value"] == pytest.approx(told["image"]["scores"]["auc"]["value"])
    written = kept.stat().st_mtime_ns
    again = place.run("report", "tiny")
    assert (again.returncode, again.stderr) == (0, "")
    assert kept.stat().st_mtime_ns == written


def test_without_the_films_the_page_says_why_there_is_no_gain(reported):
    place, _ = reported
    kept = record_of(place)
    kept.unlink(missing_ok=True)
    away = place.films.rename(place.films.with_name("elsewhere"))
    try:
        done = place.run("report", "tiny")
    finally:
        away.rename(place.films)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("no trivial models beside the model: the training films are not here: ")
    shown = (place.workspace.root / "reports" / "tiny.html").read_text()
    assert "not known on validation: the training films are not here; with the films" in shown
    assert str(place.films) not in shown
    assert not kept.exists()
    assert place.run("report", "tiny", "--no-log").stderr.startswith("reading 52 films: ")
    assert not kept.exists(), "--no-log keeps nothing"


def test_a_film_that_is_another_one_now_is_not_scored(reported):
    place, _ = reported
    record_of(place).unlink(missing_ok=True)
    digest = client(place).get_run(read_study("tiny", place.workspace).notes["mlflow_parent"]).data.tags[MANIFEST]
    own = next(kept_manifests(place.workspace.manifests, digest))
    film = Path(own.root, own.of("train")[0].path)
    content, times = film.read_bytes(), film.stat()
    try:
        film.write_bytes(content + b" ")
        done = place.run("report", "tiny", "--no-log")
    finally:
        film.write_bytes(content)
        os.utime(film, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert "1 of these films is not that of the study any more: " in done.stderr
    shown = (place.workspace.root / "reports" / "tiny.html").read_text()
    assert "not known on validation: 1 of these films is not that of the study any more; " in shown


def test_an_audit_of_the_same_split_is_found(reported):
    place, made = reported
    assert "No audit of this split" in Path(made["page"]).read_text()
    assert place.run("data", "audit", "films").returncode == 0
    shown = Path(place.json("report", "tiny", "--no-log")["page"]).read_text()
    assert "near-duplicates of different patients" in shown
    for kept in place.workspace.manifests.glob("*.audit.json"):
        kept.write_text("{")
    assert "No audit of this split" in Path(place.json("report", "tiny", "--no-log")["page"]).read_text()


@pytest.mark.slow
def test_the_chain_of_evidence_fills_the_page(tmp_path):
    place = make_place(tmp_path / "own")
    place.json("tune", "--study", "tiny")
    place.json("confirm", "--study", "tiny", "--top", "2", "--seeds", "2")
    final = place.json("finalize")
    made = place.json("report", "tiny")
    shown = Path(made["page"]).read_text()
    assert 'id="confirmation-confirmed-' in shown or "No interval" in shown
    assert 'id="test-roc-curve"' in shown
    assert "Opened once" in shown
    assert f"{final['headline']['value']:+.4f}" in shown
    assert len(openings(read_study("tiny", place.workspace))) == 1
    chosen = client(place).get_run(final["run"]).data
    assert chosen.tags.get("xray_opt.trial", chosen.tags.get("xray_opt.confirms")) is not None
    assert f"trial {final['trial']}" in Path(made["card"]).read_text()


def made_up(tmp_path, name: str = "fast") -> Workspace:
    """A study that has trials in Optuna and nothing in MLflow."""
    workspace, values = Workspace(tmp_path), iter([0.3, 0.9])
    config = StudyConfig(name, pruner=PrunerConfig("none"))
    open_study(config, workspace, "d" * 64).tune(lambda trial: Outcome(next(values), {"val.auc": 0.7}), 2)
    return workspace


def run(workspace: Workspace, *arguments: str):
    from conftest import Place

    return Place(workspace, workspace.root).run(*arguments)


def test_a_study_without_runs_gives_a_page_and_says_that_nothing_was_logged(tmp_path):
    workspace = made_up(tmp_path)
    done = run(workspace, "report", "fast", "--output", "here/page.html", "--json")
    assert done.returncode == 0, done.stderr
    assert "no run in MLflow" in done.stderr
    made = json.loads(done.stdout)
    assert made["logged"] is None
    assert "xray-opt finalize" in (tmp_path / "here" / "page.html").read_text()
    assert (tmp_path / "here" / "page-model-card.md").is_file()
    lost = {"mlflow_run": "f" * 32}
    annotate("fast", workspace, "finalized", {})
    annotate("fast", workspace, "mlflow_parent", lost["mlflow_run"])
    assert run(workspace, "report", "fast").returncode == 0


def test_what_cannot_be_written_or_found_is_one_line(tmp_path):
    workspace = made_up(tmp_path)
    (tmp_path / "file").write_text("")
    refused = run(workspace, "report", "fast", "--output", "file/page.html")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "cannot write" in refused.stderr
    missing = run(workspace, "report", "nothing")
    assert (missing.returncode, missing.stderr.count("\n")) == (6, 1)
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]
