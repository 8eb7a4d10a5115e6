"""Room served_model: what the registered pyfunc answers, and what it refuses."""

from __future__ import annotations

import base64
import json
import os
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import pandas as pd
import pytest
import torch
from mlflow.entities import LoggedModel
from mlflow.exceptions import MlflowException
from mlflow_stores import base, base64_film, embedded, film, finished_run, free_port, make_adapter, process

from xray_opt.adapter import load_bundle
from xray_opt.evaluate import Predictor
from xray_opt.registry import register
from xray_opt.registry.registration import save_pyfunc
from xray_opt.served_model import film_bytes


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(tmp_path_factory.mktemp("adapter"))


@pytest.fixture(scope="module")
def model(adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> mlflow.pyfunc.PyFuncModel:
    """Saved and loaded as MLflow does it, signature enforced."""
    folder = tmp_path_factory.mktemp("model")
    record = LoggedModel("0", "m-1", "model", str(folder), 0, 0)
    return mlflow.pyfunc.load_model(str(save_pyfunc(folder, record, "0" * 32, adapter, base(), film())))


def expected(adapter: Path, *films: bytes) -> list[float]:
    network, bundle = load_bundle(adapter, base())
    return [float(value) for value in Predictor(network, bundle, torch.device("cpu")).probabilities(films)]


def refusal(model: mlflow.pyfunc.PyFuncModel, table: pd.DataFrame) -> str:
    with pytest.raises(MlflowException) as caught:
        model.predict(table)
    assert caught.value.get_http_status_code() == 400
    return str(caught.value)


def test_base64_and_bytes_give_the_probability_of_validation(model: mlflow.pyfunc.PyFuncModel, adapter: Path) -> None:
    films = [film(1), film(2), film(3)]
    wrapped = base64.encodebytes(films[2]).decode()
    answers = model.predict(pd.DataFrame({"image": [base64_film(1), base64_film(2), wrapped]}))
    assert list(answers.columns) == ["probability", "label", "threshold"]
    assert answers["probability"].tolist() == pytest.approx(expected(adapter, *films), abs=1e-9)
    assert answers["threshold"].tolist() == [0.4] * 3
    assert answers["label"].tolist() == ["PNEUMONIA" if p >= 0.4 else "NORMAL" for p in answers["probability"]]
    raw = model.predict(pd.DataFrame({"image": films}))
    assert raw["probability"].tolist() == answers["probability"].tolist()


def test_no_rows_in_no_rows_out(model: mlflow.pyfunc.PyFuncModel) -> None:
    answers = model.predict(pd.DataFrame({"image": pd.Series([], dtype=str)}))
    assert len(answers) == 0
    assert list(answers.columns) == ["probability", "label", "threshold"]


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("not base64!", "row 1: image is not base64"),
        (base64.b64encode(b"no picture at all").decode(), "row 1:"),
        (base64.b64encode(film()[:200]).decode(), "row 1:"),
        ("", "row 1:"),
        (None, "row 1: give either image or path"),
    ],
)
def test_a_bad_image_names_its_row(model: mlflow.pyfunc.PyFuncModel, cell: str | None, words: str) -> None:
    assert words in refusal(model, pd.DataFrame({"image": [base64_film(), cell]}))


@pytest.mark.parametrize("cell", [3, 2.5, ["a"]])
def test_a_cell_of_another_type_is_refused(cell: object) -> None:
    with pytest.raises(MlflowException, match="row 0"):
        film_bytes(pd.DataFrame({"image": [cell]}, dtype=object))


