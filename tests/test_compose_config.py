"""The compose files as docker compose itself reads them: every file and profile, what is required, what is refused."""

import json
import os
import re
import subprocess

import pytest
from service_stack import ROOT, without_client

pytestmark = pytest.mark.skipif(without_client() is not None, reason=str(without_client()))
PROFILES = ("worker", "s3", "backup", "restore")
SETTINGS = {
    "POSTGRES_PASSWORD": "a",
    "MLFLOW_DB_PASSWORD": "b",
    "OPTUNA_DB_PASSWORD": "c",
    "MLFLOW_TRACKING_USERNAME": "admin",
    "MLFLOW_TRACKING_PASSWORD": "d",
    "MLFLOW_FLASK_SERVER_SECRET_KEY": "e",
}


def config(*arguments: str, files=("docker-compose.yml",), profiles=PROFILES, **settings: str):
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("XRAY_OPT", "MLFLOW", "AWS"))}
    command = ["docker", "compose", "--env-file", "/dev/null", "--project-directory", str(ROOT)]
    command += [part for name in files for part in ("-f", str(ROOT / name))]
    command += [part for name in profiles for part in ("--profile", name)]
    return subprocess.run([*command, "config", *arguments], env=kept | settings, capture_output=True, text=True)


@pytest.fixture(scope="module")
def services():
    done = config("--format", "json", **SETTINGS)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["services"]


@pytest.mark.parametrize("files", [("docker-compose.yml",), ("docker-compose.yml", "docker-compose.gpu.yml")])
@pytest.mark.parametrize("profiles", [(), *((name,) for name in PROFILES), PROFILES])
def test_every_file_and_profile_is_valid(files, profiles):
    done = config("-q", files=files, profiles=profiles, **SETTINGS)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", SETTINGS)
def test_a_missing_secret_is_named(name):
    done = config("-q", profiles=(), **{key: value for key, value in SETTINGS.items() if key != name})
    assert done.returncode != 0
    assert name in done.stderr
    assert "xray-opt up" in done.stderr


def test_everything_is_published_on_this_machine_alone(services):
    published = [port for service in services.values() for port in service.get("ports", ())]
    assert len(published) == 3
    assert {port["host_ip"] for port in published} == {"127.0.0.1"}
    assert {name for name, service in services.items() if service.get("ports")} == {"postgres", "gateway"}


def test_every_container_is_held_tight(services):
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["restart"], name
        assert int(service["mem_limit"]) > 0, name
        assert service["logging"]["options"] == {"max-file": "3", "max-size": "10m"}, name
        assert not service.get("privileged"), name
        assert not any("docker.sock" in str(volume) for volume in service.get("volumes", ())), name


def test_every_service_that_stays_is_checked_and_waits_for_what_it_needs(services):
    for name, service in services.items():
        if name in ("migrate", "restore"):
            continue
        assert service["healthcheck"]["test"], name
    for name, service in services.items():
        for other, wanted in service.get("depends_on", {}).items():
            assert wanted["condition"] in ("service_healthy", "service_completed_successfully"), (name, other)
    assert {name for name, service in services.items() if not service.get("depends_on")} == {"postgres", "s3"}


def test_the_dashboard_can_be_reached_by_the_gateway_alone(services):
    beside = {name for name, service in services.items() if "dashboard" in service["networks"]}
    assert beside == {"postgres", "optuna-dashboard", "gateway"}
    assert list(services["optuna-dashboard"]["networks"]) == ["dashboard"]


def test_the_gpu_file_reserves_gpus_for_workers_alone():
    files = ("docker-compose.yml", "docker-compose.gpu.yml")
    both = json.loads(config("--format", "json", files=files, **SETTINGS).stdout)["services"]
    devices = {
        name: service.get("deploy", {}).get("resources", {}).get("reservations") for name, service in both.items()
    }
    assert devices.pop("worker")["devices"][0]["capabilities"] == ["gpu"]
    assert not any(devices.values())


@pytest.mark.parametrize(("settings", "wanted"), [({}, "all"), ({"XRAY_OPT_GPUS": "0,1"}, "0,1")])
def test_the_gpu_file_puts_a_process_on_each_gpu_that_is_named(settings, wanted):
    files = ("docker-compose.yml", "docker-compose.gpu.yml")
    done = config("--format", "json", files=files, XRAY_OPT_TUNE="--study tiny", **SETTINGS, **settings)
    worker = json.loads(done.stdout)["services"]["worker"]
    assert worker["command"] == ["tune", "--data", "/films", "--gpus", wanted, "--study", "tiny"]


def test_images_start_from_the_two_public_tags_and_are_pinned():
    for path in sorted(ROOT.glob("docker/*/Dockerfile")):
        text = path.read_text()
        assert re.findall(r"^FROM (\S+)", text, flags=re.MULTILINE) in (
            ["python:3.11-slim-bookworm"],
            ["postgres:16-bookworm"],
        )
        assert "# syntax" not in text
        assert re.search(r"^USER (?!root|0)\S+", text, flags=re.MULTILINE), path
        assert "pip install" not in text or "--require-hashes" in text
    for path in (*ROOT.glob("docker/*/requirements.lock"), ROOT / "docker-compose.yml"):
        assert (
            "://" not in path.read_text().replace("http://127", "").replace("postgresql", "") or path.suffix == ".yml"
        )


def versions(path: str) -> dict[str, str]:
    return dict(re.findall(r"^([\w.-]+)==([\w.]+)", (ROOT / path).read_text(), flags=re.MULTILINE))


def test_the_images_have_the_versions_that_are_tested_and_only_what_they_need():
    tested = versions("requirements.lock")
    small, large = versions("docker/service/requirements.lock"), versions("docker/worker/requirements.lock")
    assert {"mlflow", "optuna", "optuna-dashboard", "psycopg", "boto3", "flask-wtf"} <= set(small)
    assert {"mlflow", "optuna", "torch", "peft", "psycopg"} <= set(large)
    assert not {"torch", "peft"} & set(small)
    assert not {"pytest", "mypy", "playwright"} & set(large)
    for image in (small, large):
        assert {name: image[name] for name in image if name in tested} == {
            name: tested[name] for name in image if name in tested
        }
