"""Room registry: versions that carry all they need, their aliases, and loading them. Embedded store and real server."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import threading
import uuid
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow.exceptions import MlflowException
from mlflow_stores import (
    CONFIG,
    ROOT,
    STORAGE_DIGEST,
    base,
    base64_film,
    blank_versions,
    embedded,
    film,
    finished_run,
)

from xray_opt.adapter import attach as adapted
from xray_opt.adapter import load_bundle, make_bundle, save_bundle
from xray_opt.backbone import random_base, save_base
from xray_opt.config import override
from xray_opt.errors import BaseMismatch, DiskFault, ModelError, TrackingError
from xray_opt.evaluate import Predictor
from xray_opt.mlflow_client import Connection
from xray_opt.registry import Version, champion, load, promote, register, version_for_run
from xray_opt.registry.registration import REQUIREMENTS, requirements
from xray_opt.registry.versions import aliases, attach, settle_alias
from xray_opt.tracking import Tracking, orphan_runs, tag_run, unreferenced_artifacts

CPU = torch.device("cpu")


@pytest.fixture
def name() -> str:
    """A model and study name of its own for each test: they may share a server."""
    return f"model-{uuid.uuid4().hex[:8]}"


def registered(
    connection: Connection, folder: Path, name: str, seed: int = 0, data: str = "d" * 64, worst: str = ""
) -> tuple[Version, Path]:
    run_id, adapter = finished_run(connection, folder, name, seed, 0.7 + seed / 10)
    if worst:
        tag_run(connection, run_id, "robust.val.worst", worst)
    tags = {"xray_opt.study": name, "xray_opt.trial": str(seed), "xray_opt.manifest_sha256": data}
    return register(connection, run_id, adapter, base(), name, tags, film()), adapter


def answer(adapter: Path) -> float:
    """Probability of the test film by the path of the validation scores."""
    network, bundle = load_bundle(adapter, base())
    return float(Predictor(network, bundle, CPU).probabilities([film(5)])[0])


def test_the_first_version_is_champion_and_the_next_a_candidate(
    connection: Connection, tmp_path: Path, name: str
) -> None:
    assert champion(connection, name) is None
    first, adapter = registered(connection, tmp_path, name)
    assert champion(connection, name) == first
    second, _ = registered(connection, tmp_path, name, seed=1, worst="edges cut: AUC .9")
    assert aliases(connection, name) == {"champion": first.version, "candidate": second.version}
    assert second.evidence["robust.val.worst"] == "edges cut: AUC .9", "known before it was registered"

    assert first.tags["xray_opt.study"] == name
    assert first.tags["xray_opt.base_sha256"] == base().sha256
    assert first.scores == {"val.f1": 0.7, "val.auc": 0.9}
    assert first.val_f1 == 0.7
    stored = connection.client.get_model_version(name, first.version)
    assert stored.description == f"{name} trial-000: val F1 0.7000 at 0.5"
    assert stored.run_id == first.run_id

    same = register(connection, first.run_id, adapter, base(), name, {}, film())
    assert same == first
    assert len(connection.client.search_model_versions(f"name = '{name}'")) == 2

    comparison = promote(connection, name)
    assert (comparison.old, comparison.new) == (first, second)
    assert comparison.same_data
    assert json.loads(json.dumps(asdict(comparison)))["new"]["version"] == second.version
    assert aliases(connection, name) == {"champion": second.version}
    loaded = load(connection, f"models:/{name}@champion", CPU)
    assert loaded.run_id == second.run_id

    # The first one had its turn: registering its run again does not make it a candidate.
    register(connection, first.run_id, adapter, base(), name, {}, film())
    assert aliases(connection, name) == {"champion": second.version}


def test_a_registered_model_says_of_what_its_probability_is(tmp_path: Path, name: str) -> None:
    """Not of pneumonia where the classes are others: in the study ``kinds`` every film shows one."""
    store = embedded(tmp_path)
    run_id, adapter = finished_run(store, tmp_path, name)
    other = override(CONFIG, {"data.negative": "virus", "data.positive": "bacteria"})
    save_bundle(adapted(base(), other), tmp_path / "other", make_bundle(base(), other, 48))
    for own, folder, positive in ((name, adapter, "PNEUMONIA"), (f"{name}-kinds", tmp_path / "other", "bacteria")):
        register(store, run_id, folder, base(), own, {}, film())
        assert f"probability of {positive}." in store.client.get_registered_model(own).description


def test_a_version_predicts_what_was_validated(connection: Connection, tmp_path: Path, name: str) -> None:
    version, adapter = registered(connection, tmp_path, name)
    expected = answer(adapter)
    kept = save_base(base(), adapter.parent / "base.safetensors")
    with Tracking.open(connection, name, {}) as tracking:
        tracking.log_file(kept, "base")
    for uri in (f"models:/{name}@champion", f"models:/{name}/{version.version}", f"runs:/{version.run_id}", adapter):
        loaded = load(connection, str(uri), CPU)
        assert loaded.predictor.probabilities([film(5)])[0] == pytest.approx(expected, abs=1e-9)
        assert loaded.bundle.threshold == 0.4
        assert loaded.run_id == ("" if uri == adapter else version.run_id)
        assert loaded.tags.get("xray_opt.trial") == (None if uri == adapter else "0")
    assert 0.01 < expected < 0.99


def test_the_model_holds_code_base_adapter_and_nothing_else(tmp_path: Path, name: str) -> None:
    connection = embedded(tmp_path)
    version, _ = registered(connection, tmp_path, name)
    place = connection.client.get_model_version_download_uri(name, version.version).removeprefix("file://")
    files = {path.relative_to(place).as_posix() for path in Path(place).rglob("*") if path.is_file()}
    assert {"MLmodel", "served_model.py", "artifacts/base.safetensors", "artifacts/adapter/bundle.json"} <= files
    assert {"code/xray_opt/evaluate.py", "code/xray_opt/dataset/__init__.py", "input_example.json"} <= files
    assert not [file for file in files if file.endswith((".pyc", ".pkl", ".pickle"))]
    text = (Path(place) / "requirements.txt").read_text().splitlines()
    assert all("==" in line and "+" not in line for line in text)
    assert {"mlflow", "torch", "peft"} <= {line.partition("==")[0] for line in text}

    (model,) = connection.client.search_logged_models([connection.client.get_run(version.run_id).info.experiment_id])
    assert json.loads(model.tags["mlflow.modelVersions"]) == [{"name": name, "version": version.version}]
    assert str(model.status) == "READY"
    assert unreferenced_artifacts(connection, connection.workspace) == []
    assert version.run_id not in orphan_runs(connection, {STORAGE_DIGEST: set()})[0]


def test_registering_and_loading_print_nothing(tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    connection = embedded(tmp_path)
    capfd.readouterr()
    registered(connection, tmp_path, name)
    load(connection, f"models:/{name}@champion", CPU)
    assert capfd.readouterr() == ("", "")


def test_requirements_name_what_is_installed() -> None:
    assert [line.partition("==")[0] for line in requirements()] == [
        package for package in REQUIREMENTS if package != "pydicom" or "pydicom" in str(requirements())
    ]


def test_a_kill_between_version_and_alias_is_repaired_by_the_next_call(
    connection: Connection, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from xray_opt.registry import registration

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    run_id, adapter = finished_run(connection, tmp_path, name)
    with monkeypatch.context() as patch:
        patch.setattr(registration, "settle_alias", killed)
        with pytest.raises(KeyboardInterrupt):
            register(connection, run_id, adapter, base(), name, {}, film())
    assert aliases(connection, name) == {}
    assert version_for_run(connection, name, run_id) is not None
    register(connection, run_id, adapter, base(), name, {}, film())
    assert aliases(connection, name) == {"champion": "1"}
    assert len(connection.client.search_model_versions(f"name = '{name}'")) == 1


def test_an_adapter_of_another_base_is_not_registered(tmp_path: Path, name: str) -> None:
    connection = embedded(tmp_path)
    run_id, adapter = finished_run(connection, tmp_path, name)
    with pytest.raises(BaseMismatch):
        register(connection, run_id, adapter, random_base(1), name, {}, film())
    (adapter / "head.safetensors").write_bytes(b"damaged")
    with pytest.raises(ModelError):
        register(connection, run_id, adapter, base(), name, {}, film())
    assert connection.client.search_registered_models() == []


def test_a_failed_upload_leaves_no_version(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from xray_opt.registry import registration

    def full(*_: object) -> Path:
        raise OSError("No space left on device")

    connection = embedded(tmp_path)
    run_id, adapter = finished_run(connection, tmp_path, name)
    with monkeypatch.context() as patch:
        patch.setattr(registration, "save_pyfunc", full)
        with pytest.raises(DiskFault, match="No space left"):
            register(connection, run_id, adapter, base(), name, {}, film())
    assert version_for_run(connection, name, run_id) is None
    (model,) = connection.client.search_logged_models([connection.client.get_run(run_id).info.experiment_id])
    assert str(model.status) == "FAILED"


def test_racing_registrations_leave_one_champion(connection: Connection, name: str) -> None:
    versions = blank_versions(connection, name, 3)
    start = threading.Barrier(len(versions))
    errors: list[BaseException] = []

    def settle(version: Version) -> None:
        start.wait()
        try:
            settle_alias(connection, version)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=settle, args=(version,)) for version in versions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    found = aliases(connection, name)
    assert found["champion"] in {"1", "2", "3"}
    assert found.get("candidate") != found["champion"]
    if found["champion"] != "3":
        assert found["candidate"] == "3"


def test_an_alias_that_another_one_created_first_is_left_to_it(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two inserts of one alias at once: the database takes the first and refuses the second."""
    connection = embedded(tmp_path)
    first, second = blank_versions(connection, name, 2)
    original = connection.client.set_registered_model_alias

    def refused(model: str, alias: str, version: str) -> None:
        if version == first.version:
            original(model, alias, second.version)
            raise MlflowException("UNIQUE constraint failed: registered_model_aliases")
        original(model, alias, version)

    monkeypatch.setattr(connection.client, "set_registered_model_alias", refused)
    settle_alias(connection, first)
    assert aliases(connection, name) == {"champion": second.version}


