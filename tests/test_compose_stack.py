"""The service does its work: tunes here and in containers, keeps all through stops and restores, tells of itself."""

import json
import os
import stat
import subprocess
import sys
import time

import pytest
from service_stack import wait_until

pytestmark = pytest.mark.compose

LOAD = """
import base64, sys
from pathlib import Path
import mlflow, pandas
model = mlflow.pyfunc.load_model(sys.argv[1])
film = base64.b64encode(Path(sys.argv[2]).read_bytes()).decode()
print("probability", float(model.predict(pandas.DataFrame({"image": [film]}))["probability"].iloc[0]))
"""
COUNTS = """
SELECT count(*) FROM trials JOIN studies USING (study_id) WHERE study_name = '{}' AND state IN ('COMPLETE', 'PRUNED')
"""


def trials(stack, study: str) -> int:
    return int(stack.sql("optuna", COUNTS.format(study).strip())[0])


def inventory(stack) -> dict[str, object]:
    """All that a team would miss: rows of both databases and the digests of all artifacts."""
    tables = {"mlflow": ("runs", "latest_metrics", "params", "model_versions", "registered_model_aliases", "users")}
    tables["optuna"] = ("studies", "trials", "trial_params", "trial_values", "trial_user_attributes")
    rows = {
        f"{database}.{table}": sorted(stack.sql(database, f"SELECT md5(t::text) FROM {table} t"))
        for database, names in tables.items()
        for table in names
    }
    files = "cd /artifacts && find . -path ./.scratch -prune -o -type f -exec sha256sum {} + | sort"
    return rows | {"artifacts": stack.compose("exec", "-T", "mlflow", "sh", "-c", files).stdout.splitlines()}


def answer(stack, interface: str) -> int:
    """Status of a page of one of the two interfaces that reads its database."""
    page = {"MLFLOW": "/api/2.0/mlflow/users/current", "DASHBOARD": "/api/studies"}[interface]
    return stack.ask(interface, page, headers=stack.login()).status


def container(stack, service: str) -> str:
    (one,) = [c for c in stack.containers() if c["Config"]["Labels"]["com.docker.compose.service"] == service]
    return one["Id"]


def backups(stack) -> list[str]:
    return json.loads(stack.run("status", "--json").stdout)["backups"]


def load_champion(stack):
    film = next(iter(sorted(stack.place.films.glob("test/*/*.jpeg"))))
    command = [sys.executable, "-c", LOAD, "models:/xray-pneumonia@champion", str(film)]
    env = stack.client() | {"PYTHONPATH": ""}
    return subprocess.run(command, cwd="/", env=env, capture_output=True, text=True, timeout=600)


def test_up_made_the_secrets_once_and_never_shows_them(stack):
    assert stat.S_IMODE(stack.file.stat().st_mode) == 0o600
    before = stack.file.read_bytes()
    shown = stack.run("up")
    assert stack.file.read_bytes() == before
    assert f"http://127.0.0.1:{stack.port('MLFLOW')}" in shown.stdout
    assert str(stack.file) in shown.stdout
    for value in stack.values().values():
        assert len(value) < 30 or "://" in value or value not in shown.stdout + shown.stderr


def test_a_tune_from_the_host_ends_with_its_trials_runs_and_artifacts(stack, tuned_here):
    assert tuned_here["complete"] + tuned_here["pruned"] == 4
    assert trials(stack, "from-the-host") == 4
    states = stack.sql("mlflow", "SELECT status, count(*) FROM runs GROUP BY status ORDER BY status")
    assert states == ["FINISHED|5"], states
    roots = stack.sql("mlflow", "SELECT DISTINCT split_part(artifact_uri, '/', 1) FROM runs")
    assert roots == ["mlflow-artifacts:"]
    files = stack.compose("exec", "-T", "mlflow", "find", "/artifacts", "-name", "adapter_model.safetensors").stdout
    assert len(files.split()) >= 4
    assert not (stack.place.workspace.root / "mlruns" / "mlflow.db").exists()
    assert not stack.place.workspace.study_database.exists()


