"""Checks of the machine: Python, packages, GPU and driver, disk space, Docker, ports."""

from __future__ import annotations

import json
import os
import platform
import runpy
import shutil
import socket
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution, version
from importlib.util import find_spec
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from xray_opt.config import Workspace
from xray_opt.doctor.findings import ERROR, OK, WARNING, Finding

#: Bytes that a study may need: checkpoints, adapters and runs; scratch copies of a model.
STUDY, SCRATCH = 2 << 30, 1 << 29
#: Seconds for each of Docker's two answers.
PATIENCE = 5
#: Ports that ``xray-opt ui`` uses, and a path at which the program there answers without login.
PORTS = {"MLflow": (5000, "/health", "--mlflow-port"), "optuna-dashboard": (8080, "/api/meta", "--dashboard-port")}


def check_python() -> Iterator[Finding]:
    """The interpreter's version against what the package declares."""
    wanted = str(distribution("xray-opt").metadata["Requires-Python"] or "")
    here = platform.python_version()
    if SpecifierSet(wanted).contains(here, prereleases=True):
        yield Finding(OK, "python", f"{here} on {platform.system()} {platform.machine()}")
    else:
        yield Finding(ERROR, "python", f"{here}, xray-opt needs {wanted}", "make the environment with such a Python")


def check_packages() -> Iterator[Finding]:
    """Every installed requirement against its declared range; torch and torchvision must be a pair."""
    wrong = []
    declared = [Requirement(line) for line in distribution("xray-opt").requires or ()]
    for need in declared:
        optional = need.marker is not None and not need.marker.evaluate({"extra": ""})
        try:
            have = version(need.name)
        except PackageNotFoundError:
            wrong += [] if optional else [f"{need.name} is missing"]
            continue
        if not need.specifier.contains(have, prereleases=True):
            wrong.append(f"{need.name} {have}, needs {need.specifier}")
    wrong += _unpaired()
    if wrong:
        yield Finding(ERROR, "packages", "; ".join(wrong), "make setup, or install xray-opt anew into this environment")
    else:
        yield Finding(OK, "packages", f"{len(declared)} requirements hold; torch {version('torch')}")


def _unpaired() -> list[str]:
    """torchvision's files fit one torch alone, and one build of it."""
    vision, torch = distribution("torchvision"), version("torch")
    wanted = [need for need in map(Requirement, vision.requires or ()) if need.name == "torch"]
    if not all(need.specifier.contains(torch.partition("+")[0], prereleases=True) for need in wanted):
        return [f"torchvision {vision.version} needs torch{wanted[0].specifier}, not {torch}"]
    builds = [name.partition("+")[2] for name in (torch, vision.version)]
    return [f"torch {torch} and torchvision {vision.version} are different builds"] if builds[0] != builds[1] else []


def check_gpu() -> Iterator[Finding]:
    """Graphics cards, their driver, and whether torch's CUDA build runs on it."""
    import pynvml

    build = torch_cuda()
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        fix = "fine for studies/laptop.yaml; for 384 px install NVIDIA's driver (in a container: its runtime)"
        yield Finding(WARNING, "gpu", f"none: training runs on the CPU ({error})", fix)
        return
    driver, highest = pynvml.nvmlSystemGetDriverVersion(), pynvml.nvmlSystemGetCudaDriverVersion() // 1000
    for index in range(pynvml.nvmlDeviceGetCount()):
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        name = pynvml.nvmlDeviceGetName(handle)
        yield Finding(OK, "gpu", f"{index}: {name}, {_size(memory.free)} of {_size(memory.total)} free")
    if build is None:
        yield Finding(ERROR, "cuda", "a GPU is here, but torch is built without CUDA", "install torch's CUDA build")
    elif int(build.partition(".")[0]) > highest:
        text = f"torch is built for CUDA {build}, driver {driver} knows {highest} at most"
        yield Finding(ERROR, "cuda", text, "update NVIDIA's driver")
    else:
        yield Finding(OK, "cuda", f"driver {driver}, torch built for CUDA {build}")


def torch_cuda() -> str | None:
    """CUDA version that torch was built for, read from its files: importing it takes seconds."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    value = runpy.run_path(str(Path(spec.origin).with_name("version.py"))).get("cuda")
    return None if value is None else str(value)


def check_disk(workspace: Workspace, weights: Path) -> Iterator[Finding]:
    """Free space of workspace, weight cache and scratch folder, and whether they may be written."""
    places = {"workspace": (workspace.root, STUDY), "scratch": (Path(tempfile.gettempdir()), SCRATCH)}
    places["weight cache"] = (weights, 0 if weights.exists() else 100 << 20)
    for name, (path, need) in places.items():
        there = next(folder for folder in (path, *path.parents) if folder.is_dir())
        free = shutil.disk_usage(there).free
        text = f"{name} {path}: {_size(free)} free"
        if not os.access(there, os.W_OK):
            yield Finding(ERROR, "disk", f"{name} {path} may not be written", f"give your user write access to {there}")
        elif free < need:
            yield Finding(ERROR, "disk", f"{text}, needs {_size(need)}", "free some space, or xray-opt gc")
        else:
            yield Finding(OK, "disk", text)


def check_docker() -> Iterator[Finding]:
    """Docker's engine and its compose plugin."""
    optional = "only needed where the service runs: install Docker Engine with the compose plugin, and start it"
    if shutil.which("docker") is None:
        yield Finding(WARNING, "docker", "no docker command", optional)
        return
    engine = _said("docker", "version", "--format", "{{.Server.Version}}")
    compose = _said("docker", "compose", "version", "--short")
    if engine and compose:
        yield Finding(OK, "docker", f"engine {engine}, compose {compose}")
    else:
        missing = "its engine does not answer" if not engine else "the compose plugin is missing"
        yield Finding(WARNING, "docker", missing, optional)


def check_ports() -> Iterator[Finding]:
    """Whether the ports of the two interfaces are free, or held by these very programs."""
    for name, (port, path, option) in PORTS.items():
        what = f"port {port}"
        if _is_free(port):
            yield Finding(OK, what, f"free for {name}")
        elif _is_ours(port, path):
            yield Finding(OK, what, f"{name} answers there")
        else:
            yield Finding(WARNING, what, "taken by another program", f"xray-opt ui {option} PORT, or end that program")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _is_ours(port: int, path: str) -> bool:
    """Whether MLflow or optuna-dashboard answers; behind the service's login the dashboard says 401."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=3) as answer:
            text = answer.read(1000).decode("utf-8", "replace")
    except urllib.error.HTTPError as error:
        return error.code == 401
    except (OSError, ValueError):
        return False
    return text.strip() == "OK" if path == "/health" else _is_object(text)


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def _said(*command: str) -> str:
    """A command's one line; empty where it fails or does not answer."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _size(count: int) -> str:
    return f"{count / (1 << 30):.1f} GiB"