def test_an_alias_that_cannot_be_set_is_one_line(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise MlflowException("disk I/O error")

    connection = embedded(tmp_path)
    (first,) = blank_versions(connection, name, 1)
    monkeypatch.setattr(connection.client, "set_registered_model_alias", broken)
    with pytest.raises(TrackingError, match="disk I/O error"):
        settle_alias(connection, first)


def test_the_newest_candidate_stays_candidate(connection: Connection, name: str) -> None:
    first, second, third = blank_versions(connection, name, 3)
    settle_alias(connection, first)
    settle_alias(connection, third)
    settle_alias(connection, second)
    assert aliases(connection, name) == {"champion": "1", "candidate": "3"}


def test_promote_says_why_it_does_nothing(connection: Connection, name: str) -> None:
    with pytest.raises(TrackingError, match="no champion either"):
        promote(connection, name)
    (first,) = blank_versions(connection, name, 1)
    settle_alias(connection, first)
    with pytest.raises(TrackingError, match="no candidate to promote"):
        promote(connection, name)
    with pytest.raises(TrackingError, match="is the champion already"):
        promote(connection, name, "1")
    for wrong in ("7", "latest", "-1"):
        with pytest.raises(TrackingError, match=f"has no version {wrong}"):
            promote(connection, name, wrong)


def test_any_version_can_be_promoted_and_other_data_is_said(connection: Connection, name: str) -> None:
    first, second = blank_versions(connection, name, 2)
    for version, data in ((first, "a"), (second, "b")):
        settle_alias(connection, version)
        connection.client.set_model_version_tag(name, version.version, "xray_opt.manifest_sha256", data)
    comparison = promote(connection, name, "2")
    assert comparison.old is not None
    assert (comparison.old.version, comparison.new.version, comparison.same_data) == ("1", "2", False)
    back = promote(connection, name, "1")
    assert back.new.version == "1"
    assert aliases(connection, name) == {"champion": "1"}


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("models:/nobody@champion", "make one with xray-opt tune"),
        ("models:/nobody/3", "has no version 3"),
        ("runs:/" + "0" * 32, "cannot fetch the adapter"),
        ("models:/a/b/c", "give models:/NAME@ALIAS"),
        ("nonsense", "give models:/NAME@ALIAS"),
    ],
)
def test_what_cannot_be_loaded_is_one_line(tmp_path: Path, uri: str, words: str) -> None:
    with pytest.raises(TrackingError, match=words) as caught:
        load(embedded(tmp_path), uri, CPU)
    assert "\n" not in str(caught.value)