def test_a_table_without_either_column_is_refused(model: mlflow.pyfunc.PyFuncModel) -> None:
    assert "image" in refusal(model, pd.DataFrame({"picture": ["a"]}))


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A served folder with a film, beside a secret; links out of it."""
    root = tmp_path / "served"
    (root / "deep").mkdir(parents=True)
    (root / "deep" / "a.png").write_bytes(film(1))
    (tmp_path / "secret.png").write_bytes(film(2))
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    (root / "out").symlink_to(tmp_path)
    (root / "loop").symlink_to(root / "loop")
    monkeypatch.setenv("XRAY_OPT_SERVE_ROOT", str(root))
    return root


def test_a_path_below_the_served_folder_is_read(model: mlflow.pyfunc.PyFuncModel, adapter: Path, served: Path) -> None:
    (served / "inner.png").symlink_to(served / "deep" / "a.png")
    answers = model.predict(pd.DataFrame({"path": ["deep/a.png", str(served / "deep" / "a.png"), "inner.png"]}))
    assert answers["probability"].tolist() == pytest.approx(expected(adapter, film(1)) * 3, abs=1e-9)


def test_rows_may_mix_image_and_path(model: mlflow.pyfunc.PyFuncModel, adapter: Path, served: Path) -> None:
    answers = model.predict(pd.DataFrame({"image": [base64_film(2), None], "path": [None, "deep/a.png"]}))
    assert answers["probability"].tolist() == pytest.approx(expected(adapter, film(2), film(1)), abs=1e-9)
    both = pd.DataFrame({"image": [base64_film(2)], "path": ["deep/a.png"]})
    assert "row 0: give either image or path" in refusal(model, both)


@pytest.mark.parametrize(
    "path",
    [
        *("../secret.png", "deep/../../secret.png", "deep/../deep/a.png", "link.png", "out/secret.png", "/etc/passwd"),
        *("missing.png", "deep", "", "loop", "a\0b", "x" * 5000),
    ],
)
def test_every_other_path_is_refused(served: Path, path: str) -> None:
    with pytest.raises(MlflowException, match="row 0"):
        film_bytes(pd.DataFrame({"path": [path]}))


def test_outside_the_folder_it_is_not_told_whether_a_file_exists(served: Path) -> None:
    words = set()
    for path in ("/etc/passwd", "/etc/there-is-no-such-file"):
        with pytest.raises(MlflowException) as caught:
            film_bytes(pd.DataFrame({"path": [path]}))
        words.add(str(caught.value))
    assert len(words) == 1


def test_paths_are_refused_where_no_folder_is_served(
    model: mlflow.pyfunc.PyFuncModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XRAY_OPT_SERVE_ROOT", raising=False)
    (tmp_path / "a.png").write_bytes(film())
    assert "XRAY_OPT_SERVE_ROOT" in refusal(model, pd.DataFrame({"path": [str(tmp_path / "a.png")]}))


def post(url: str, body: object, kind: str = "application/json") -> tuple[int, Any]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": kind})
    try:
        with urllib.request.urlopen(request, timeout=300) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.mark.slow
def test_mlflow_models_serve_answers_real_requests(tmp_path: Path) -> None:
    connection = embedded(tmp_path)
    run_id, adapter = finished_run(connection, tmp_path, "study")
    register(connection, run_id, adapter, base(), "xray-pneumonia", {}, film())
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--env-manager", "local"]
    command += ["--model-uri", "models:/xray-pneumonia@champion", "--host", "127.0.0.1", "--port", str(port)]
    url = f"http://127.0.0.1:{port}"
    # MLflow starts uvicorn by its name: the environment is active, as it is for who types the command.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {"MLFLOW_TRACKING_URI": connection.uri, "XRAY_OPT_SERVE_ROOT": "", "PATH": path}
    with process(command, f"{url}/ping", env):
        url += "/invocations"
        want = expected(adapter, film(1), film(2))
        split = {"dataframe_split": {"columns": ["image"], "data": [[base64_film(1)], [base64_film(2)]]}}
        status, answer = post(url, split)
        assert status == 200
        assert [row["probability"] for row in answer["predictions"]] == pytest.approx(want, abs=1e-5)
        status, answer = post(url, {"dataframe_records": [{"image": base64_film(1)}]})
        assert status == 200
        assert answer["predictions"][0]["label"] == ("PNEUMONIA" if want[0] >= 0.4 else "NORMAL")

        status, text = post(url, {"dataframe_records": [{"image": base64_film(1)}, {"image": "no film"}]})
        assert status == 400
        assert "row 1" in text
        for wrong in ({"dataframe_records": [{"picture": "x"}]}, {"dataframe_records": [{"path": "/etc/passwd"}]}, {}):
            assert 400 <= post(url, wrong)[0] < 500
        assert post(url, b"{not json")[0] == 400
        assert post(url, b"a", "image/png")[0] == 415
