"""Fixtures of several rooms: MLflow stores, and a workspace in which the whole job was done once on made-up films."""

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import hypothesis
import pytest

from xray_opt.config import TrackingConfig, Workspace
from xray_opt.phantom import make_phantoms

# How long an example takes is the machine's affair.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")

# Shells start background jobs with SIGINT ignored, nohup ignores SIGHUP, and children inherit that, but no handler.
# (Not ``preexec_fn``: it forks, and gRPC's fork handlers may abort that child.)
for _number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(_number) == signal.SIG_IGN:
        signal.signal(_number, lambda number, frame: None)

STUDY = """
# xray-opt tune --study tiny: as small as the whole job gets
name: tiny
trials: 3
config:
  data: {train_films: 40, val_films: 24}
  image: {size: 32}
  model: {base: random, batch_norm: train}
  lora: {rank: 4, stages: late}
  training: {epochs: 2, batch_size: 20, device: cpu}
  tracking: {system_interval: 1.0}
space:
  optimizer.learning_rate: {type: float, low: 1.0e-4, high: 1.0e-2, log: true}
  lora.rank: {type: categorical, choices: [2, 4]}
sampler: {name: tpe, startup_trials: 2}
pruner: {name: none}
enqueue:
  - {optimizer.learning_rate: 2.0e-3, lora.rank: 4}
"""


