"""Who gets in: every address that the servers themselves list, names, origins, paths out of the store, containers."""

import json
import secrets
import socket
import subprocess

import pytest
from service_stack import Stack

pytestmark = pytest.mark.compose

#: Open without a login, and nothing else.
OPEN = {
    ("MLFLOW", "GET", "/health"),
    ("MLFLOW", "GET", "/api/3.0/mlflow/server-info"),
    ("MLFLOW", "GET", "/ajax-api/3.0/mlflow/server-info"),
}
LIST_MLFLOW = """
import json, os, re
os.environ["_MLFLOW_SGI_NAME"] = "uvicorn"
from mlflow.server import app as flask
from mlflow.server.auth import create_app

def flat(routes, prefix=""):
    for route in routes:
        inner = getattr(route, "routes", None) or getattr(getattr(route, "app", None), "routes", None)
        if getattr(route, "methods", None):
            yield from ((method, prefix + route.path) for method in route.methods)
        elif inner:
            yield from flat(inner, prefix + getattr(route, "path", "").rstrip("/"))

found = set(flat(create_app().routes))
found |= {(method, rule.rule) for rule in flask.url_map.iter_rules() for method in rule.methods}
print(json.dumps(sorted((method, re.sub(r"<[^>]*>|{[^}]*}", "1", path) or "/") for method, path in found)))
"""
LIST_DASHBOARD = """
import json, re
from optuna.storages import InMemoryStorage
from optuna_dashboard._app import create_app
routes = create_app(InMemoryStorage()).routes
print(json.dumps(sorted((route.method, re.sub(r"<[^>]*>", "1", route.rule)) for route in routes)))
"""


def listed(stack: Stack, service: str, program: str) -> list[tuple[str, str]]:
    done = stack.compose("exec", "-T", service, "python3", "-c", program)
    return [(method, path) for method, path in json.loads(done.stdout.splitlines()[-1])]


@pytest.fixture(scope="module")
def addresses(stack) -> list[tuple[str, str, str]]:
    found = [("MLFLOW", *pair) for pair in listed(stack, "mlflow", LIST_MLFLOW)]
    found += [("DASHBOARD", *pair) for pair in listed(stack, "optuna-dashboard", LIST_DASHBOARD)]
    assert len(found) > 300
    assert ("MLFLOW", "POST", "/api/2.0/mlflow/runs/create") in found
    assert ("MLFLOW", "PUT", "/api/2.0/mlflow-artifacts/artifacts/1") in found
    assert ("DASHBOARD", "DELETE", "/api/studies/1") in found
    more = ["/", "/no-such", "//", "/metrics", "/graphql", "/static", "/healthy", "/health/", "/index.html"]
    return found + [
        (name, method, path) for name in ("MLFLOW", "DASHBOARD") for path in more for method in ("GET", "POST")
    ]


def is_open(name: str, method: str, path: str) -> bool:
    return (name, "GET" if method in ("HEAD", "OPTIONS") else method, path) in OPEN or (
        name == "MLFLOW" and path.startswith("/static-files/")
    )


def let_in(stack, addresses, headers) -> list[tuple[object, ...]]:
    """What answered anything but 401 or 403 though it is not open."""
    asked = [(a, stack.ask(*_request(a), headers=headers).status) for a in addresses if not is_open(*a)]
    assert len(asked) > 300
    return [(*address, status) for address, status in asked if status not in (401, 403)]


def _request(address):
    name, method, path = address
    return name, path, method


def test_without_a_login_nothing_answers(stack, addresses):
    assert let_in(stack, addresses, {}) == []


def test_with_a_wrong_password_nothing_answers(stack, addresses):
    # Every address by one method that is its own: checking a password takes the server a quarter of a second.
    once = {(name, path): (name, method, path) for name, method, path in addresses if method not in ("HEAD", "OPTIONS")}
    assert let_in(stack, list(once.values()), stack.login(password="not-the-password")) == []


@pytest.mark.parametrize(
    "value",
    ["Bearer abc", "Basic", "Basic !!!", "Basic YWRtaW4=", "Basic OmFk", "Digest username=admin", "Negotiate x"],
)
def test_what_is_no_login_is_none(stack, value):
    for name, path in (("MLFLOW", "/api/2.0/mlflow/users/current"), ("DASHBOARD", "/api/studies"), ("MLFLOW", "/")):
        assert stack.ask(name, path, headers={"Authorization": value}).status in (401, 403), (name, path)


def test_the_login_check_itself_cannot_be_asked(stack):
    for name in ("MLFLOW", "DASHBOARD"):
        assert stack.ask(name, "/.login", headers=stack.login()).status == 404


