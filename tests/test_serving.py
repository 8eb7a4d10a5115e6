"""Room serving: MLflow's scoring server with one line for whatever is wrong with a request; started and ended."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import signal
import struct
import time
import urllib.error
import urllib.request
import zlib
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import pandas as pd
import pytest
from mlflow.entities import LoggedModel
from mlflow.pyfunc import scoring_server
from mlflow_stores import base, base64_film, film, free_port, make_adapter
from PIL import Image

from xray_opt.errors import ConfigError, TrackingError
from xray_opt.mlflow_client import connect
from xray_opt.places import Place
from xray_opt.registry.registration import save_pyfunc
from xray_opt.served_model import ROOT
from xray_opt.serving import serve
from xray_opt.serving.scoring_app import LONGEST, Guarded, told
from xray_opt.serving.starting import _environment

JSON = "application/json"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> mlflow.pyfunc.PyFuncModel:
    folder = tmp_path_factory.mktemp("model")
    adapter = make_adapter(folder)
    record = LoggedModel("0", "m-1", "model", str(folder), 0, 0)
    return mlflow.pyfunc.load_model(str(save_pyfunc(folder, record, "0" * 32, adapter, base(), film())))


@pytest.fixture(scope="module")
def app(model: mlflow.pyfunc.PyFuncModel) -> Guarded:
    return Guarded(scoring_server.init(model), 1 << 20)


def asked(
    app: Guarded, body: bytes, kind: str | None = JSON, path: str = "/invocations", method: str = "POST", chunk: int = 0
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the app's answer, by ASGI itself."""
    parts = [body[first : first + chunk] for first in range(0, len(body), chunk)] if chunk else [body]
    left = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    left[-1]["more_body"] = False
    said: list[Any] = []

    async def receive():
        if left:
            return left.pop(0)
        await asyncio.Event().wait()

    async def send(message):
        said.append(message)

    headers = [(b"host", b"here")] + ([(b"content-type", kind.encode())] if kind is not None else [])
    scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "path": path}
    scope |= {"raw_path": path.encode(), "query_string": b"", "root_path": "", "scheme": "http", "headers": headers}
    asyncio.run(app(scope | {"server": ("here", 80), "client": ("there", 1)}, receive, send))
    kept = {name.decode().lower(): value.decode() for name, value in said[0]["headers"]}
    return said[0]["status"], kept, b"".join(one.get("body", b"") for one in said[1:])


def records(*cells: object, column: str = "image") -> bytes:
    return json.dumps({"dataframe_records": [{column: cell} for cell in cells]}).encode()


