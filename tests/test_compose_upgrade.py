"""Older and newer tables: upgraded after a backup, or refused with what to do; and the artifacts in an S3 store."""

import json

import pytest
from service_stack import running_stack

pytestmark = pytest.mark.compose

#: MLflow's tables one revision back, by the migrations' own way.
DOWN = """
import os
import sqlalchemy
from alembic import command
from mlflow.store.db.utils import _get_alembic_config

os.environ["PGPASSWORD"] = os.environ["MLFLOW_DB_PASSWORD"]
url = "postgresql+psycopg://mlflow@postgres/mlflow"
config = _get_alembic_config(url)
with sqlalchemy.create_engine(url).begin() as connection:
    config.attributes["connection"] = connection
    command.downgrade(config, "-1")
"""
#: Optuna's, by hand: what its way down drops has another name in tables that were made whole.
DOWN_OPTUNA = "DROP INDEX ix_trials_study_id; UPDATE alembic_version SET version_num = 'v3.0.0.d'"


def revision(stack, database: str) -> str:
    return stack.sql(database, "SELECT version_num FROM alembic_version")[0]


def stopped(stack):
    stack.compose("stop", "gateway", "mlflow", "optuna-dashboard")


def go_down(stack) -> str:
    stack.compose("run", "--rm", "-T", "migrate", "python3", "-c", DOWN)
    return revision(stack, "mlflow")


def test_plain_compose_refuses_older_tables_and_names_the_command(stack):
    head = revision(stack, "mlflow")
    stopped(stack)
    older = go_down(stack)
    assert older != head
    done = stack.compose("run", "--rm", "-T", "migrate", code=3)
    assert "docker compose run --rm backup once && docker compose up -d" in done.stderr
    assert "xray-opt up" in done.stderr
    assert revision(stack, "mlflow") == older
    assert stack.compose("up", "-d", "mlflow", code=None).returncode != 0
    # What the line says.
    stack.compose("run", "--rm", "-T", "backup", "once", profiles=("backup",))
    stack.compose("up", "-d")
    assert revision(stack, "mlflow") == head


def test_up_backs_up_and_upgrades_older_tables_with_what_they_hold(stack):
    stack.run("up")
    heads = {name: revision(stack, name) for name in ("mlflow", "optuna")}
    held = {
        "mlflow": stack.sql("mlflow", "SELECT run_uuid, name, status FROM runs ORDER BY 1"),
        "optuna": stack.sql("optuna", "SELECT * FROM trial_values ORDER BY 1"),
    }
    backups = json.loads(stack.run("status", "--json").stdout)["backups"]
    stopped(stack)
    assert go_down(stack) != heads["mlflow"]
    stack.sql("optuna", DOWN_OPTUNA)
    stack.run("up")
    told = json.loads(stack.run("status", "--json").stdout)
    assert told["healthy"]
    assert set(told["backups"]) > set(backups) or told["backups"][0] != backups[0]
    assert {name: revision(stack, name) for name in heads} == heads
    assert stack.sql("mlflow", "SELECT run_uuid, name, status FROM runs ORDER BY 1") == held["mlflow"]
    assert stack.sql("optuna", "SELECT * FROM trial_values ORDER BY 1") == held["optuna"]
    index = "SELECT indexdef FROM pg_indexes WHERE tablename = 'trials' AND indexdef LIKE '%(study_id)%'"
    assert stack.sql("optuna", index)  # the upgrade did what the newer version needs


def test_newer_tables_are_refused(stack):
    head = revision(stack, "mlflow")
    stopped(stack)
    stack.sql("mlflow", "UPDATE alembic_version SET version_num = 'ffffffffffff'")
    try:
        assert "newer version" in stack.run("up", code=8).stderr
    finally:
        stack.sql("mlflow", f"UPDATE alembic_version SET version_num = '{head}'")
    stack.run("up")


def test_volumes_without_their_env_file_are_refused(stack):
    text = stack.file.read_text()
    stack.file.unlink()
    try:
        assert "put its .env back" in stack.run("up", code=8).stderr
        assert not stack.file.exists()
    finally:
        stack.file.write_text(text)
        stack.file.chmod(0o600)
    assert stack.ask("MLFLOW", "/api/2.0/mlflow/users/current", headers=stack.login()).status == 200


def test_another_login_in_the_env_file_is_taken_over_by_hand(stack):
    """As after a restore with another file: databases' passwords follow it, the login is given back by hand."""
    text = stack.file.read_text()
    old = stack.values()["MLFLOW_TRACKING_PASSWORD"]
    stack.file.write_text(text.replace(old, "another-password-of-some-length"))
    stack.run("up")
    ask = "/api/2.0/mlflow/users/current"
    assert stack.ask("MLFLOW", ask, headers=stack.login()).status == 401
    stack.compose("run", "--rm", "-T", "migrate", "python3", "/opt/service/schema.py", "reset-login")
    stack.compose("restart", "mlflow")
    stack.run("up")
    assert stack.ask("MLFLOW", ask, headers=stack.login()).status == 200
    assert stack.ask("MLFLOW", ask, headers=stack.login(password=old)).status == 401


def test_artifacts_may_lie_in_an_s3_store(stack, place):
    """A service of its own, from its first start; the first one is stopped for the time, as memory is short."""
    stack.run("down")
    with running_stack(place, "--profile", "s3") as other:
        report = other.tune("--study", "tiny", "--trials", "1")
        assert report["registered"]["version"]
        other.run("up", "--profile", "s3")  # the bucket is there already
        files = other.compose("exec", "-T", "s3", "find", "/s3/mlflow", "-type", "f", profiles=("s3",)).stdout
        assert "adapter_model.safetensors" in files
        assert other.compose("exec", "-T", "mlflow", "find", "/artifacts", "-type", "f").stdout == ""
        from test_compose_stack import load_champion

        done = load_champion(other)
        assert done.returncode == 0, done.stderr
        refused = other.compose("exec", "-T", "mlflow", "python3", "-c", UNSIGNED).stdout
        assert set(refused.split()) <= {"400", "401", "403"}, refused
        stamp = other.run("backup").stdout.split()[-1]
        other.compose("exec", "-T", "s3", "sh", "-c", "rm -r /s3/mlflow/*", profiles=("s3",))
        other.run("restore", stamp, "--yes")
        again = other.compose("exec", "-T", "s3", "find", "/s3/mlflow", "-type", "f", profiles=("s3",)).stdout
        assert sorted(again.split()) == sorted(files.split())


UNSIGNED = """
import urllib.request, urllib.error
for path in ("/mlflow", "/"):
    try:
        print(urllib.request.urlopen("http://s3:9000" + path, timeout=30).status)
    except urllib.error.HTTPError as error:
        print(error.code)
"""
