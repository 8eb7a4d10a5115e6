"""Room mlflow_client: which store is opened, and what is said when it cannot be."""

from __future__ import annotations

import http.server
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from front import Faulty, silent
from mlflow import MlflowClient
from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_MAX_RETRIES, MLFLOW_HTTP_REQUEST_TIMEOUT
from mlflow.exceptions import MlflowException
from mlflow_stores import CONNECT, ROOT, embedded, free_port, template, tracking_server

from xray_opt.config import TrackingConfig, Workspace, load_environment
from xray_opt.errors import AccessRefused, StoreAway, TrackingError
from xray_opt.mlflow_client import QUICK, connect, pages, quickly, speaking, without_credentials


@pytest.fixture(autouse=True)
def _no_uri_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def refusal(uri: str, folder: Path) -> str:
    with pytest.raises(TrackingError) as caught:
        connect(TrackingConfig(uri=uri), Workspace(folder))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_embedded_store_lies_in_the_workspace(tmp_path: Path) -> None:
    connection = embedded(tmp_path)
    mlruns = tmp_path.resolve() / "workspace" / "mlruns"
    assert connection.local
    assert connection.uri == f"sqlite:///{mlruns}/mlflow.db" == connection.workspace.mlflow_uri
    assert connection.artifact_root == mlruns / "artifacts"
    assert connection.artifact_root.is_dir()
    assert connection.client.search_runs(["0"]) == []


def test_importing_and_connecting_prints_nothing_and_leaves_nothing_beside_mlruns() -> None:
    fresh = template()
    assert fresh.printed == ""
    assert {path.name for path in fresh.folder.iterdir()} == {"mlruns"}


def test_pages_are_followed_to_the_last(tmp_path: Path) -> None:
    client = embedded(tmp_path).client
    experiment = client.create_experiment("many")
    made = {client.create_run(experiment).info.run_id for _ in range(5)}
    found = list(pages(lambda token: client.search_runs([experiment], max_results=2, page_token=token)))
    assert len(found) == 5
    assert {run.info.run_id for run in found} == made


def test_the_setting_goes_before_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = embedded(tmp_path).uri
    workspace = Workspace(tmp_path / "elsewhere")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", own)
    assert connect(TrackingConfig(), workspace).uri == own
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    named = connect(TrackingConfig(uri=own), workspace)
    assert (named.uri, named.local, named.artifact_root) == (own, True, None)


def test_usage_reports_to_mlflows_makers_are_off() -> None:
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://ann:secret@host:5000/x", "http://host:5000/x"),
        ("http://ann:a@b@host:5000", "http://host:5000"),
        ("sqlite:////a/b.db", "sqlite:////a/b.db"),
        ("http://host:5000", "http://host:5000"),
        ("request to https://ann:secret@host/api failed", "request to https://host/api failed"),
        ("null", "null"),
    ],
)
def test_passwords_are_never_shown(text: str, shown: str) -> None:
    assert without_credentials(text) == shown


def test_a_connection_does_not_show_its_password(tmp_path: Path) -> None:
    from dataclasses import replace

    connection = replace(embedded(tmp_path), uri="http://ann:secret@host:5000")
    assert connection.shown == "http://host:5000"
    assert "secret" not in repr(connection)


def test_an_unreachable_server_is_named_without_password(tmp_path: Path) -> None:
    port = free_port()
    line = refusal(f"http://ann:secret@127.0.0.1:{port}", tmp_path)
    assert f"http://127.0.0.1:{port}" in line
    assert "secret" not in line
    assert "MLFLOW_TRACKING_URI" in line


@pytest.mark.slow
def test_a_server_that_never_answers_is_given_up_within_20_seconds(tmp_path: Path) -> None:
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        began = time.monotonic()
        refusal(f"http://127.0.0.1:{mute.getsockname()[1]}", tmp_path)
        assert time.monotonic() - began < 20


@contextmanager
def answering(status: int) -> Iterator[tuple[str, list[str]]]:
    """A server that answers everything with ``status``; its URI and the logins it was shown."""
    logins: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            logins.append(self.headers.get("Authorization", ""))
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", logins
        server.shutdown()


@pytest.mark.parametrize("status", [401, 403])
def test_a_server_that_wants_a_login_says_which_variables_to_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "abc")
    with answering(status) as (uri, logins):
        line = refusal(uri, tmp_path)
    assert str(status) in line
    assert "MLFLOW_TRACKING_PASSWORD" in line
    assert logins == ["Bearer abc"]


def test_the_login_of_an_env_file_is_shown_to_its_own_server_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_TOKEN", raising=False)
    with answering(401) as (ours, logins), answering(401) as (other, foreign):
        (tmp_path / ".env").write_text(f"MLFLOW_TRACKING_URI={ours}\nMLFLOW_TRACKING_TOKEN=s3cret\n")
        (tmp_path / ".env").chmod(0o600)
        load_environment(Workspace(tmp_path))
        lines = [refusal(uri, tmp_path) for uri in (other, ours, other)]
        load_environment(Workspace(tmp_path / "nowhere"))
    assert (logins, foreign) == (["Bearer s3cret"], ["", ""])
    assert all("in .env they are for the MLFLOW_TRACKING_URI there" in line for line in lines)


