"""Real MLflow stores and small real models for the tests of the MLflow rooms."""

from __future__ import annotations

import base64
import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from xray_opt.adapter import attach, make_bundle, save_bundle
from xray_opt.backbone import Base, random_base
from xray_opt.config import Config, TrackingConfig, Workspace, override
from xray_opt.dataset import Film, Manifest
from xray_opt.mlflow_client import Connection, connect
from xray_opt.registry import Version
from xray_opt.tracking import Tracking

ROOT = Path(__file__).parent.parent
QUIET = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true", "OMP_NUM_THREADS": "1"}
CONNECT = "import sys; from pathlib import Path; from xray_opt.config import TrackingConfig, Workspace; \
from xray_opt.mlflow_client import connect; connect(TrackingConfig(), Workspace(Path(sys.argv[1])))"

AUTH = """[mlflow]
default_permission = NO_PERMISSIONS
database_uri = sqlite:///{folder}/auth.db
admin_username = admin
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
grant_default_workspace_access = false
"""


@dataclass(frozen=True)
class Template:
    """A fresh embedded store, made by a fresh process in an empty folder; and what that process printed."""

    folder: Path
    printed: str


@cache
def template() -> Template:
    """Made once a test session, as MLflow's migrations take seconds; tests work on copies."""
    folder = Path(tempfile.mkdtemp(prefix="xray-opt-store-"))
    command = [sys.executable, "-c", CONNECT, str(folder)]
    env = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")} | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return Template(folder, done.stdout + done.stderr)


def embedded(folder: Path) -> Connection:
    """An embedded store of its own in a new workspace below ``folder``."""
    workspace = Workspace((folder / "workspace").resolve())
    shutil.copytree(template().folder / "mlruns", workspace.mlruns)
    return connect(TrackingConfig(), workspace)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def process(command: list[str], url: str, env: dict[str, str] | None = None) -> Iterator[None]:
    """A server that answers at ``url`` inside the block; it and its children are ended after it."""
    with tempfile.TemporaryFile() as output:
        server = subprocess.Popen(
            command, stdout=output, stderr=output, env=os.environ | QUIET | (env or {}), start_new_session=True
        )
        try:
            _wait(server, url, output)
            yield
        finally:
            _end(server)


def _end(server: subprocess.Popen[bytes]) -> None:
    """End the server's whole process group, which may be gone already."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(server.pid, sign)
        with suppress(subprocess.TimeoutExpired):
            server.wait(10)


def _wait(server: subprocess.Popen[bytes], url: str, output: io.BufferedRandom) -> None:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    output.seek(0)
    raise AssertionError(f"no answer at {url}: {output.read().decode()[-3000:]}")


@contextmanager
def tracking_server(folder: Path, password: str | None = None) -> Iterator[str]:
    """URI of a real ``mlflow server`` on SQLite that serves artifacts, as a team's server does.

    With a password it asks ``admin`` for a login; that needs Flask-WTF.
    """
    shutil.copyfile(template().folder / "mlruns" / "mlflow.db", folder / "server.db")
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{folder}/server.db"]
    command += ["--serve-artifacts", "--artifacts-destination", str(folder / "artifacts")]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    uri, env = f"http://127.0.0.1:{port}", {}
    if password is not None:
        (folder / "auth.ini").write_text(AUTH.format(folder=folder))
        command += ["--app-name", "basic-auth"]
        env = {"MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"), "MLFLOW_AUTH_ADMIN_PASSWORD": password}
        env |= {"MLFLOW_FLASK_SERVER_SECRET_KEY": "of these tests"}
    with process(command, f"{uri}/health", env):
        yield uri


def manifest(root: Path) -> Manifest:
    """Twelve films of real-looking names, without files."""
    films = []
    for number in range(12):
        label = number % 2
        name = f"person{number}_bacteria_{number}.jpeg" if label else f"IM-{number:04d}-0001.jpeg"
        split = ("train", "train", "train", "train", "train", "train", "train", "train", "val", "val", "test", "test")[
            number
        ]
        films.append(
            Film(
                path=f"train/{'PNEUMONIA' if label else 'NORMAL'}/{name}",
                label=label,
                patient=f"person{number}" if label else f"IM-{number:04d}",
                subtype="bacteria" if label else "normal",
                folder="train",
                group=f"group{number}",
                split=split,
                sha256=f"{number:064x}",
                bytes=1000 + number,
                width=64,
                height=48,
                mode="L",
            )
        )
    return Manifest(str(root), tuple(sorted(films, key=lambda film: film.path)))


#: Digest of the storage of the studies of ``finished_run``.
STORAGE_DIGEST = "a" * 16
CONFIG = override(
    Config(),
    {"image.size": 32, "lora.rank": 2, "training.device": "cpu", "tracking.system_interval": 0.0}
    | {"data.root": "/a/b/films"},
)


@cache
def base() -> Base:
    return random_base(0)


def make_adapter(folder: Path, seed: int = 0, f1: float = 0.75) -> Path:
    """A real adapter bundle whose head is that of ``seed``."""
    config = override(CONFIG, {"training.seed": seed})
    network = attach(base(), config)
    scores = {"val.f1": f1, "val.auc": 0.9, "best.epoch": 2.0}
    bundle = replace(make_bundle(base(), config, 48), threshold=0.4, temperature=1.25, scores=scores)
    return save_bundle(network, folder / f"seed-{seed}" / "adapter", bundle)


def film(seed: int = 0, side: int = 60) -> bytes:
    """A grey PNG of smooth noise."""
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((side, side + 7), Image.Resampling.BICUBIC).save(buffer, format="PNG")
    return buffer.getvalue()


def base64_film(seed: int = 0) -> str:
    return base64.b64encode(film(seed)).decode()


def finished_run(connection: Connection, folder: Path, study: str, seed: int = 0, f1: float = 0.75) -> tuple[str, Path]:
    """A finished trial with an adapter among its artifacts: its run and the local bundle."""
    adapter = make_adapter(folder / study, seed, f1)
    tags = {"xray_opt.study": study, "xray_opt.study_id": f"id of {study}", "xray_opt.storage": STORAGE_DIGEST}
    tags |= {"xray_opt.manifest_sha256": "d" * 64}
    tags |= {"xray_opt.base_sha256": base().sha256}
    own = tags | {"xray_opt.trial": str(seed)}
    with (
        Tracking.open(connection, study, tags) as tracking,
        tracking.run(f"trial-{seed:03d}", CONFIG, {"lora.rank": 2}, own) as run,
    ):
        run.log_folder(adapter, "adapter")
        run.log_metrics({"best.f1": f1, "best.auc": 0.9})
    return run.id, adapter


def blank_versions(connection: Connection, name: str, count: int) -> list[Version]:
    """Versions without files: enough for what concerns aliases alone."""
    connection.client.create_registered_model(name)
    made = []
    for number in range(count):
        with Tracking.open(connection, f"{name}-{number}", {}) as tracking:
            source = connection.client.get_run(tracking.parent_id).info.artifact_uri
            run_id = tracking.parent_id
        found = connection.client.create_model_version(name, source, run_id)
        made.append(Version(name, str(found.version), run_id))
    return made