@dataclass(frozen=True)
class Place:
    """A workspace and the command line in it."""

    workspace: Workspace
    films: Path

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "xray_opt", *arguments]

    def environment(self) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_TRACKING", "XRAY_OPT_"))}
        threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2")}
        return kept | threads | {"XRAY_OPT_HOME": str(self.workspace.root), "COLUMNS": "80"}

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The command in this process, which spares its imports; :meth:`fresh` is for what must not know the past."""
        from xray_opt.cli import main

        out, err, code = io.StringIO(), io.StringIO(), 0
        before = Path.cwd(), sys.argv, sys.stdin, sys.unraisablehook
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        wanted = self.environment()
        kept = {key: os.environ.get(key) for key in wanted.keys() | os.environ.keys()}
        apply_environment({key: wanted.get(key) for key in kept})
        os.chdir(self.workspace.root)
        sys.argv, sys.stdin = ["xray-opt", *arguments], io.StringIO()
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                main()
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            apply_environment(kept)  # what an import added meanwhile stays: it is imported once
            forget_env_file(kept)
            os.chdir(before[0])
            sys.argv, sys.stdin, sys.unraisablehook = before[1:]
            for number, handler in handlers.items():
                signal.signal(number, handler)
        return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())

    def fresh(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The command as a user runs it, in a process of its own."""
        return subprocess.run(
            self.command(*arguments),
            cwd=self.workspace.root,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=500,
        )

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(*arguments),
            cwd=self.workspace.root,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def json(self, *arguments: str):
        done = self.run(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


def forget_env_file(kept: dict[str, str | None]) -> None:
    """Take away what the command took from its workspace's ``.env``: the next test has another workspace."""
    for key in set(os.environ) - set(kept):
        if key.startswith(("MLFLOW_TRACKING", "XRAY_OPT_")):
            del os.environ[key]


def apply_environment(values: dict[str, str | None]) -> None:
    for key, value in values.items():
        if value is None:
            os.environ.pop(key, None)
        else:
            os.environ[key] = value


@cache
def drawn(count: int, seed: int) -> tempfile.TemporaryDirectory[str]:
    """Phantoms, drawn once a process: each takes 30 ms."""
    folder = tempfile.TemporaryDirectory(prefix="xray-opt-phantoms-")
    make_phantoms(Path(folder.name), count, seed)
    return folder


def put_phantoms(folder: Path, count: int, seed: int) -> None:
    """What ``make_phantoms`` makes, as copies, which a test may change."""
    shutil.copytree(drawn(count, seed).name, folder)


def make_place(root: Path, stored: bool = True) -> Place:
    """A prepared workspace with films and the study ``tiny``; ``stored``: with MLflow's tables, which take 2 s."""
    from mlflow_stores import template

    root.mkdir(parents=True, exist_ok=True)
    place = Place(Workspace(root.resolve()), root.resolve() / "films")
    place.workspace.studies.mkdir()
    (place.workspace.studies / "tiny.yaml").write_text(STUDY)
    put_phantoms(place.films, 60, 1)
    if stored:
        shutil.copytree(template().folder / "mlruns", place.workspace.mlruns)
    prepared = place.run("data", "prepare", "films")
    assert prepared.returncode == 0, prepared.stderr
    return place


def pytest_runtest_setup(item):
    """Where the time for a run is limited, what would begin behind its end is not begun, and is named."""
    until = os.environ.get("XRAY_OPT_TESTS_UNTIL")
    if until and time.time() > float(until):
        pytest.skip("NOT run: the time for these tests is over (XRAY_OPT_TESTS_UNTIL)")


@pytest.fixture
def place(tmp_path) -> Iterator[Place]:
    """A fresh prepared workspace of one's own."""
    yield make_place(tmp_path / "own")
    if "forked" in sys.modules:
        sys.modules["forked"].end_all()


@pytest.fixture(scope="session")
def tuned(tmp_path_factory) -> tuple[Place, dict, str]:
    """The workspace after ``tune --study tiny``, what it printed as JSON, and its progress lines.

    Tests may add to it (another study, an opening of the test split) but not change study ``tiny``.
    """
    place = make_place(tmp_path_factory.mktemp("tuned"), stored=False)  # as a user's first study
    done = place.fresh("tune", "--study", "tiny", "--json")
    assert done.returncode == 0, done.stderr
    return place, json.loads(done.stdout), done.stderr


@pytest.fixture(scope="session")
def stack(tmp_path_factory) -> Iterator["Stack"]:  # noqa: F821
    """The service after ``xray-opt up`` in a prepared workspace with made-up films; needs a Docker engine."""
    from service_stack import running_stack, without_engine

    if reason := without_engine():
        pytest.skip(reason)
    with running_stack(make_place(tmp_path_factory.mktemp("service") / "own", stored=False)) as one:
        yield one


@pytest.fixture(scope="session")
def tuned_here(stack) -> dict:
    """A study of four trials on the service, run by a client on this machine."""
    return stack.tune("--study", "tiny", "--trials", "4", "--name", "from-the-host")


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator["Cluster"]:  # noqa: F821
    """A Ray cluster of one core, to which tests add nodes; skips where Ray is missing."""
    from ray_cluster import WHY, running_cluster

    pytest.importorskip("ray", reason=WHY)
    with running_cluster() as one:
        yield one


@pytest.fixture(scope="module")
def browser():
    """Debian's Chromium; the modules that use it skip where it or playwright is missing."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        one = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield one
        one.close()


@pytest.fixture(scope="session")
def server(tmp_path_factory) -> Iterator[str]:
    """URI of a real MLflow server. Its start takes seconds: all tests of a process share it, by names of their own."""
    from mlflow_stores import tracking_server

    with tracking_server(tmp_path_factory.mktemp("server")) as uri:
        yield uri


@pytest.fixture(scope="module")
def postgresql() -> Iterator["Server"]:  # noqa: F821
    """A PostgreSQL of the module's own, as its tests stop it and start it again; skips where it is missing."""
    from postgres_server import postgres

    with postgres() as one:
        yield one


@pytest.fixture(params=["embedded", pytest.param("server", marks=pytest.mark.slow)])
def connection(request, tmp_path):
    """A connection to an embedded store of the test's own, and to the server that all share."""
    from mlflow_stores import embedded

    if request.param == "embedded":
        return embedded(tmp_path)
    from xray_opt.mlflow_client import connect

    return connect(TrackingConfig(uri=request.getfixturevalue("server")), Workspace(tmp_path / "workspace"))


@pytest.fixture
def reported(record_property):
    """Puts what a fuzzer fed, and what came of it, into the report at the end."""
    return lambda tally: record_property("fuzz", json.dumps(tally.row()))


def pytest_terminal_summary(terminalreporter):
    rows = [
        json.loads(value)
        for reports in terminalreporter.stats.values()
        for report in reports
        if getattr(report, "when", "") == "call"
        for name, value in report.user_properties
        if name == "fuzz"
    ]
    if not rows:
        return
    write = terminalreporter.write_line
    write(f"{'fuzzed':<14}{'cases':>8}{'accepted':>10}{'refused':>9}{'faults':>8}{'s':>8}  kinds")
    columns = ("cases", "accepted", "refused", "faults", "seconds")
    for row in sorted(rows, key=lambda row: row["fuzzer"]):
        kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(row["kinds"].items(), key=lambda one: -one[1]))
        figures = (row[column] for column in columns)
        write("{:<14}{:>8}{:>10}{:>9}{:>8}{:>8}  ".format(row["fuzzer"], *figures) + kinds)
    total = {column: sum(row[column] for row in rows) for column in columns}
    write("{:<14}{:>8}{:>10}{:>9}{:>8}{:>8.0f}".format("all", *total.values()))
