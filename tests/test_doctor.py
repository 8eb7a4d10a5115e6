"""The diagnosis: what is well and what is not, with servers that work, hang, are away, or have another clock."""

import json
import os
import time
from pathlib import Path

import pytest
from front import certificates, front, silent
from mlflow_stores import tracking_server
from postgres_server import postgres

from xray_opt.config import TrackingConfig, Workspace, load_environment
from xray_opt.doctor import ERROR, OK, WARNING, Finding, diagnose
from xray_opt.doctor.findings import run_checks
from xray_opt.doctor.machine import check_disk, check_packages, check_ports, torch_cuda
from xray_opt.errors import XrayError
from xray_opt.mlflow_client import connect


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """No variable of a store is set, and none is left behind."""
    for name in list(os.environ):
        if name.startswith(("MLFLOW_TRACKING", "XRAY_OPT_")):
            monkeypatch.delenv(name)
    yield tmp_path
    load_environment(Workspace(tmp_path / "nowhere"))


def of(findings, what):
    return [finding for finding in findings if finding.what == what]


def tell(workspace, **variables):
    path = workspace.root / ".env"
    path.write_text("".join(f"{name}={value}\n" for name, value in variables.items()))
    path.chmod(0o600)


def test_a_check_that_raises_or_hangs_is_a_finding_and_the_others_are_not_held_up():
    def raises():
        raise ValueError("a fault\nof two lines")

    def refuses():
        yield Finding(OK, "refuses", "the first half")
        raise XrayError("this is wrong: do that")

    def hangs():
        time.sleep(600)

    began = time.monotonic()
    checks = {"hangs": hangs, "raises": raises, "refuses": refuses, "works": lambda: [Finding(OK, "works", "well")]}
    found = run_checks(checks, 3.0)
    assert time.monotonic() - began < 300
    assert [(finding.status, finding.what) for finding in found] == [
        *((ERROR, "hangs"), (ERROR, "raises"), (ERROR, "refuses"), (OK, "works"))
    ]
    assert "a fault of two lines" in found[1].text
    assert all(finding.fix for finding in found[:3])


def test_a_new_workspace_is_diagnosed_and_nothing_is_made_there(fresh):
    workspace = Workspace(fresh / "new")
    workspace.root.mkdir()
    found = diagnose(workspace, patience=300)
    assert {"python", "packages", "gpu", "disk", "weights", "films", "tracking", "storage", "docker"} <= {
        finding.what for finding in found
    }
    assert [finding.status for finding in of(found, "tracking") + of(found, "storage")] == [OK, OK]
    assert [finding.status for finding in of(found, "films")] == [WARNING]
    assert "data prepare" in of(found, "films")[0].fix
    assert all(finding.fix for finding in found if finding.status != OK)
    assert list(workspace.root.iterdir()) == []


def test_a_tuned_workspace_is_well(tuned, monkeypatch):
    monkeypatch.setattr("xray_opt.doctor.diagnosing.PATIENCE", 300)
    place, _, _ = tuned
    rows = place.json("doctor", "--study", "tiny")
    found = {row["what"]: row for row in rows}
    assert {found[what]["status"] for what in ("python", "packages", "films", "tracking", "storage", "artifacts")} == {
        "ok"
    }
    assert "random" in found["weights"]["text"]
    assert not [row for row in rows if row["status"] == "error"]


def test_changed_films_are_noticed(place, monkeypatch):
    monkeypatch.setattr("xray_opt.doctor.diagnosing.PATIENCE", 300)
    next((place.films / "train" / "NORMAL").iterdir()).unlink()
    done = place.run("doctor", "--json")
    (films,) = [row for row in json.loads(done.stdout) if row["what"] == "films"]
    assert (done.returncode, films["status"]) == (0, "warning")
    assert "was changed" in films["text"]


