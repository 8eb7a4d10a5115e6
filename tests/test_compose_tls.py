"""Opened to the network: only with a certificate, only over TLS, by the name of the certificate."""

import shutil
import socket
import ssl
import subprocess

import pytest
from service_stack import Answer

pytestmark = pytest.mark.compose
NAME = "films.example.org"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A self-signed one of that name; openssl makes it."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here to make a certificate with")
    folder = tmp_path_factory.mktemp("tls")
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
    ]
    command += ["-subj", f"/CN={NAME}", "-addext", f"subjectAltName=DNS:{NAME},IP:127.0.0.1"]
    paths = folder / "cert.pem", folder / "key.pem"
    subprocess.run([*command, "-out", paths[0], "-keyout", paths[1]], check=True, capture_output=True)
    paths[1].chmod(0o644)  # its folder is closed
    return paths


@pytest.fixture
def settings(stack):
    """Adds lines to .env for one test; the service is as before afterwards."""
    before = stack.file.read_bytes()

    def add(**lines: object) -> None:
        text = before.decode() + "".join(f"{name}={value}\n" for name, value in lines.items())
        stack.file.write_text(text)

    yield add
    stack.file.write_bytes(before)
    stack.file.chmod(0o600)


@pytest.fixture(scope="module")
def opened(stack, certificate):
    """The service with that certificate, open to the network."""
    before = stack.file.read_bytes()
    lines = {"XRAY_OPT_BIND": "0.0.0.0", "XRAY_OPT_HOST": NAME}
    lines |= {"XRAY_OPT_TLS_CERT": certificate[0], "XRAY_OPT_TLS_KEY": certificate[1]}
    stack.file.write_text(before.decode() + "".join(f"{name}={value}\n" for name, value in lines.items()))
    stack.run("up")
    yield stack
    stack.file.write_bytes(before)
    stack.file.chmod(0o600)
    stack.run("up")


def trusting(certificate) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(certificate[0]))


def test_up_refuses_to_open_without_a_certificate(stack, settings):
    settings(XRAY_OPT_BIND="0.0.0.0")
    assert "XRAY_OPT_TLS_CERT" in stack.run("up", code=8).stderr
    assert stack.ask("MLFLOW", "/health").status == 200


def test_docker_compose_alone_refuses_it_as_well(stack):
    empty = {"XRAY_OPT_TLS_CERT": "/dev/null", "XRAY_OPT_TLS_KEY": "/dev/null"}
    for service in ("gateway", "postgres"):
        done = stack.compose("run", "--rm", "--no-deps", "-T", service, code=None, XRAY_OPT_BIND="0.0.0.0", **empty)
        assert done.returncode == 78
        assert "opens this service to the network: that needs TLS" in done.stderr


def test_what_is_no_certificate_is_refused_with_a_line(stack):
    hosts = {"XRAY_OPT_TLS_CERT": "/etc/hosts", "XRAY_OPT_TLS_KEY": "/etc/hosts"}
    done = stack.compose("run", "--rm", "--no-deps", "-T", "gateway", code=None, XRAY_OPT_BIND="0.0.0.0", **hosts)
    assert done.returncode == 78
    assert "most likely the certificate" in done.stderr


def test_a_key_that_its_container_may_not_read_is_refused_with_a_line(stack, certificate, tmp_path):
    closed = tmp_path / "key.pem"
    closed.write_bytes(certificate[1].read_bytes())
    closed.chmod(0o600)
    given = {"XRAY_OPT_TLS_CERT": str(certificate[0]), "XRAY_OPT_TLS_KEY": str(closed)}
    for service in ("gateway", "postgres"):
        done = stack.compose("run", "--rm", "--no-deps", "-T", service, code=None, XRAY_OPT_BIND="0.0.0.0", **given)
        assert done.returncode == 78
        assert "mode 0644" in done.stderr


def ask(stack, certificate, name, path, headers=None, host=NAME) -> Answer:
    shown = {"Host": f"{host}:{stack.port(name)}"} | (headers or {})
    return stack.ask(name, path, headers=shown, tls=trusting(certificate))


def test_with_a_certificate_both_answer_over_tls_by_their_name_alone(opened, certificate):
    for name, path in (("MLFLOW", "/api/2.0/mlflow/users/current"), ("DASHBOARD", "/api/studies")):
        assert ask(opened, certificate, name, path).status == 401
        assert ask(opened, certificate, name, path, opened.login()).status == 200
        assert ask(opened, certificate, name, path, opened.login(), host="evil.example").status == 403
        assert opened.ask(name, path, headers=opened.login()).status == 400  # plain HTTP on a TLS port
        own = {"Origin": f"https://{NAME}:{opened.port(name)}"}
        assert ask(opened, certificate, name, path, opened.login() | own).status == 200
        assert ask(opened, certificate, name, path, opened.login() | {"Origin": f"http://{NAME}"}).status == 403
        with pytest.raises(ssl.SSLCertVerificationError):
            opened.ask(name, path, tls=ssl.create_default_context())
    body = {"max_results": 1}
    login = opened.login() | {
        "Host": f"{NAME}:{opened.port('MLFLOW')}",
        "Origin": f"https://{NAME}:{opened.port('MLFLOW')}",
    }
    posted = opened.ask("MLFLOW", "/api/2.0/mlflow/experiments/search", "POST", login, body, trusting(certificate))
    assert posted.status == 200


def test_addresses_in_the_file_follow(opened):
    held = opened.values()
    assert held["MLFLOW_TRACKING_URI"] == f"https://{NAME}:{opened.port('MLFLOW')}"
    assert f"@{NAME}:" in held["XRAY_OPT_STORAGE"]
    assert held["XRAY_OPT_STORAGE"].endswith("?sslmode=require")


def test_the_database_takes_no_connection_without_tls(opened):
    import psycopg

    own = [a for a in subprocess.run(["hostname", "-I"], capture_output=True, text=True).stdout.split() if "." in a]
    ours = {"host": own[0], "port": opened.port("POSTGRES"), "user": "optuna", "dbname": "optuna"}
    ours |= {"password": opened.values()["OPTUNA_DB_PASSWORD"], "connect_timeout": 30}
    with psycopg.connect(**ours, sslmode="require") as database:
        assert database.execute("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()").fetchone() == (True,)
    with pytest.raises(psycopg.OperationalError, match=r"no encryption|pg_hba"):
        psycopg.connect(**ours, sslmode="disable")


def test_old_versions_of_tls_are_refused(opened):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with (
        pytest.raises((ssl.SSLError, OSError)),
        socket.create_connection(("127.0.0.1", opened.port("MLFLOW")), 30) as plain,
    ):
        context.wrap_socket(plain)


def test_a_worker_container_gets_to_the_service_by_its_name(opened, certificate):
    work = {"XRAY_OPT_TLS_CA": str(certificate[0]), "XRAY_OPT_FILMS": str(opened.place.films)}
    film = next(iter(sorted(opened.place.films.glob("test/*/*.jpeg")))).relative_to(opened.place.films)
    asked = ("run", "--rm", "--no-deps", "-T", "worker")
    told = opened.compose(*asked, "compare", "no-such-study", profiles=("worker",), code=6, **work)
    assert "no study" in told.stderr
    model = ("predict", f"/films/{film}", "--model", "models:/no-such-model@champion")
    told = opened.compose(*asked, *model, profiles=("worker",), code=7, **work)
    assert "no-such-model" in told.stderr
    assert "SSL" not in told.stderr