def test_what_is_open_tells_no_secret_and_the_login_opens_the_rest(stack):
    for name, _, path in OPEN:
        answer = stack.ask(name, path)
        assert answer.status == 200
        assert not any(value in answer.body for key, value in stack.values().items() if "PASSWORD" in key)
    assert stack.ask("MLFLOW", "/", headers=stack.login()).status == 200
    assert stack.ask("MLFLOW", "/version", headers=stack.login()).body.startswith("3.")
    assert stack.ask("DASHBOARD", "/dashboard/", headers=stack.login()).status == 200
    assert json.loads(stack.ask("DASHBOARD", "/api/meta", headers=stack.login()).body)["allow_unsafe"] is False
    answer = stack.ask("DASHBOARD", "/dashboard/")
    assert (answer.status, answer.headers["www-authenticate"]) == (401, 'Basic realm="mlflow"')


@pytest.mark.parametrize("name", ["MLFLOW", "DASHBOARD"])
@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:5000", "localhost.evil.example", "127.0.0.1.evil.example", "10.0.0.1", "x"]
)
def test_a_foreign_name_is_refused_even_with_the_login(stack, name, host):
    path = {"MLFLOW": "/api/2.0/mlflow/users/current", "DASHBOARD": "/api/studies"}[name]
    assert stack.ask(name, path, headers=stack.login() | {"Host": host}).status == 403


@pytest.mark.parametrize("name", ["MLFLOW", "DASHBOARD"])
def test_a_foreign_origin_is_refused_even_with_the_login(stack, name):
    port = stack.port(name)
    path = {"MLFLOW": "/api/2.0/mlflow/experiments/search", "DASHBOARD": "/api/studies"}[name]
    body = {
        "MLFLOW": {"max_results": 1},
        "DASHBOARD": {"study_name": secrets.token_hex(8), "directions": ["maximize"]},
    }[name]
    foreign = ["https://evil.example", "null", "http://localhost:1", f"https://127.0.0.1:{port}", "http://127.0.0.1"]
    for origin in (*foreign, f"http://127.0.0.1:{port}.evil.example", f"http://evil.example/127.0.0.1:{port}"):
        for method in ("GET", "POST", "DELETE", "OPTIONS"):
            answer = stack.ask(
                name, path, method, stack.login() | {"Origin": origin}, body if method == "POST" else None
            )
            assert answer.status == 403, (origin, method)
            assert "access-control-allow-origin" not in answer.headers
    own = stack.login() | {"Origin": f"http://127.0.0.1:{port}"}
    assert stack.ask(name, path, "POST", own, body).status in (200, 201)


OUT = ["../", "..%2f", "%2e%2e/", "%2e%2e%2f", "%252e%252e%252f", "..\\", "..%5c", "..%255c", "a/../../", ".%2e/"]


@pytest.mark.parametrize("step", OUT)
def test_no_path_leads_out_of_the_store(stack, step):
    way = step * 6
    login = stack.login()
    paths = [
        f"/api/2.0/mlflow-artifacts/artifacts/{way}etc/passwd",
        f"/ajax-api/2.0/mlflow-artifacts/artifacts/{way}etc/passwd",
        f"/api/2.0/mlflow-artifacts/artifacts?path={way}etc",
        f"/get-artifact?path={way}etc/passwd&run_uuid=0",
        f"/model-versions/get-artifact?path={way}etc/passwd&name=a&version=1",
        f"/static-files/{way}etc/passwd",
        f"/static-files/{way}api/2.0/mlflow/users/list",
    ]
    for path in paths:
        answer = stack.ask("MLFLOW", path, headers=login)
        assert 300 <= answer.status < 500, (path, answer.status)
        assert "root:" not in answer.body
        assert stack.ask("MLFLOW", path).status in (400, 401, 403, 404), path
    for method in ("PUT", "DELETE"):
        answer = stack.ask("MLFLOW", f"/api/2.0/mlflow-artifacts/artifacts/{way}tmp/planted", method, login, {"a": 1})
        assert 300 <= answer.status < 500, (method, answer.status)
    assert stack.compose("exec", "-T", "mlflow", "find", "/tmp", "/artifacts", "-name", "planted").stdout == ""


@pytest.mark.parametrize("start", ["/etc/passwd", "//etc/passwd", "%2fetc%2fpasswd", "file:///etc/passwd"])
def test_an_absolute_path_is_none_of_the_store(stack, start):
    for path in (f"/api/2.0/mlflow-artifacts/artifacts/{start}", f"/api/2.0/mlflow-artifacts/artifacts?path={start}"):
        answer = stack.ask("MLFLOW", path, headers=stack.login())
        assert answer.status != 200 or "root:" not in answer.body
        assert "root:x" not in answer.body


@pytest.mark.parametrize("key", ["artifact_location", "artifactLocation"])
@pytest.mark.parametrize(
    "place", ["/etc", "file:///proc/self", "FILE:///etc", "s3://other/bucket", "./x", "ftp://h/x", "http://h/x"]
)
def test_nobody_chooses_where_artifacts_lie(stack, key, place):
    body = {"name": f"out of {place} {key}", key: place}
    for prefix in ("/api", "/ajax-api"):
        answer = stack.ask("MLFLOW", f"{prefix}/2.0/mlflow/experiments/create", "POST", stack.login(), body)
        assert answer.status in (400, 403), answer.body
    quoted = stack.ask("MLFLOW", "/api/2.0/mlflow/experiments/create", "POST", stack.login(), json.dumps(body))
    assert quoted.status in (400, 403)
    assert stack.sql("mlflow", "SELECT 1 FROM experiments WHERE artifact_location !~ '^mlflow-artifacts:/'") == []