def test_the_champion_loads_through_the_service_and_not_without_a_login(stack, tuned_here):
    assert tuned_here["registered"]["aliases"] == ["champion"]
    done = load_champion(stack)
    assert done.returncode == 0, done.stderr
    assert 0 <= float(done.stdout.split()[-1]) <= 1
    run = stack.sql("mlflow", "SELECT run_uuid FROM runs WHERE name LIKE 'trial-%' LIMIT 1")[0]
    listing = f"/api/2.0/mlflow/artifacts/list?run_id={run}"
    assert stack.ask("MLFLOW", listing).status == 401
    assert stack.ask("MLFLOW", listing, headers=stack.login()).status == 200


def test_the_dashboard_shows_the_study(stack, tuned_here):
    answer = stack.ask("DASHBOARD", "/api/studies", headers=stack.login())
    assert "from-the-host" in {study["study_name"] for study in json.loads(answer.body)["study_summaries"]}


def test_two_worker_containers_share_a_study(stack, tuned_here):
    work = {
        "XRAY_OPT_TUNE": "--study /studies/tiny.yaml --name in-containers --trials 6",
        "XRAY_OPT_FILMS": str(stack.place.films),
        "XRAY_OPT_STUDIES": str(stack.place.workspace.studies),
    }
    stack.more |= work
    try:
        stack.run("up", "--build", "--workers", "2")
        workers = [c for c in stack.containers() if c["Config"]["Labels"]["com.docker.compose.service"] == "worker"]
        assert len(workers) == 2
        assert {worker["Config"]["User"] for worker in workers} == {"10001:10001"}

        def over() -> bool:
            found = [c for c in stack.containers() if c["Config"]["Labels"]["com.docker.compose.service"] == "worker"]
            return all(c["State"]["Status"] == "exited" for c in found)

        wait_until(over, "both workers at their end", 900)
        log = stack.compose("logs", "--no-color", "worker", profiles=("worker",)).stdout
        ends = [c["State"]["ExitCode"] for c in stack.containers() if "worker" in c["Name"]]
        assert ends == [0, 0], log[-3000:]
        assert trials(stack, "in-containers") == 6, log[-3000:]
        # One storage and one MLflow, called by the same address from everywhere: host commands find the study.
        shown = stack.run("compare", "in-containers", "--json", env=stack.client())
        assert json.loads(shown.stdout)["summary"].startswith("6 complete")
        digests = stack.sql("mlflow", "SELECT DISTINCT value FROM tags WHERE key = 'xray_opt.storage'")
        assert len(digests) == 1
        more = stack.tune("--study", "tiny", "--trials", "7", "--name", "in-containers")
        assert more["complete"] + more["pruned"] == 7
    finally:
        for name in work:
            del stack.more[name]


def test_status_tells_states_versions_sizes_and_backups(stack, tuned_here):
    told = json.loads(stack.run("status", "--json").stdout)
    assert told["healthy"] is True
    by_name = {service["service"]: service for service in told["services"]}
    for name in ("postgres", "mlflow", "optuna-dashboard", "gateway"):
        assert (by_name[name]["state"], by_name[name]["health"]) == ("running", "healthy")
        assert any(sign.isdigit() for sign in by_name[name]["version"]), name
    assert by_name["gateway"]["ports"].count("127.0.0.1:") == 2
    assert {"postgres", "artifacts", "backups"} <= set(told["volumes"])
    assert told["volumes"]["artifacts"] not in ("0B", "?")
    assert "postgres" in stack.run("status").stdout


def test_down_and_up_lose_nothing(stack, tuned_here):
    before = inventory(stack)
    stack.run("down")
    assert stack.compose("ps", "--all", "--quiet").stdout == ""
    stopped = stack.run("status", code=8)
    assert "xray-opt up" in stopped.stderr
    stack.run("up")
    assert inventory(stack) == before


def test_a_database_that_restarts_under_the_service_is_found_again(stack):
    before = inventory(stack)
    stack.compose("restart", "postgres")
    wait_until(lambda: answer(stack, "MLFLOW") == 200, "MLflow")
    wait_until(lambda: answer(stack, "DASHBOARD") == 200, "the dashboard")
    assert inventory(stack) == before