def test_a_version_of_somebody_else_is_refused(tmp_path: Path, name: str) -> None:
    connection = embedded(tmp_path)
    (first,) = blank_versions(connection, name, 1)
    with pytest.raises(TrackingError):
        load(connection, f"models:/{name}/{first.version}", CPU)


def test_a_damaged_version_is_refused(tmp_path: Path, name: str) -> None:
    connection = embedded(tmp_path)
    version, _ = registered(connection, tmp_path, name)
    place = Path(connection.client.get_model_version_download_uri(name, version.version).removeprefix("file://"))
    weights = place / "artifacts" / "base.safetensors"
    original = weights.read_bytes()
    save_base(random_base(1), weights)
    with pytest.raises(BaseMismatch):
        load(connection, f"models:/{name}@champion", CPU)
    weights.write_bytes(original[:1000])
    with pytest.raises(ModelError):
        load(connection, f"models:/{name}@champion", CPU)


def test_a_run_takes_its_base_from_its_study(tmp_path: Path, name: str) -> None:
    connection = embedded(tmp_path)
    run_id, adapter = finished_run(connection, tmp_path, name)
    kept = save_base(replace(base(), origin="own.pth"), tmp_path / "base.safetensors")
    with pytest.raises(TrackingError, match="base weights"):
        load(connection, f"runs:/{run_id}", CPU)
    with Tracking.open(connection, name, {}) as tracking:
        tracking.log_file(kept, "base")
    loaded = load(connection, f"runs:/{run_id}", CPU)
    assert loaded.predictor.probabilities([film(5)])[0] == pytest.approx(answer(adapter), abs=1e-9)