def bomb() -> str:
    """A PNG of few bytes that declares 60,000 × 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0))
    content = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    return base64.b64encode(content).decode()


def text(content: bytes) -> str:
    return base64.b64encode(content).decode()


def animated() -> bytes:
    buffer = io.BytesIO()
    frames = [Image.new("L", (64, 64), grey) for grey in (0, 9)]
    frames[0].save(buffer, "PNG", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


#: What is wrong → body, type, status, words of the message.
MALFORMED = {
    "no body": (b"", JSON, 400, "the body is not JSON"),
    "not JSON": (b"{not json", JSON, 400, "the body is not JSON"),
    "not UTF-8": (b'{"a": "\xff\xfe"}', JSON, 400, "the body is not UTF-8"),
    "JSON of nothing": (b"null", JSON, 400, ""),
    "a number": (b"3", JSON, 400, ""),
    "a list": (b"[1, 2]", JSON, 400, ""),
    "no known key": (b"{}", JSON, 400, ""),
    "two keys": (b'{"dataframe_records": [], "inputs": []}', JSON, 400, ""),
    "deep JSON": (b'{"dataframe_records": ' + b"[" * 100_000, JSON, 400, ""),
    "no rows": (b'{"dataframe_records": []}', JSON, 400, "needs a column image"),
    "records that are none": (b'{"dataframe_records": 3}', JSON, 400, ""),
    "records of texts": (b'{"dataframe_records": ["a"]}', JSON, 400, ""),
    "a split without data": (b'{"dataframe_split": {"columns": ["image"]}}', JSON, 400, ""),
    "a crooked split": (b'{"dataframe_split": {"columns": ["image"], "data": [["a", "b"]]}}', JSON, 400, ""),
    "a wrong column": (records(base64_film(), column="picture"), JSON, 400, "image"),
    "a cell of another type": (records(3), JSON, 400, ""),
    "a cell of nothing": (records(None), JSON, 400, "row 0: give either image or path"),
    "no base64": (records(base64_film(), "no base64!"), JSON, 400, "row 1: image is not base64"),
    "not an image": (records(text(b"<html>hello</html>")), JSON, 400, "row 0: not an image"),
    "an empty image": (records(""), JSON, 400, "row 0:"),
    "a truncated image": (records(text(film()[:700])), JSON, 400, "row 0: "),
    "a decompression bomb": (records(bomb()), JSON, 400, "row 0: decompression bomb"),
    "several frames": (records(text(animated())), JSON, 400, "row 0:"),
    "a path": (records("/etc/passwd", column="path"), JSON, 400, "row 0: path is refused"),
    "no Content-Type": (records(base64_film()), None, 415, "Content-Type"),
    "another type": (b"a", "image/png", 415, "content types"),
    "another charset": (b"{}", "application/json; charset=latin-1", 415, "UTF-8"),
    "no CSV": (b'"a\n"b', "text/csv", 400, ""),
    "no CSV text": (b"\xff\xfe", "text/csv", 400, "the body is not UTF-8"),
    "no Parquet": (b"PAR1", "application/vnd.apache.parquet", 400, ""),
    "too large": (b" " * (1 << 21), JSON, 413, "1 MiB"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_what_is_malformed_is_answered_4xx_with_one_line(app: Guarded, name: str) -> None:
    body, kind, status, words = MALFORMED[name]
    found, headers, content = asked(app, body, kind)
    answer = json.loads(content)
    assert found == status
    assert headers["content-type"] == JSON
    assert int(headers["content-length"]) == len(content)
    assert sorted(answer) == ["error_code", "message"]
    assert words in answer["message"]
    assert 10 < len(answer["message"]) <= LONGEST
    assert answer["message"].isprintable()
    assert not any(secret in content.decode() for secret in ("Traceback", "/site-packages/", "iVBOR", "File \\"))


def test_what_is_right_is_answered_as_mlflow_does(app: Guarded, model: mlflow.pyfunc.PyFuncModel) -> None:
    wanted = model.predict(pd.DataFrame({"image": [base64_film(1), base64_film(2)]}))["probability"].tolist()
    body = records(base64_film(1), base64_film(2))
    for chunk in (0, 1000):
        status, headers, content = asked(app, body, chunk=chunk)
        assert (status, headers["content-type"]) == (200, JSON)
        assert int(headers["content-length"]) == len(content)
        found = json.loads(content)["predictions"]
        assert [row["probability"] for row in found] == pytest.approx(wanted, abs=1e-6)
    none = b'{"dataframe_split": {"columns": ["image"], "data": []}}'
    assert json.loads(asked(app, none)[2]) == {"predictions": []}
    csv = pd.DataFrame({"image": [base64_film(1)]}).to_csv(index=False).encode()
    assert json.loads(asked(app, csv, "text/csv")[2])["predictions"][0]["probability"] == pytest.approx(wanted[0])


def test_other_addresses_are_mlflows(app: Guarded) -> None:
    assert asked(app, b"", path="/ping", method="GET")[0] == 200
    assert asked(app, b"", path="/version", method="GET")[0] == 200
    assert asked(app, b"", method="GET")[0] == 405
    assert asked(app, b"", path="/etc")[0] == 404


def test_a_body_far_beyond_the_limit_is_not_read_to_its_end(app: Guarded) -> None:
    status, _, content = asked(app, b" " * (16 << 20), chunk=1 << 20)
    assert (status, json.loads(content)["error_code"]) == (413, "TOO_LARGE")


def test_a_model_that_fails_is_no_fault_of_the_request(
    app: Guarded, model: mlflow.pyfunc.PyFuncModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("secret /path")

    monkeypatch.setattr(model, "predict", broken)
    status, _, content = asked(app, records(base64_film()))
    assert status == 500
    assert json.loads(content) == {
        "error_code": "INTERNAL_ERROR",
        "message": "the model failed; the server's log says how",
    }


def test_requests_take_turns(model: mlflow.pyfunc.PyFuncModel, monkeypatch: pytest.MonkeyPatch) -> None:
    at_work, most = 0, 0
    original = model.predict

    def slow(*given: object, **named: object) -> object:
        nonlocal at_work, most
        at_work += 1
        most = max(most, at_work)
        time.sleep(0.05)
        at_work -= 1
        return original(*given, **named)

    monkeypatch.setattr(model, "predict", slow)
    app = Guarded(scoring_server.init(model), 1 << 20)

    async def all_at_once() -> list[int]:
        return await asyncio.gather(*(one_status(app, records(base64_film(seed))) for seed in range(4)))

    assert asyncio.run(all_at_once()) == [200] * 4
    assert most == 1


async def one_status(app: Guarded, body: bytes) -> int:
    said: list[Any] = []

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message):
        said.append(message)

    scope = {"type": "http", "method": "POST", "path": "/invocations", "query_string": b"", "root_path": ""}
    await app(scope | {"headers": [(b"content-type", JSON.encode())], "scheme": "http"}, receive, send)
    return said[0]["status"]


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("Failed to predict data '   image\n0 iVBOR'. \nError: row 0: bad", "row 0: bad"),
        ("Ensure that input is a valid JSON formatted string. Error: 'x'\nInput: \nabc", "the body is not JSON: 'x'"),
        ("plain", "plain"),
    ],
)
def test_the_reason_alone(message: str, reason: str) -> None:
    assert told(message) == reason


def test_only_registered_versions_are_served(tuned, tmp_path: Path) -> None:
    place, _, _ = tuned
    for model, error in (("runs:/" + "0" * 32, ConfigError), (str(tmp_path), ConfigError)):
        with pytest.raises(error, match="only registered versions"):
            serve(model, place.workspace)
    with pytest.raises(TrackingError, match="no model nobody"):
        serve("models:/nobody@champion", place.workspace)
    with pytest.raises(ConfigError, match="is no folder"):
        serve("models:/xray-pneumonia@champion", place.workspace, films=tmp_path / "none")


def test_only_the_folder_that_is_named_may_be_read(tuned, tmp_path: Path, monkeypatch) -> None:
    place, _, _ = tuned
    monkeypatch.setenv(ROOT, "/")
    store = connect(Place().tracking(place.workspace), place.workspace)
    assert ROOT not in _environment(store, "m/1", 1, None, 1)
    assert _environment(store, "m/1", 1, tmp_path, 1)[ROOT] == str(tmp_path)


def post(url: str, body: bytes) -> tuple[int, dict[str, Any]]:
    request = urllib.request.Request(url, body, {"Content-Type": JSON})
    try:
        with urllib.request.urlopen(request, timeout=300) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@pytest.mark.slow
def test_the_command_serves_the_champion_until_it_is_ended(tuned) -> None:
    place, _, _ = tuned
    port = free_port()
    served = place.start("serve", "--port", str(port), "--films", str(place.films), "--most-mib", "1")
    try:
        first = served.stdout.readline()
        assert f"POST http://127.0.0.1:{port}/invocations" in first, served.stderr.read()
        assert "Ctrl-C ends it" in served.stdout.readline()
        url = f"http://127.0.0.1:{port}/invocations"
        path = next((place.films / "val" / "NORMAL").iterdir())
        (wanted,) = place.json("predict", str(path))
        status, answer = post(url, records(text(path.read_bytes())))
        assert (status, answer["predictions"][0]["label"]) == (200, wanted["label"])
        assert answer["predictions"][0]["probability"] == pytest.approx(wanted["probability"], abs=1e-5)
        status, answer = post(url, records(str(path.relative_to(place.films)), column="path"))
        assert answer["predictions"][0]["probability"] == pytest.approx(wanted["probability"], abs=1e-5)
        for body, _, status, words in (MALFORMED[name] for name in ("not JSON", "a decompression bomb", "too large")):
            found, answer = post(url, body)
            assert (found, words in answer["message"]) == (status, True)
        taken = place.run("serve", "--port", str(port))
        assert (taken.returncode, taken.stderr.count("\n"), "--port" in taken.stderr) == (1, 1, True)
    finally:
        served.send_signal(signal.SIGINT)
        _, err = served.communicate(timeout=60)
    assert served.returncode == 130
    assert err.strip() == "interrupted; run the same command again to go on"


@pytest.mark.slow
def test_it_listens_on_addresses_of_ipv6_as_well(tuned) -> None:
    place, _, _ = tuned
    port = free_port()
    served = place.start("serve", "--port", str(port), "--host", "::")
    try:
        first = served.stdout.readline()
        assert first.endswith(f"POST http://[::]:{port}/invocations\n"), served.stderr.read()
        path = next((place.films / "val" / "NORMAL").iterdir())
        (wanted,) = place.json("predict", str(path))
        status, answer = post(f"http://[::1]:{port}/invocations", records(text(path.read_bytes())))
        assert (status, answer["predictions"][0]["label"]) == (200, wanted["label"])
        for host in ("::1", "[::1]", "::"):
            taken = place.run("serve", "--port", str(port), "--host", host)
            assert (taken.returncode, taken.stderr.count("\n")) == (1, 1)
            assert f"port {port} of {host.strip('[]')} cannot be had (Address already in use)" in taken.stderr
    finally:
        served.send_signal(signal.SIGINT)
        served.communicate(timeout=60)


@pytest.mark.parametrize("host", ["nobody.invalid", "fe80::", "a..b"])
def test_an_address_that_this_machine_has_not_is_one_line(tuned, host: str) -> None:
    place, _, _ = tuned
    done = place.run("serve", "--host", host)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert f"port 5001 of {host} cannot be had (" in done.stderr
    assert done.stderr.endswith("; choose another with --port or --host\n")