def test_the_lines_fit_80_columns_and_name_the_fix(place):
    (place.workspace.root / ".env").write_text(
        "MLFLOW_TRACKING_URI=http://127.0.0.1:9\nXRAY_OPT_STORAGE=postgresql://u:s3cret-pw@127.0.0.1:9/db\n"
    )
    done = place.fresh("doctor")
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80, lines
    assert {line.split()[0] for line in lines if line[0] != " "} <= {"ok", "warning", "error"}
    assert sum(line.startswith(("error   tracking", "error   storage")) for line in lines) == 2
    assert "s3cret" not in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert any(line.startswith("warning .env") for line in lines)


def test_stores_that_hang_are_errors_in_time(fresh):
    workspace = Workspace(fresh / "new")
    workspace.root.mkdir()
    with silent() as port:
        tell(
            workspace,
            MLFLOW_TRACKING_URI=f"http://127.0.0.1:{port}",
            XRAY_OPT_STORAGE=f"postgresql://u:pw@127.0.0.1:{port}/db",
        )
        found = diagnose(workspace, patience=5)
    assert [finding.status for finding in of(found, "tracking") + of(found, "storage")] == [ERROR, ERROR]


def test_a_broken_env_file_is_a_finding(fresh):
    workspace = Workspace(fresh / "new")
    workspace.root.mkdir()
    (workspace.root / ".env").write_text("what is this\n")
    found = diagnose(workspace, patience=300)
    assert [finding.status for finding in of(found, ".env")] == [ERROR]
    assert of(found, "python")[0].status == OK


def test_an_unknown_study_is_a_finding(fresh):
    found = diagnose(Workspace(fresh), "no/such/file.yaml", patience=300)
    assert [finding.status for finding in of(found, "study")] == [ERROR]


def test_a_study_that_was_never_tuned_makes_nothing(place, monkeypatch):
    monkeypatch.setattr("xray_opt.doctor.diagnosing.PATIENCE", 300)
    before = sorted(place.workspace.root.rglob("*"))
    rows = place.json("doctor", "--study", "tiny")
    assert {row["status"] for row in rows if row["what"] in ("tracking", "storage", "films")} == {"ok"}
    assert sorted(place.workspace.root.rglob("*")) == before


def test_full_disks_and_foreign_programs_are_named(tmp_path, monkeypatch):
    import shutil

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    found = list(check_disk(Workspace(tmp_path), tmp_path / "weights"))
    assert [finding.status for finding in found] == [ERROR] * 3
    assert "gc" in found[0].fix


def test_ports_free_ours_and_taken(monkeypatch):
    from xray_opt.doctor import machine

    with silent() as port:
        monkeypatch.setattr(machine, "PORTS", {"MLflow": (port, "/health", "--mlflow-port")})
        (taken,) = check_ports()
    (free,) = check_ports()
    assert (taken.status, free.status) == (WARNING, OK)
    assert "--mlflow-port" in taken.fix


def test_a_package_out_of_its_range_is_an_error(monkeypatch):
    from xray_opt.doctor import machine

    assert [finding.status for finding in check_packages()] == [OK]
    real = machine.version
    monkeypatch.setattr(machine, "version", lambda name: "1.0" if name in ("mlflow", "torch") else real(name))
    (found,) = check_packages()
    assert found.status == ERROR
    assert "mlflow 1.0, needs" in found.text
    assert "torchvision" in found.text


def test_the_cuda_build_is_read_without_importing_torch():
    import torch

    assert torch_cuda() == torch.version.cuda


