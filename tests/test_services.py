"""The service as far as it needs no engine: its .env, what is refused, and what docker's errors become."""

import os
import stat
import subprocess
import sys

import pytest

from xray_opt.config import Workspace
from xray_opt.errors import ServiceError
from xray_opt.services.compose import Compose, compose_file, explained
from xray_opt.services.environment import ADDRESSES, SECRETS, ensure_environment, masked, read_environment
from xray_opt.services.starting import _state, require_free_ports


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    for name in list(os.environ):
        if name.startswith(("XRAY_OPT", "MLFLOW")):
            monkeypatch.delenv(name)
    return Workspace(tmp_path)


def test_the_first_start_makes_every_secret_for_its_owner_alone(workspace):
    values = ensure_environment(workspace, {})
    path = workspace.root / ".env"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_environment(workspace) == values
    assert len({values[name] for name in SECRETS}) == len(SECRETS)
    assert all(len(values[name]) >= 40 for name in SECRETS)
    assert values["MLFLOW_TRACKING_URI"] == "http://127.0.0.1:5000"
    assert values["XRAY_OPT_STORAGE"] == f"postgresql://optuna:{values['OPTUNA_DB_PASSWORD']}@127.0.0.1:15432/optuna"
    assert [path.name for path in workspace.root.iterdir()] == [".env"]


def test_a_second_start_changes_nothing_but_too_open_a_mode(workspace):
    ensure_environment(workspace, {})
    path = workspace.root / ".env"
    before = path.read_bytes()
    path.chmod(0o644)
    ensure_environment(workspace, {})
    assert path.read_bytes() == before
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_what_a_person_wrote_stays_and_the_addresses_follow(workspace):
    made = ensure_environment(workspace, {})
    path = workspace.root / ".env"
    lines = path.read_text().replace("XRAY_OPT_MLFLOW_PORT=5000", "XRAY_OPT_MLFLOW_PORT='5055' # ours")
    path.write_text("# mine\nHF_TOKEN=abc\n" + lines)
    values = ensure_environment(workspace, {})
    assert values["MLFLOW_TRACKING_URI"] == "http://127.0.0.1:5055"
    assert {name: values[name] for name in SECRETS} == {name: made[name] for name in SECRETS}
    text = path.read_text()
    assert text.startswith("# mine\nHF_TOKEN=abc\n")
    assert "XRAY_OPT_MLFLOW_PORT='5055' # ours\n" in text


def test_what_a_person_wrote_is_read_as_clients_and_compose_read_it(workspace, monkeypatch):
    monkeypatch.setenv("FOLDER", "/somewhere")
    path = workspace.root / ".env"
    written = [
        "POSTGRES_PASSWORD='pa$word'",
        "MLFLOW_TRACKING_PASSWORD=pa$$word",
        '  MLFLOW_DB_PASSWORD="a\\"b#c"',
        "XRAY_OPT_BACKUPS=${FOLDER}/backups # kept there",
    ]
    path.write_text("\n".join(written) + "\n")
    values = ensure_environment(workspace, {"AWS_SECRET_ACCESS_KEY": "it's $5 \\ #1"})
    assert values["POSTGRES_PASSWORD"] == values["MLFLOW_TRACKING_PASSWORD"] == "pa$word"
    assert values["MLFLOW_DB_PASSWORD"] == 'a"b#c'
    assert values["XRAY_OPT_BACKUPS"] == "/somewhere/backups"
    assert path.read_text().splitlines()[:4] == written
    assert read_environment(workspace) == values
    assert values["AWS_SECRET_ACCESS_KEY"] == "it's $5 \\ #1"


def test_ports_of_the_first_start_come_from_the_shell(workspace, monkeypatch):
    monkeypatch.setenv("XRAY_OPT_POSTGRES_PORT", "25432")
    assert ":25432/" in ensure_environment(workspace, {})["XRAY_OPT_STORAGE"]


def test_opening_from_the_shell_is_checked_as_well(workspace, monkeypatch):
    monkeypatch.setenv("XRAY_OPT_BIND", "0.0.0.0")
    with pytest.raises(ServiceError, match="XRAY_OPT_TLS_CERT"):
        ensure_environment(workspace, {})
    assert not (workspace.root / ".env").exists()


