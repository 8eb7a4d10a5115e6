"""The sealed test split: nothing of tune depends on it, finalize opens it once, and everyone can read who did."""

import csv
import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_place
from report_records import whole

from xray_opt.cli.evidence import told
from xray_opt.config import LossConfig, TrackingConfig, Workspace, find_study, load_study
from xray_opt.dataset import Film, Manifest, prepared
from xray_opt.errors import ConfigError, DataError, StudyError
from xray_opt.finalize import Final, finalize, finalizing, finals
from xray_opt.finalize.finalizing import FINALS
from xray_opt.leaderboard import OPENINGS, openings
from xray_opt.loss import FocalLoss
from xray_opt.mlflow_client import connect
from xray_opt.scoring import film_cases, levels, opening
from xray_opt.tuning import annotate, read_study

CHAMPION = "models:/xray-pneumonia@champion"


def test_the_test_split_is_handed_out_only_after_its_record(tuned):
    place, _, _ = tuned
    manifest = own_manifest(place)
    with pytest.raises(DataError, match="sealed"):
        manifest.of("test")
    written = []
    films = manifest.open_test(lambda: written.append("who"))
    assert written == ["who"]
    assert {film.split for film in films} == {"test"}

    def refuses():
        raise StudyError("the storage is away")

    with pytest.raises(StudyError):
        manifest.open_test(refuses)


def own_manifest(place) -> Manifest:
    study = load_study(find_study("tiny", Workspace(place.workspace.root)))
    return prepared(study.config.data, place.workspace)


def poison_the_test_split(place) -> int:
    """Turn the test films' labels round and their files into noise, unseen by size, time and manifest."""
    manifest = own_manifest(place)
    films = []
    for film in manifest.films:
        if film.split != "test":
            films.append(film)
            continue
        path = Path(manifest.root) / film.path
        facts = path.stat()
        path.write_bytes(os.urandom(facts.st_size))
        os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
        films.append(replace(film, label=1 - film.label, subtype="unknown", sha256="0" * 64, width=1, height=1))
    replace(manifest, films=tuple(films)).save(place.workspace.manifests)
    return sum(film.split == "test" for film in films)


def left_behind(place) -> dict[str, object]:
    """All that a study of one trial says and weighs."""
    record = read_study("tiny", place.workspace)
    (trial,) = record.trials
    client = connect(TrackingConfig(), place.workspace).client
    run = str(trial.notes["mlflow_run"])
    folder = Path(client.download_artifacts(run, "adapter"))
    logged = client.get_run(run).data.metrics
    clock = ("system", "images_per_second")
    return {
        "value": trial.value,
        "epochs": trial.intermediate,
        "params": trial.params,
        "files": {path.name: path.read_bytes() for path in folder.iterdir()},
        "predictions": Path(client.download_artifacts(run, "val_predictions.csv")).read_text(),
        "metrics": {name: value for name, value in logged.items() if not name.startswith(clock)},
        "study": client.get_run(record.notes["mlflow_parent"]).data.metrics,
    }


