"""The workspace's .env: read as compose reads it, what is set wins, and no secret is ever shown."""

import itertools
import os
import subprocess
import sys

import pytest

from xray_opt.config import Workspace, load_environment, login_for, redacted
from xray_opt.config.environment_file import read_environment
from xray_opt.errors import ConfigError

ENV = {
    "XRAY_OPT_STORAGE": "postgresql+psycopg://me:s3cret-storage@127.0.0.1/db",
    "MLFLOW_TRACKING_PASSWORD": "s3cret-tracking",
}


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    for name in list(os.environ):
        if name.startswith(("MLFLOW_TRACKING", "XRAY_OPT_", "AWS_")):
            monkeypatch.delenv(name)
    (tmp_path / "nothing").mkdir()
    yield Workspace(tmp_path)
    load_environment(Workspace(tmp_path / "nothing"))  # forgets what was taken


def write(workspace, text, mode=0o600):
    path = workspace.root / ".env"
    path.write_bytes(text.encode())
    path.chmod(mode)
    return path


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("A=plain", "plain"),
        ("A=plain # a comment", "plain"),
        ("A=pa#ss", "pa#ss"),
        ("A = spaced ", "spaced"),
        ("export A=exported", "exported"),
        ("A='single # $HOME ${HOME} $$'", "single # $HOME ${HOME} $$"),
        ('A="double # \\" quoted"', 'double # " quoted'),
        ('A="two\\nlines"', "two\nlines"),
        ("A=", ""),
        ("B=known\nA=${B}-${B:-x}-$B", "known-known-known"),
        ("A=${NOT_THERE}-${NOT_THERE:-default}-${NOT_THERE-other}", "-default-other"),
        ("B=\nA=${B:-empty}${B-}", "empty"),
        ("A=pa$$word", "pa$word"),
        ("A=pa\\$word", "pa$word"),
        ("A=first\nA=last", "last"),
        ("\ufeffA=bom\r\n", "bom"),
        ("\n\n# only a comment\n\nA=after", "after"),
        ("A=postgresql://u:p%40s@h/db?x=1&y=2", "postgresql://u:p%40s@h/db?x=1&y=2"),
    ],
)
def test_a_line_is_read_as_compose_reads_it(workspace, monkeypatch, line, value):
    monkeypatch.delenv("NOT_THERE", raising=False)
    assert read_environment(write(workspace, line))["A"] == value