def test_a_password_with_signs_of_an_address_is_escaped(workspace):
    (workspace.root / ".env").write_text("POSTGRES_PASSWORD=x\nOPTUNA_DB_PASSWORD=p@ss/w:d\n")
    values = ensure_environment(workspace, {})
    assert "//optuna:p%40ss%2Fw%3Ad@127.0.0.1:" in values["XRAY_OPT_STORAGE"]
    assert values["OPTUNA_DB_PASSWORD"] == "p@ss/w:d"


@pytest.mark.parametrize("name", ADDRESSES)
def test_the_file_of_another_server_is_not_touched(workspace, name):
    path = workspace.root / ".env"
    path.write_text(f"{name}=https://mlflow.hospital.example\n")
    with pytest.raises(ServiceError, match="move it away"):
        ensure_environment(workspace, {})
    assert path.read_text() == f"{name}=https://mlflow.hospital.example\n"


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("XRAY_OPT_MLFLOW_PORT=no", "XRAY_OPT_MLFLOW_PORT must be a port"),
        ("XRAY_OPT_MLFLOW_PORT=70000", "XRAY_OPT_MLFLOW_PORT must be a port"),
        ("XRAY_OPT_MLFLOW_PORT=8080", "three different ports"),
        ("XRAY_OPT_BIND=0.0.0.0", "XRAY_OPT_TLS_CERT, XRAY_OPT_TLS_KEY, XRAY_OPT_HOST"),
        ("XRAY_OPT_BIND=192.168.1.5\nXRAY_OPT_HOST=a\nXRAY_OPT_TLS_CERT=/etc/hostname", "set XRAY_OPT_TLS_KEY"),
        ("XRAY_OPT_TLS_CERT=/etc/hostname", "XRAY_OPT_TLS_KEY is missing"),
        ("XRAY_OPT_TLS_CERT=a.pem\nXRAY_OPT_TLS_KEY=b.pem", "absolute path"),
        ("XRAY_OPT_TLS_CERT=/no/such\nXRAY_OPT_TLS_KEY=/no/such", "absolute path of a file"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_written(workspace, lines, said):
    path = workspace.root / ".env"
    path.write_text(f"POSTGRES_PASSWORD=x\n{lines}\n")
    with pytest.raises(ServiceError, match=said):
        ensure_environment(workspace, {})
    assert path.read_text() == f"POSTGRES_PASSWORD=x\n{lines}\n"


def test_with_a_certificate_the_addresses_are_those_of_its_name(workspace):
    lines = ["POSTGRES_PASSWORD=x", "XRAY_OPT_BIND=0.0.0.0", "XRAY_OPT_HOST=films.example.org"]
    (workspace.root / ".env").write_text(
        "\n".join([*lines, "XRAY_OPT_TLS_CERT=/etc/hosts", "XRAY_OPT_TLS_KEY=/etc/hosts"])
    )
    values = ensure_environment(workspace, {})
    assert values["MLFLOW_TRACKING_URI"] == "https://films.example.org:5000"
    assert values["XRAY_OPT_STORAGE"].endswith("@films.example.org:15432/optuna?sslmode=require")


def test_secrets_are_masked_as_they_stand_and_escaped(workspace):
    values = {"POSTGRES_PASSWORD": "p@ss/word", "MLFLOW_TRACKING_USERNAME": "admin"}
    assert masked("admin p@ss/word p%40ss%2Fword", values) == "admin *** ***"


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("permission denied while trying to connect to the Docker daemon socket at unix:///x", "group docker"),
        ("Cannot connect to the Docker daemon at unix:///x. Is the docker daemon running?", "no Docker engine"),
        ("docker: 'compose' is not a docker command.\nSee 'docker --help'", "install the compose plugin"),
        ("docker: unknown command: docker compose", "install the compose plugin"),
        ("Error: bind: address already in use", "a port of the service is taken"),
        ("one\ntwo\nthe reason", "the reason"),
        ("", "printed nothing"),
    ],
)
def test_what_docker_prints_becomes_one_line(output, said):
    line = explained(output, "up")
    assert said in line
    assert "\n" not in line


ENGINE = 'if [ "$1" = compose ]; then echo 2.30.1; else echo "{}" >&2; exit 1; fi'