#: What changed films cost, with the longest verdict.
SHARE = {"value": 0.183, "low": 0.152, "high": 0.219, "why": None}
CHANGED = {
    "films": 624,
    "worst": {
        "name": "edges cut by 15 %",
        "auc": SHARE | {"value": 0.912},
        "f1": SHARE,
        "auc_change": SHARE | {"value": None, "p": None},
        "flipped": SHARE,
    },
    "goals": [
        {"what": "re-compression", "limit": 0.02, "flipped": SHARE, "verdict": "not told apart by the interval"},
        {"what": "a cut of 10 %", "limit": 0.02, "flipped": SHARE, "verdict": "not met"},
    ],
}
#: The widest gain there is: a model that is worse than a trivial one.
LOSS = {"value": -0.1069, "low": -0.1431, "high": -0.0706, "p": 7.7e-09, "why": None}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two studies of the same seed; of the second one the test labels are turned round and the test files destroyed."""
    folder = tmp_path_factory.mktemp("pair")
    clean, poisoned = make_place(folder / "clean"), make_place(folder / "poisoned")
    assert own_manifest(clean).sha256 == own_manifest(poisoned).sha256
    assert poison_the_test_split(poisoned) > 4
    assert own_manifest(clean).sha256 != own_manifest(poisoned).sha256
    for place in (clean, poisoned):
        place.json("tune", "--study", "tiny", "--trials", "1")
    return clean, poisoned


@pytest.mark.slow
def test_no_code_path_of_tune_reads_the_test_split(pair):
    """Labels turned round, files destroyed: the study is the same to the bit, so nothing was read."""
    clean, poisoned = pair
    assert left_behind(poisoned) == left_behind(clean)


def bare(record: object) -> object:
    """A record without what names runs, films and times."""
    if isinstance(record, dict):
        return {name: bare(item) for name, item in record.items() if name not in ("run", "runs", "seconds", "path")}
    return [bare(item) for item in record] if isinstance(record, list) else record


#: Commands that are for validation alone, in their order: later ones take over what earlier ones trained.
VALIDATION = (
    ("confirm", "--study", "tiny", "--top", "1", "--seeds", "2", "--splits", "2"),
    ("baseline", "--study", "tiny", "--seeds", "2", "--rates", "1"),
    ("evaluate", "--robustness"),
)


@pytest.mark.slow
def test_no_code_path_of_what_follows_tune_reads_the_test_split(pair):
    """The same of confirm with re-drawn splits, baseline on validation, changed films, explain and report."""
    for command in VALIDATION:
        told, wanted = (bare(place.json(*command)) for place in reversed(pair))
        assert told == wanted, command[0]
    sheets, pages = [], []
    for place in pair:
        made = place.json("explain", "--out", "sheet")
        root = place.workspace.root
        sheets.append(((root / made["sheet"]).read_bytes(), (root / made["table"]).read_text()))
        pages.append(Path(place.json("report", "tiny", "--no-log")["page"]).read_text())
    assert sheets[0][0] == sheets[1][0]
    assert sheets[0][1].replace(str(pair[0].films), "") == sheets[1][1].replace(str(pair[1].films), "")
    for name in ("short", "leaderboard", "confirmation", "validation", "test", "rivals", "robustness", "explained"):
        clean, poisoned = (re.search(f'<section id="{name}".*?</section>', page, re.DOTALL)[0] for page in pages)
        anonymous = [re.sub("[0-9a-f]{32}", "RUN", section) for section in (clean, poisoned)]
        if name == "rivals":  # the last column is how long a training took
            anonymous = [re.sub(r'<td class="number">[^<]*</td></tr>', "</tr>", section) for section in anonymous]
        assert anonymous[0] == anonymous[1], name
    assert not list(pair[1].workspace.openings.glob("*"))


@pytest.fixture(scope="module")
def finalized(tuned):
    """The champion of the shared study after its one test."""
    place, _, _ = tuned
    before = len(openings(read_study("tiny", place.workspace)))
    return place, place.json("finalize"), before


def test_finalize_reports_every_score_of_films_and_patients(finalized):
    place, final, _ = finalized
    names = ["f1", "auc", "accuracy", "precision", "sensitivity", "specificity", "loss", "auprc", "brier", "ece"]
    for level in ("image", "patient"):
        scores = final[level]["scores"]
        assert list(scores)[: len(names)] == names
        assert {name for name in scores if name.startswith("sensitivity.")} <= {
            "sensitivity.bacteria",
            "sensitivity.virus",
        }
        for one in scores.values():
            assert (one["low"] is None) == (one["high"] is None)
            assert one["why"] if one["low"] is None else one["low"] <= one["value"] <= one["high"]
        assert sum(final[level]["confusion"].values()) == final[level]["cases"]
    sealed = own_manifest(place).open_test(lambda: None)
    assert final["image"]["cases"] == len(sealed)
    assert final["patient"]["cases"] == len({film.group for film in sealed})


def predictions_of(connection, run: str) -> list[dict[str, str]]:
    text = Path(connection.client.download_artifacts(run, "test_predictions.csv")).read_text()
    return list(csv.DictReader(text.splitlines()))


def test_the_opening_is_recorded_in_study_run_and_version(finalized):
    place, final, before = finalized
    record = read_study("tiny", place.workspace)
    opened = openings(record)
    assert len(opened) == before + 1 == final["openings"]
    assert (opened[-1].trial, opened[-1].run) == (final["trial"], final["run"])
    assert opened[-1].command.startswith("xray-opt finalize")
    assert opened[-1].scores["test.f1"] == final["image"]["scores"]["f1"]["value"]
    connection = connect(TrackingConfig(), place.workspace)
    run = connection.client.get_run(final["run"])
    assert run.data.metrics["test.f1"] == final["image"]["scores"]["f1"]["value"]
    assert int(run.data.tags["xray_opt.test_openings"]) >= 1
    parent = connection.client.get_run(record.notes["mlflow_parent"])
    assert parent.data.tags["xray_opt.test_openings"] == str(before + 1)
    kept = json.loads(Path(connection.client.download_artifacts(final["run"], "finalize.json")).read_text())
    assert kept["image"] == final["image"]
    rows = predictions_of(connection, final["run"])
    assert {row["film"]: int(row["label"]) for row in rows} == {
        film.path: film.label for film in own_manifest(place).open_test(lambda: None)
    }
    called = [int(row["label"]) for row in rows if float(row["probability"]) >= final["threshold"]]
    assert sum(called) == final["image"]["confusion"]["true_positive"]
    assert len(called) - sum(called) == final["image"]["confusion"]["false_positive"]
    version = connection.client.get_model_version_by_alias("xray-pneumonia", "champion")
    assert version.tags["test.f1"].startswith(f"{final['image']['scores']['f1']['value']:.4f}")
    assert "over" in version.tags["test.auc_gain"]


def test_a_second_call_shows_the_record_and_opens_nothing(finalized):
    place, final, before = finalized
    again = place.run("finalize", "--json")
    assert "opened already" in again.stderr
    assert json.loads(again.stdout) == final
    assert len(openings(read_study("tiny", place.workspace))) == before + 1


def test_another_model_of_the_study_does_not_get_its_test(finalized):
    place, final, before = finalized
    other = next(t for t in read_study("tiny", place.workspace).trials if t.notes["mlflow_run"] != final["run"])
    refused = place.run("finalize", "--model", f"runs:/{other.notes['mlflow_run']}")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "what the seal prevents" in refused.stderr
    assert len(openings(read_study("tiny", place.workspace))) == before + 1


def test_a_killed_finalize_is_finished_without_another_opening(finalized):
    place, final, before = finalized
    record = read_study("tiny", place.workspace)
    noted = [item | {"scores": {}} if item["run"] == final["run"] else item for item in record.notes[OPENINGS]]
    annotate("tiny", place.workspace, OPENINGS, noted)
    annotate("tiny", place.workspace, FINALS, {})
    done = place.run("finalize", "--json")
    assert "going on with the opening" in done.stderr
    assert json.loads(done.stdout) == final
    assert len(openings(read_study("tiny", place.workspace))) == before + 1


def test_a_killed_finalize_keeps_the_test_from_other_models_a_killed_evaluate_does_not(finalized):
    place, final, _ = finalized
    record = read_study("tiny", place.workspace)
    kept = record.notes[OPENINGS], record.notes[FINALS]
    other = next(t for t in record.trials if t.notes["mlflow_run"] != final["run"])
    killed = [item | {"scores": {}} for item in kept[0] if item["run"] == final["run"] and item["by"] == "finalize"]
    annotate("tiny", place.workspace, OPENINGS, killed)
    annotate("tiny", place.workspace, FINALS, {})
    refused = place.run("finalize", "--model", f"runs:/{other.notes['mlflow_run']}")
    assert "what the seal prevents" in refused.stderr
    by_evaluate = killed[0] | {"by": "evaluate", "run": other.notes["mlflow_run"]}
    annotate("tiny", place.workspace, OPENINGS, [by_evaluate])
    opened = place.run("finalize")
    assert "going on" not in opened.stderr
    assert "opened before for other models" in opened.stderr
    assert len(openings(read_study("tiny", place.workspace))) == 2
    for key, value in zip((OPENINGS, FINALS), kept, strict=True):
        annotate("tiny", place.workspace, key, value)


def test_the_tables_fit_80_columns(finalized, capsys):
    place, final, _ = finalized
    shown = place.run("finalize").stdout
    assert max(len(line) for line in shown.splitlines()) <= 80
    worse = [one | {"gains": one["gains"] | {"auc": LOSS}} for one in final["baselines"]]
    told(Final.from_dict(final | {"baselines": worse, "robustness": CHANGED}))
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in lines) <= 80
    assert "worst case: edges cut by 15 %: AUC 0.912, 18.3 % (15.2 to 21.9) flipped" in lines
    assert "goal under 2 % flipped by re-compression: not told apart by the interval," in " ".join(lines)
    assert "16×16 thumbnail" in shown
    assert f"opening {final['openings']} of this study, and look {final['looks']} at these test films" in shown


def test_a_rough_interval_is_told_in_the_table(capsys):
    told(Final.from_dict(whole().final))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines if "≈" in line] == ["ece", "≈"]
    assert "≈ a rough interval: it holds about 92 of 100 times, not 95 (docs/statistics.md)" in lines


def test_trivial_models_stand_beside_it_and_the_headline_is_the_gain_over_the_best(finalized):
    _, final, _ = finalized
    best, other = final["baselines"]
    assert {best["name"], other["name"]} == {"file metadata", "16×16 thumbnail"}
    areas = [one["image"]["scores"]["auc"]["value"] for one in (best, other)]
    assert areas[0] >= areas[1]
    assert final["headline"]["value"] == pytest.approx(final["image"]["scores"]["auc"]["value"] - areas[0])
    assert final["headline"]["over"] == best["name"]


def test_the_record_comes_back_equal(finalized):
    place, final, _ = finalized
    (kept,) = finals("tiny", place.workspace).values()
    assert kept.to_dict() == final
    assert Final.from_dict(json.loads(json.dumps(final))).to_dict() == final


def test_opening_again_needs_the_flag_and_is_counted(finalized):
    place, final, _ = finalized
    count = len(openings(read_study("tiny", place.workspace)))
    again = finalize(CHAMPION, place.workspace, why="once more", again=True, sensitivity=0.9, device="cpu")
    assert len(openings(read_study("tiny", place.workspace))) == again.openings == count + 1
    assert again.rule == "sensitivity 0.9 on validation"
    assert again.threshold != final["threshold"] or again.image.confusion == final["image"]["confusion"]
    assert again.image.scores["auc"].value == pytest.approx(final["image"]["scores"]["auc"]["value"])


def test_parts_of_the_films_are_scored_in_the_same_opening(finalized):
    place, final, _ = finalized
    films = own_manifest(place).open_test(lambda: None)
    parts = final["subgroups"]
    assert {one["by"] for one in parts} >= {"subtype", "folder"}
    for one in parts:
        if one["by"] == "folder":
            assert one["films"] == sum(film.folder == one["name"] for film in films)
    client = connect(TrackingConfig(), place.workspace).client
    kept = json.loads(Path(client.download_artifacts(final["run"], "finalize.json")).read_text())
    assert kept["subgroups"] == parts
    assert "parts of the films" in place.run("finalize").stdout


def test_a_record_that_is_not_as_asked_says_so(finalized):
    place, *_ = finalized
    record = place.json("finalize")
    told = place.run("finalize", "--robustness", "--json", *(() if record["sensitivity"] else ("--sensitivity", "0.8")))
    assert json.loads(told.stdout) == record
    client = connect(TrackingConfig(), place.workspace).client
    # Where the tests of robustness came first, `evaluate --split test --robustness` has scored them for this run.
    scored = any(one.path == "robustness-test.json" for one in client.list_artifacts(record["run"]))
    words = "changed films were scored when" if scored else "not as asked: no changed films were scored"
    assert words in told.stderr
    other = place.run("finalize", "--sensitivity", "0.7")
    assert f"not as asked: the record's threshold is that of {record['rule']}" in other.stderr


def test_changed_films_are_scored_in_the_same_opening(finalized):
    place, *_ = finalized
    before = openings(read_study("tiny", place.workspace))
    done = place.json("finalize", "--robustness", "--again")
    assert len(openings(read_study("tiny", place.workspace))) == len(before) + 1
    client = connect(TrackingConfig(), place.workspace).client
    suite = json.loads(Path(client.download_artifacts(done["run"], "robustness-test.json")).read_text())
    short = done["robustness"]
    assert suite["films"] == short["films"] == done["image"]["cases"]
    assert short["worst"] == next(one for one in suite["conditions"] if one["name"] == suite["worst"])
    assert [one["what"] for one in short["goals"]] == ["re-compression", "a cut of 10 %"]
    assert short["goals"] == suite["goals"]
    assert suite["plain"]["auc"]["value"] == pytest.approx(done["image"]["scores"]["auc"]["value"])
    metrics = client.get_run(done["run"]).data.metrics
    assert metrics["robust.test.worst_flipped"] == pytest.approx(
        max(one["flipped"]["value"] for one in suite["conditions"])
    )
    again = place.run("finalize", "--robustness")
    assert "not as asked" not in again.stderr
    assert f"worst case: {suite['worst']}: AUC " in again.stdout
    assert again.stdout.count("goal under 2 % flipped by ") == 2
    assert Final.from_dict(json.loads(json.dumps(done))).to_dict() == done


STEPS = ("tag_look", "log_run_predictions", "amend", "log_run_json", "tag_versions", "log_run_metrics", "note_opening")


@pytest.mark.parametrize("step", STEPS)
def test_wherever_the_recording_stops_the_next_call_ends_it_without_another_opening(finalized, monkeypatch, step):
    place, _, _ = finalized
    count = len(openings(read_study("tiny", place.workspace)))

    def stopped(*args, **kwargs):
        if step != "note_opening" or args[3].scores:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    rooms = dict.fromkeys(("log_run_predictions", "amend", "log_run_json"), finalizing)
    room = (rooms | {"tag_versions": finalizing.registry}).get(step, opening)
    real = getattr(room, step)
    monkeypatch.setattr(room, step, stopped)
    with pytest.raises(KeyboardInterrupt):
        finalize(CHAMPION, place.workspace, again=True, device="cpu")
    monkeypatch.undo()
    final = finalize(CHAMPION, place.workspace, device="cpu")
    record = read_study("tiny", place.workspace)
    assert len(openings(record)) == final.openings == count + 1
    assert openings(record)[-1] == final.opening
    assert final.opening.scores["test.auc"] == final.image.scores["auc"].value
    assert finals("tiny", place.workspace)[final.run].to_dict() == final.to_dict()  # NaN is none there
    tags = connect(TrackingConfig(), place.workspace).client.get_run(record.notes["mlflow_parent"]).data.tags
    assert tags["xray_opt.test_openings"] == str(count + 1)


def test_a_model_without_a_study_is_refused(tuned, tmp_path):
    place, _, _ = tuned
    client = connect(TrackingConfig(), place.workspace).client
    record = read_study("tiny", place.workspace)
    client.download_artifacts(record.best.notes["mlflow_run"], "adapter", str(tmp_path))
    base = client.download_artifacts(record.notes["mlflow_parent"], "base/base.safetensors")
    shutil.copy(base, tmp_path / "base.safetensors")
    with pytest.raises(ConfigError, match="belongs to no study"):
        finalize(str(tmp_path), place.workspace, device="cpu")


def film(number: int, label: int, subtype: str, group: str) -> Film:
    return Film(f"{number}.png", label, group, subtype, "", group, "test", f"{number:064x}", 1, 1, 1, "L")


def test_a_patient_is_the_mean_of_their_films():
    films = [
        film(0, 0, "normal", "a"),
        film(1, 1, "bacteria", "b"),
        film(2, 1, "virus", "b"),
        film(3, 0, "normal", "a"),
        film(4, 1, "unknown", "c"),
    ]
    logits = np.array([-2.0, 1.0, -1.5, 3.0, 2.0])
    cases = film_cases(films, logits, 2.0, LossConfig(0.4, 1.5))
    probabilities = 1 / (1 + np.exp(-logits / 2))
    assert cases.films.probabilities == pytest.approx(probabilities)
    expected = [probabilities[[0, 3]].mean(), probabilities[[1, 2]].mean(), probabilities[4]]
    assert cases.patients.probabilities == pytest.approx(expected)
    assert cases.patients.labels.tolist() == [0, 1, 1]
    assert cases.patients.kinds["virus"].tolist() == [False, True, False]
    image, patient = levels(cases, 0.5)
    assert (image.cases, image.patients, patient.cases) == (5, 3, 3)
    assert image.confusion == {"true_positive": 2, "false_positive": 1, "true_negative": 1, "false_negative": 1}
    assert image.scores["sensitivity.bacteria"].value == 1.0
    assert image.scores["sensitivity.virus"].value == 0.0
    labels = torch.tensor([one.label for one in films])
    loss = FocalLoss(0.4, 1.5)(torch.from_numpy(logits), labels).item()
    assert image.scores["loss"].value == pytest.approx(loss)
    raw = 1 / (1 + np.exp(-logits))
    means = np.array([raw[[0, 3]].mean(), raw[[1, 2]].mean(), raw[4]])
    per_patient = FocalLoss(0.4, 1.5)(torch.from_numpy(np.log(means / (1 - means))), torch.tensor([0, 1, 1])).item()
    assert patient.scores["loss"].value == pytest.approx(per_patient)
    assert image.values("test")["test.loss"] == pytest.approx(loss)
    assert "test.f1_low" not in image.values("test"), "three patients give no interval"