def test_the_environment_fills_in_before_the_file(workspace, monkeypatch):
    monkeypatch.setenv("FILLED", "environment")
    assert read_environment(write(workspace, "FILLED=file\nA=${FILLED}"))["A"] == "environment"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("A=1\nno equals s3cret-word", 2),
        ("A=1\n\n\nB='never closed s3cret-word", 4),
        ("A: s3cret-word", 1),
        ("A=s3cret-word$", 1),
        ("A=${s3cret-word", 1),
        ("A=${B:?s3cret-word}", 1),
        ("A=s3cret-word\0", 1),
    ],
)
def test_a_bad_line_is_named_by_its_number_and_not_shown(workspace, text, line):
    write(workspace, text)
    with pytest.raises(ConfigError, match=rf"line {line}\b") as caught:
        load_environment(workspace)
    assert "s3cret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_read_is_one_line(workspace):
    write(workspace, "A=x").write_bytes(b"A=\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_environment(workspace)
    (workspace.root / ".env").unlink()
    (workspace.root / ".env").symlink_to(workspace.root / "missing")
    with pytest.raises(ConfigError, match=r"cannot read .*\.env"):
        load_environment(workspace)


def test_a_folder_of_that_name_is_somebody_elses(workspace):
    (workspace.root / ".env").mkdir()
    before = dict(os.environ)
    load_environment(workspace)
    assert dict(os.environ) == before


def test_what_is_set_wins_even_if_empty_and_only_known_names_are_taken(workspace, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    monkeypatch.setenv("XRAY_OPT_STORAGE", "sqlite:///mine.db")
    names = ["MLFLOW_TRACKING_URI", "XRAY_OPT_STORAGE", "XRAY_OPT_DASHBOARD_URL", "AWS_DEFAULT_REGION", "PATHS"]
    names += ["MLFLOW_AUTH_ADMIN_PASSWORD", "MLFLOW_FLASK_SERVER_SECRET_KEY", "POSTGRES_PASSWORD", "XRAY_OPT_HOME"]
    write(workspace, "\n".join(f"{name}=from-file" for name in names))
    load_environment(workspace)
    assert [os.environ.get(name) for name in names] == [
        *("", "sqlite:///mine.db", "from-file", "from-file"),
        *([None] * 5),
    ]


def test_another_workspaces_file_replaces_the_first_ones(workspace, tmp_path):
    server = "MLFLOW_TRACKING_URI=http://h\nMLFLOW_TRACKING_USERNAME="
    write(workspace, f"{server}first\nAWS_DEFAULT_REGION=first")
    load_environment(workspace)
    other = Workspace(tmp_path / "other")
    other.root.mkdir()
    write(other, f"{server}second")
    load_environment(other)
    assert os.environ["MLFLOW_TRACKING_USERNAME"] == "second"
    assert "AWS_DEFAULT_REGION" not in os.environ


def test_a_certificate_beside_the_file_is_found_from_anywhere(workspace):
    write(workspace, "MLFLOW_TRACKING_URI=https://h\nMLFLOW_TRACKING_SERVER_CERT_PATH=certs/ca.pem")
    load_environment(workspace)
    assert os.environ["MLFLOW_TRACKING_SERVER_CERT_PATH"] == str(workspace.root / "certs/ca.pem")


LOGIN = "MLFLOW_TRACKING_USERNAME=me\nMLFLOW_TRACKING_PASSWORD=s3cret-tracking\nMLFLOW_TRACKING_TOKEN=s3cret-token\n"
SERVER = "MLFLOW_TRACKING_URI=https://ours.example.org/\n"


def login():
    return {name for name in os.environ if name.startswith("MLFLOW_TRACKING_")} - {"MLFLOW_TRACKING_URI"}


@pytest.mark.parametrize(
    ("text", "elsewhere", "sent"),
    [
        (SERVER + LOGIN, None, True),
        (SERVER + LOGIN, "https://ours.example.org", True),
        (SERVER + LOGIN, "https://ours.example.org.evil.test/", False),
        (SERVER + LOGIN, "http://ours.example.org/", False),
        (SERVER + LOGIN, "", False),
        (LOGIN, None, False),
        (LOGIN, "https://ours.example.org", False),
        ("MLFLOW_TRACKING_URI=\n" + LOGIN, None, False),
    ],
)
def test_the_login_goes_to_the_server_beside_which_it_stands_and_to_no_other(
    workspace, monkeypatch, text, elsewhere, sent
):
    if elsewhere is not None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", elsewhere)
    said = []
    write(workspace, text)
    for _ in range(2):
        load_environment(workspace, said.append)
    assert len(login()) == (3 if sent else 0)
    assert [("is not used" in line, "s3cret" in line) for line in said] == [(True, False)] * bool(
        elsewhere and not sent
    )


def test_a_login_that_was_set_goes_wherever_its_setter_says(workspace, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://other.example.org")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "own-token")
    said = []
    write(workspace, SERVER + "MLFLOW_TRACKING_TOKEN=s3cret-token\n")
    load_environment(workspace, said.append)
    login_for("https://third.example.org")
    assert (os.environ["MLFLOW_TRACKING_TOKEN"], said) == ("own-token", [])


def test_a_server_that_is_named_later_gets_no_login_either(workspace):
    write(workspace, SERVER + LOGIN)
    load_environment(workspace)
    assert not login_for("https://other.example.org")
    assert login() == set()
    assert login_for("https://ours.example.org")
    assert len(login()) == 3


def test_a_password_that_others_may_read_is_warned_of_once(workspace):
    said = []
    write(workspace, "XRAY_OPT_DASHBOARD_URL=http://h:8080", mode=0o644)
    load_environment(workspace, said.append)
    assert said == []
    path = write(workspace, "XRAY_OPT_STORAGE=postgresql://u:s3cret-pw@h/db", mode=0o644)
    load_environment(workspace, said.append)
    load_environment(workspace, said.append)
    assert len(said) == 1
    assert f"chmod 600 {path}" in said[0]
    assert "s3cret" not in said[0]


def test_secrets_are_taken_out_of_texts(workspace, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "token-1234")
    monkeypatch.setenv("XRAY_OPT_STORAGE", "postgresql://u:p%40ss-word@h/db?password=other-one")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "key-5678")
    text = redacted("token-1234 p%40ss-word p@ss-word key-5678 host")
    assert text == "*** *** *** *** host"


def shell(workspace, *arguments, **variables):
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "XRAY_OPT_"))}
    env = kept | {"XRAY_OPT_HOME": str(workspace.root)} | variables
    command = [sys.executable, "-m", "xray_opt", *arguments]
    return subprocess.run(command, env=env, cwd=workspace.root, capture_output=True, text=True, timeout=500)


def test_the_command_line_reads_it_and_a_variable_or_an_option_wins(workspace):
    write(workspace, "XRAY_OPT_STORAGE=mysql://u:s3cret-pw@nowhere/one")
    refused = shell(workspace, "study", "list")
    assert refused.returncode == 2
    assert "nowhere/one" in refused.stderr
    assert "nowhere/two" in shell(workspace, "study", "list", XRAY_OPT_STORAGE="mysql://nowhere/two").stderr
    assert "nowhere/three" in shell(workspace, "study", "list", "--storage", "mysql://nowhere/three").stderr
    assert "no studies yet" in shell(workspace, "study", "list", XRAY_OPT_STORAGE="").stdout
    assert "s3cret" not in refused.stdout + refused.stderr


def test_a_broken_file_is_one_line_for_commands_and_none_for_help(workspace):
    write(workspace, "what is this")
    done = shell(workspace, "study", "list")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "line 1 is not NAME=value" in done.stderr
    assert shell(workspace, "--help").returncode == 0


def test_variables_that_fill_in_each_other_cannot_grow_without_end(workspace):
    write(workspace, "A=0123456789\n" + "".join(f"{b}=${a}${a}${a}\n" for a, b in itertools.pairwise(NAMES)))
    with pytest.raises(ConfigError, match=r"line \d+: its value is longer than 65536 characters"):
        load_environment(workspace)
    write(workspace, "A=" + "x" * 70_000)
    with pytest.raises(ConfigError, match="longer than 65536"):
        load_environment(workspace)


NAMES = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