def test_a_container_that_was_made_anew_is_found_again(stack):
    before = container(stack, "mlflow")
    stack.compose("up", "-d", "--force-recreate", "--no-deps", "mlflow")
    wait_until(lambda: answer(stack, "MLFLOW") == 200, "MLflow")
    assert container(stack, "mlflow") != before


def test_a_backup_brings_back_what_was_wiped(stack, tuned_here):
    before = inventory(stack)
    stamp = stack.run("backup").stdout.split()[-1]
    assert json.loads(stack.run("status", "--json").stdout)["backups"][0] == stamp
    stack.tune("--study", "tiny", "--trials", "1", "--name", "after-the-backup")
    stack.compose("down")
    for volume in ("postgres", "artifacts"):
        subprocess.run(
            ["docker", "volume", "rm", f"{stack.project}_{volume}"],
            check=True,
            env=stack.environment(),
            capture_output=True,
        )
    stack.run("up")
    assert inventory(stack)["mlflow.runs"] == []
    stack.run("restore", stamp, "--yes")
    assert inventory(stack) == before
    assert load_champion(stack).returncode == 0
    assert stack.tune("--study", "tiny", "--trials", "4", "--name", "from-the-host")["started_now"] == 0


def test_a_damaged_or_unknown_backup_changes_nothing(stack, tuned_here):
    before = inventory(stack)
    stamp = stack.run("backup").stdout.split()[-1]
    spoil = f"dd if=/dev/zero of=/backups/{stamp}/mlflow.dump bs=1 count=64 seek=4096 conv=notrunc"
    stack.compose("run", "--rm", "-T", "--entrypoint", "sh", "backup", "-c", spoil, profiles=("backup",))
    assert "damaged" in stack.run("restore", stamp, "--yes", code=8).stderr
    assert "no backup" in stack.run("restore", "20010101T000000Z", "--yes", code=8).stderr
    assert stack.ask("MLFLOW", "/health").status == 200  # not even stopped
    assert inventory(stack) == before
    stack.compose("run", "--rm", "-T", "--entrypoint", "rm", "backup", "-r", f"/backups/{stamp}", profiles=("backup",))


def test_old_backups_are_forgotten(stack):
    stack.more["XRAY_OPT_BACKUP_KEEP"] = "2"
    try:
        made = []
        for _ in range(3):
            made.append(stack.run("backup").stdout.split()[-1])
            time.sleep(1.1)  # named by the second
    finally:
        del stack.more["XRAY_OPT_BACKUP_KEEP"]
    assert json.loads(stack.run("status", "--json").stdout)["backups"] == made[:0:-1]


def test_an_unhealthy_service_is_named_with_the_end_of_its_log_and_no_secret(stack):
    stack.more["XRAY_OPT_ARTIFACTS"] = "no-such-scheme://x"
    lines = stack.file.read_text()
    try:
        stack.file.write_text(lines.replace("XRAY_OPT_MLFLOW_PORT=", "XRAY_OPT_HOST=not a name\nXRAY_OPT_MLFLOW_PORT="))
        failed = stack.run("up", code=8)
    finally:
        del stack.more["XRAY_OPT_ARTIFACTS"]
        stack.file.write_text(lines)
        os.chmod(stack.file, 0o600)
    assert "XRAY_OPT_HOST must be one host name" in failed.stderr
    assert not any(value in failed.stderr for name, value in stack.values().items() if "PASSWORD" in name)
    stack.run("up")


def test_the_nightly_backup_makes_its_first_one_at_once(stack):
    held = set(backups(stack))
    for stamp in held:
        stack.compose(
            "run", "--rm", "-T", "--entrypoint", "rm", "backup", "-r", f"/backups/{stamp}", profiles=("backup",)
        )
    assert backups(stack) == []
    stack.run("up", "--profile", "backup")
    try:
        wait_until(lambda: backups(stack), "a first backup")
        assert len(set(backups(stack)) - held) == 1
    finally:
        stack.compose("rm", "-sf", "backup", profiles=("backup",))