@pytest.mark.parametrize("status", [404, 500, 503])
def test_something_else_at_the_uri_is_no_mlflow(tmp_path: Path, status: int) -> None:
    with answering(status) as (uri, _):
        assert str(status) in refusal(uri, tmp_path)


def test_a_database_that_is_none_is_one_line(tmp_path: Path) -> None:
    broken = Workspace(tmp_path)
    broken.mlruns.mkdir()
    (broken.mlruns / "mlflow.db").write_bytes(b"this is not a database" * 100)
    with pytest.raises(TrackingError, match="cannot open the embedded store") as caught:
        connect(TrackingConfig(), broken)
    assert "\n" not in str(caught.value)


def test_a_workspace_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "mlruns").write_text("in the way")
    with pytest.raises(TrackingError, match="is the folder writable"):
        connect(TrackingConfig(), Workspace(tmp_path))


def test_what_mlflow_raises_becomes_one_line_with_action_and_store() -> None:
    with pytest.raises(TrackingError) as caught, speaking("http://ann:pw@host", "log metrics"):
        raise MlflowException("API request to http://ann:pw@host/api failed\nwith 500")
    expected = "MLflow at http://host: cannot log metrics: API request to http://host/api failed with 500"
    assert str(caught.value) == expected


def test_haste_is_of_one_thread_and_a_users_own_variables_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT", raising=False)
    usual = MLFLOW_HTTP_REQUEST_TIMEOUT.get(), MLFLOW_HTTP_REQUEST_MAX_RETRIES.get()
    elsewhere = []
    with quickly(5_000_000):
        assert (MLFLOW_HTTP_REQUEST_TIMEOUT.get(), MLFLOW_HTTP_REQUEST_MAX_RETRIES.get()) == (QUICK + 5, 0)
        thread = threading.Thread(target=lambda: elsewhere.append(MLFLOW_HTTP_REQUEST_TIMEOUT.get()))
        thread.start()
        thread.join()
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "3")
        assert MLFLOW_HTTP_REQUEST_TIMEOUT.get() == 3
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT")
    assert elsewhere == [usual[0]]
    assert (MLFLOW_HTTP_REQUEST_TIMEOUT.get(), MLFLOW_HTTP_REQUEST_MAX_RETRIES.get()) == usual


@pytest.mark.parametrize(
    ("status", "kind"),
    [(500, StoreAway), (503, StoreAway), (429, StoreAway), (401, AccessRefused), (404, TrackingError)],
)
def test_an_answer_tells_whether_to_come_again(tmp_path: Path, status: int, kind: type[TrackingError]) -> None:
    with answering(status) as (uri, _):
        with pytest.raises(TrackingError) as caught:
            connect(TrackingConfig(uri=uri), Workspace(tmp_path))
        assert type(caught.value) is kind
        if kind is StoreAway:
            assert str(status) in connect(TrackingConfig(uri=uri), Workspace(tmp_path), excused=(StoreAway,)).away


def away(kind: str, stack: ExitStack) -> str:
    """URI of a server, with a login, that is away in one way."""
    port: object = free_port()
    if kind == "silent":
        port = stack.enter_context(silent())
    elif kind != "closed":
        front = stack.enter_context(Faulty("http://127.0.0.1:9"))
        front.mood, port = kind if kind == "down" else int(kind), urlsplit(front.uri).port
    return f"http://ann:secret@127.0.0.1:{port}"


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("closed", "does not answer (connection refused)"),
        ("silent", "does not answer (no answer in time)"),
        ("down", "does not answer (it hangs up)"),
        ("503", "answers 503"),
        ("429", "answers 429"),
    ],
)
def test_a_server_that_goes_away_is_one_short_line(kind: str, told: str) -> None:
    with ExitStack() as stack:
        uri = away(kind, stack)
        with pytest.raises(StoreAway) as caught, quickly(patience=1), speaking(uri, "open the experiment x"):
            MlflowClient(uri, uri).get_experiment_by_name("x")
    shown = uri.replace("ann:secret@", "")
    assert str(caught.value) == f"MLflow at {shown} {told}: cannot open the experiment x; see that it runs there"


def test_other_errors_pass() -> None:
    with pytest.raises(ZeroDivisionError), speaking("sqlite:///x", "divide"):
        _ = 1 / 0


@pytest.mark.slow
def test_two_processes_may_create_the_store_at_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", CONNECT, str(tmp_path)]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    both = [subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate(timeout=300)[1] for process in both] == ["", ""]
    assert [process.returncode for process in both] == [0, 0]


@pytest.mark.slow
def test_a_server_counts_as_remote_even_on_this_machine(tmp_path: Path) -> None:
    with tracking_server(tmp_path) as uri:
        connection = connect(TrackingConfig(uri=uri), Workspace(tmp_path))
        assert (connection.local, connection.artifact_root) == (False, None)
        assert connection.client.search_experiments()