def test_a_run_outside_a_study_keeps_its_own_base(tmp_path: Path, name: str) -> None:
    from xray_opt.adapter import attach, make_bundle, save_bundle
    from xray_opt.config import override

    config = override(CONFIG, {"model.base": "random"})
    network = attach(base(), config)
    folder = save_bundle(network, tmp_path / "adapter", make_bundle(base(), config, 48))
    connection = embedded(tmp_path)
    with Tracking.open(connection, "train", {}, parent=False) as tracking, tracking.run("r", config, {}, {}) as run:
        run.log_folder(folder, "adapter")
        run.log_file(save_base(base(), tmp_path / "base.safetensors"), "base")
    for uri in (f"runs:/{run.id}", str(folder)):
        assert load(connection, uri, CPU).predictor.probabilities([film(5)]) == pytest.approx(answer(folder), abs=1e-9)


def test_a_file_beside_a_version_without_a_model_is_refused(tmp_path: Path, name: str) -> None:
    connection = embedded(tmp_path)
    with Tracking.open(connection, "train", {}, parent=False) as tracking, tracking.run("r", CONFIG, {}, {}) as run:
        run.log_metrics({"best.f1": 0.5})
    connection.client.create_registered_model(name)
    made = connection.client.create_model_version(name, str(tmp_path / "elsewhere"), run.id)
    (tmp_path / "evidence.json").write_text("{}")
    version = Version(name, str(made.version), run.id)
    with pytest.raises(TrackingError, match=r"evidence\.json cannot be attached to version 1"):
        attach(connection, version, tmp_path / "evidence.json", {})


def bare_site(folder: Path) -> Path:
    """Site-packages without this package: links to everything installed but the editable install's traces."""
    target = folder / "site"
    target.mkdir()
    for item in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if "xray_opt" not in item.name and not item.name.endswith(".pth"):
            (target / item.name).symlink_to(item)
    return target


LOAD = """
import json, sys
import importlib.util
assert importlib.util.find_spec("xray_opt") is None, "the package must not be importable but through the model"
import mlflow, pandas
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(sys.argv[2])
import xray_opt
assert not {"optuna", "xray_opt.tracking"} & set(sys.modules), "not in its requirements"
table = model.predict(pandas.DataFrame({"image": [sys.argv[3]]}))
print("ANSWER", json.dumps([xray_opt.__file__, table.to_dict(orient="records")]))
"""


@pytest.mark.slow
def test_a_fresh_process_without_the_package_predicts_the_same(
    connection: Connection, tmp_path: Path, name: str
) -> None:
    _, adapter = registered(connection, tmp_path, name)
    shutil.rmtree(adapter)
    env = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "MLFLOW", "XRAY"))}
    env |= {"PYTHONPATH": str(bare_site(tmp_path)), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-S", "-c", LOAD, connection.uri, f"models:/{name}@champion", base64_film(5)],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    place, rows = json.loads(done.stdout.partition("ANSWER ")[2])
    assert not Path(place).is_relative_to(ROOT)
    loaded = load(connection, f"models:/{name}@champion", CPU)
    expected = loaded.predictor.probabilities([film(5)])[0]
    assert rows[0]["probability"] == pytest.approx(expected, abs=1e-5)
    assert rows[0]["label"] == ("PNEUMONIA" if expected >= 0.4 else "NORMAL")
    assert np.isclose(rows[0]["threshold"], loaded.bundle.threshold)


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "models:/" + "x" * 5000, "a\nb"])
def test_a_model_that_cannot_even_be_looked_for_is_one_short_line(connection, name):
    with pytest.raises(TrackingError, match="no model") as caught:
        load(connection, name, torch.device("cpu"))
    assert len(str(caught.value)) < 300