def test_a_model_version_is_no_way_to_a_file(stack):
    login = stack.login()
    stack.ask("MLFLOW", "/api/2.0/mlflow/registered-models/create", "POST", login, {"name": "out"})
    for source in ("/etc", "file:///etc", "mlflow-artifacts:/../../etc", "../etc", "s3://another/bucket"):
        body = {"name": "out", "source": source}
        assert stack.ask("MLFLOW", "/api/2.0/mlflow/model-versions/create", "POST", login, body).status == 400


def test_an_ordinary_user_is_one_and_is_gone_when_deleted(stack):
    admin = stack.login()
    create = {"username": "reader", "password": "a-password-of-some-length"}
    assert stack.ask("MLFLOW", "/api/2.0/mlflow/users/create", "POST", admin, create).status == 200
    reader = stack.login("reader", create["password"])
    assert stack.ask("DASHBOARD", "/api/studies", headers=reader).status == 200
    again = {"username": "another", "password": "a-password-of-some-length"}
    assert stack.ask("MLFLOW", "/api/2.0/mlflow/users/create", "POST", reader, again).status == 403
    assert stack.ask("MLFLOW", "/api/2.0/mlflow/users/delete", "DELETE", admin, {"username": "reader"}).status == 200
    for name, path in (("DASHBOARD", "/api/studies"), ("MLFLOW", "/api/2.0/mlflow/users/current")):
        assert stack.ask(name, path, headers=reader).status == 401


def test_containers_are_nobodys_and_cannot_write_their_roots(stack):
    found = stack.containers()
    assert len(found) >= 5
    for container in found:
        name, host = container["Name"], container["HostConfig"]
        assert container["Config"]["User"] not in ("", "0", "root", "0:0"), name
        assert host["ReadonlyRootfs"] is True, name
        assert host["CapDrop"] == ["ALL"], name
        assert not host["CapAdd"], name
        assert "no-new-privileges:true" in host["SecurityOpt"], name
        assert host["Memory"] > 0, name
    for service in ("postgres", "mlflow", "optuna-dashboard", "gateway"):
        assert stack.compose("exec", "-T", service, "id", "-u").stdout.strip() not in ("0", ""), service
        status = stack.compose("exec", "-T", service, "cat", "/proc/1/status").stdout
        assert "CapEff:\t0000000000000000" in status, service
        assert stack.compose("exec", "-T", service, "touch", "/usr/planted", code=None).returncode != 0


def test_nothing_listens_beyond_this_machine(stack):
    bindings = [
        binding
        for container in stack.containers()
        for held in (container["HostConfig"]["PortBindings"] or {}).values()
        for binding in held
    ]
    assert len(bindings) == 3
    assert {binding["HostIp"] for binding in bindings} == {"127.0.0.1"}
    outside = subprocess.run(["hostname", "-I"], capture_output=True, text=True).stdout.split()
    own = [address for address in outside if "." in address and not address.startswith("172.")]
    for address in own:
        for name in ("MLFLOW", "DASHBOARD", "POSTGRES"):
            with pytest.raises(OSError, match=r"refused|unreachable|timed out"):
                socket.create_connection((address, stack.port(name)), 5)


def test_the_databases_ask_for_a_password_and_keep_to_themselves(stack):
    import psycopg

    port, held = stack.port("POSTGRES"), stack.values()
    ours = {"host": "127.0.0.1", "port": port, "connect_timeout": 30}
    with psycopg.connect(**ours, user="optuna", password=held["OPTUNA_DB_PASSWORD"], dbname="optuna") as database:
        assert database.execute("SELECT 1").fetchone() == (1,)
    for user, password, name in (
        ("optuna", "wrong", "optuna"),
        ("optuna", "", "optuna"),
        ("postgres", "postgres", "postgres"),
        ("optuna", held["OPTUNA_DB_PASSWORD"], "mlflow"),
        ("optuna", held["OPTUNA_DB_PASSWORD"], "postgres"),
        ("optuna", held["OPTUNA_DB_PASSWORD"], "template1"),
        ("mlflow", held["MLFLOW_DB_PASSWORD"], "optuna"),
    ):
        with pytest.raises(psycopg.OperationalError, match=r"password|permission denied"):
            psycopg.connect(**ours, user=user, password=password, dbname=name)


def test_no_secret_stands_in_a_log_or_on_a_command_line(stack):
    logs = stack.compose("logs", "--no-color").stdout
    shown = stack.compose("top").stdout
    assert "mlflow server" in shown
    for name, value in stack.values().items():
        if "PASSWORD" in name or "SECRET" in name:
            assert value not in logs, name
            assert value not in shown, name