def fake_docker(folder, body):
    folder.mkdir(exist_ok=True)
    script = folder / "docker"
    script.write_text(f"#!/bin/sh\n{body}\n")
    script.chmod(0o755)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (None, "no docker command"),
        ("echo \"docker: 'compose' is not a docker command.\" >&2; exit 1", "install the compose plugin"),
        ("echo 2.5.0", "needs 2.20 or newer"),
        (ENGINE.format("Cannot connect to the Docker daemon"), "no Docker engine"),
        (ENGINE.format("permission denied on the socket"), "group docker"),
    ],
)
@pytest.mark.parametrize("command", ["up", "down", "status", "backup"])
def test_without_a_usable_docker_every_command_says_what_to_do_and_leaves_nothing(
    workspace, tmp_path, body, said, command
):
    if body is not None:
        fake_docker(tmp_path / "bin", body)
    env = {
        "PATH": f"{tmp_path / 'bin'}:/no-such",
        "XRAY_OPT_HOME": str(tmp_path / "own"),
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
    }
    done = subprocess.run(
        [sys.executable, "-m", "xray_opt", command], env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 8, done.stderr
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "own").exists()


GONE = """
tries=$(cat {0} 2>/dev/null || echo 0); echo $((tries + 1)) >{0}
if [ $tries -lt {1} ]; then echo "Error response from daemon: No such container: 1f" >&2; exit 1; fi
echo '{{"Service": "mlflow"}}'
"""


@pytest.mark.parametrize(("times", "listed"), [(0, True), (2, True), (99, False)])
def test_containers_are_listed_again_where_one_vanished_while_they_were_looked_at(
    workspace, tmp_path, monkeypatch, times, listed
):
    fake_docker(tmp_path / "bin", GONE.format(tmp_path / "tries", times))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    compose = Compose(workspace, compose_file(), {})
    if listed:
        assert compose.containers() == [{"Service": "mlflow"}]
    else:
        with pytest.raises(ServiceError, match="No such container"):
            compose.containers()


def test_workers_get_the_gpus_by_the_second_file_alone(workspace):
    without, with_gpus = (Compose(workspace, compose_file(), {}, gpu=gpu).command("up") for gpu in (False, True))
    second = str(compose_file().with_name("docker-compose.gpu.yml"))
    assert [part for part in with_gpus if part not in without] == [second]


def test_the_compose_file_is_that_of_the_checkout():
    assert compose_file().name == "docker-compose.yml"


def test_settings_of_the_file_win_over_the_shell(workspace, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "of another server")
    compose = Compose(workspace, compose_file(), {"MLFLOW_TRACKING_PASSWORD": "ours"})
    assert compose.environment()["MLFLOW_TRACKING_PASSWORD"] == "ours"
    assert "ours" not in repr(compose)


def test_a_taken_port_is_refused_unless_it_is_the_service_itself(workspace, monkeypatch):
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setenv("XRAY_OPT_MLFLOW_PORT", str(port))
        compose = Compose(workspace, compose_file(), ensure_environment(workspace, {}))
        monkeypatch.setattr(Compose, "containers", lambda self: [])
        with pytest.raises(ServiceError, match=f"port {port} is taken.*XRAY_OPT_MLFLOW_PORT"):
            require_free_ports(compose)
        monkeypatch.setattr(Compose, "containers", lambda self: [{"Publishers": [{"PublishedPort": port}]}])
        require_free_ports(compose)


@pytest.mark.parametrize(
    ("container", "state"),
    [
        ({"Service": "mlflow", "State": "running", "Health": "healthy"}, "healthy"),
        ({"Service": "mlflow", "State": "running", "Health": "starting"}, "starting"),
        ({"Service": "mlflow", "State": "restarting", "Health": ""}, "restarting"),
        ({"Service": "mlflow", "State": "exited", "ExitCode": 0}, "exited"),
        ({"Service": "migrate", "State": "exited", "ExitCode": 0}, "done"),
        ({"Service": "worker", "State": "exited", "ExitCode": 0}, "done"),
        ({"Service": "worker", "State": "exited", "ExitCode": 6}, "exited"),
        ({"Service": "backup", "State": "running", "Health": "starting"}, "done"),
        ({"Service": "backup", "State": "running", "Health": "unhealthy"}, "unhealthy"),
    ],
)
def test_only_what_is_meant_to_end_may_have_ended(container, state):
    assert _state(container) == state


def test_a_restore_refuses_what_is_no_name_of_a_backup(workspace):
    from xray_opt.services import restore

    with pytest.raises(ServiceError, match="xray-opt status lists them"):
        restore(workspace, "../x", print)