@pytest.mark.slow
def test_a_server_and_a_database_that_work(fresh, server):
    workspace = Workspace(fresh / "new")
    workspace.root.mkdir()
    with postgres() as database:
        tell(
            workspace,
            MLFLOW_TRACKING_URI=server,
            XRAY_OPT_STORAGE=database.database("optuna"),
            MLFLOW_TRACKING_USERNAME="me",
            MLFLOW_TRACKING_PASSWORD="s3cret-pw",
        )
        for _ in range(2):
            found = diagnose(workspace, patience=300)
            assert {finding.status for finding in of(found, "tracking") + of(found, "storage")} == {OK}
            assert [finding.status for finding in of(found, "clock")] == [OK, OK]
            assert [finding.status for finding in of(found, "artifacts")] == [OK]
        assert "PostgreSQL" in of(found, "storage")[0].text
        assert "s3cret" not in str(found)
    client = connect(TrackingConfig(uri=server), workspace).client
    (experiment,) = client.search_experiments(filter_string="name = 'xray-opt-doctor'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert client.list_artifacts(run.info.run_id) == []


@pytest.mark.slow
@pytest.mark.parametrize(("ahead", "status"), [(40.0, WARNING), (-1000.0, ERROR)])
def test_another_clock_is_named(fresh, server, ahead, status):
    workspace = Workspace(fresh / "new")
    workspace.root.mkdir()
    with front(server, ahead=ahead) as uri:
        tell(workspace, MLFLOW_TRACKING_URI=uri)
        (clock,) = of(diagnose(workspace, patience=300), "clock")
    assert clock.status == status
    assert ("ahead of" if ahead > 0 else "behind") in clock.text


@pytest.mark.slow
def test_a_server_behind_tls_needs_its_ca_and_then_works(fresh, server, tmp_path):
    ca, certificate = certificates(tmp_path)
    workspace = Workspace(fresh / "new")
    workspace.root.mkdir()
    with front(server, certificate) as uri:
        tell(workspace, MLFLOW_TRACKING_URI=uri)
        (refused,) = of(diagnose(workspace, patience=300), "tracking")
        assert refused.status == ERROR
        assert "MLFLOW_TRACKING_SERVER_CERT_PATH" in refused.text
        tell(workspace, MLFLOW_TRACKING_URI=uri, MLFLOW_TRACKING_SERVER_CERT_PATH=ca)
        found = diagnose(workspace, patience=300)
        assert [finding.status for finding in of(found, "tracking") + of(found, "artifacts")] == [OK, OK]
    tell(workspace, MLFLOW_TRACKING_URI=uri, MLFLOW_TRACKING_SERVER_CERT_PATH=Path("not-there.pem"))
    (away,) = of(diagnose(workspace, patience=300), "tracking")
    assert away.status == ERROR


@pytest.mark.slow
def test_a_server_that_asks_for_a_login(fresh, tmp_path):
    pytest.importorskip("flask_wtf", reason="MLflow's login needs Flask-WTF")
    workspace = Workspace(fresh / "new")
    workspace.root.mkdir()
    with tracking_server(tmp_path, "a-Long-pa55word") as uri:
        for login in ({}, {"USERNAME": "admin", "PASSWORD": "s3cret-wrong"}):
            variables = {f"MLFLOW_TRACKING_{name}": value for name, value in login.items()}
            tell(workspace, MLFLOW_TRACKING_URI=uri, **variables)
            (refused,) = of(diagnose(workspace, patience=300), "tracking")
            assert refused.status == ERROR
            assert "refuses access (401): set MLFLOW_TRACKING_USERNAME" in refused.text
            assert "s3cret" not in str(refused)
        tell(
            workspace,
            MLFLOW_TRACKING_URI=uri,
            MLFLOW_TRACKING_USERNAME="admin",
            MLFLOW_TRACKING_PASSWORD="a-Long-pa55word",
        )
        found = diagnose(workspace, patience=300)
    assert [finding.status for finding in of(found, "tracking") + of(found, "artifacts")] == [OK, OK]
    assert "login accepted" in of(found, "tracking")[0].text
    assert "unknown" not in of(found, "tracking")[0].text


def test_a_damaged_manifest_is_noticed(place):
    from xray_opt.doctor.stores import check_films

    assert [finding.status for finding in check_films(None, place.workspace)] == [OK]
    for path in place.workspace.manifests.glob("*.csv"):
        path.write_text(path.read_text().replace("/PNEUMONIA/", "/NORMAL/", 1))
    assert [finding.status for finding in check_films(None, place.workspace)] == [WARNING]
