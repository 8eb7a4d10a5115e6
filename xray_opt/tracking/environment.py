"""What a run says of where it ran: user, host, git commit, package versions."""

from __future__ import annotations

import platform
import socket
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import xray_opt
from xray_opt.backbone import resolve_device
from xray_opt.errors import ConfigError
from xray_opt.mlflow_client import user_name

#: Packages whose versions may change a result.
PACKAGES = ("torch", "torchvision", "peft", "mlflow", "optuna", "numpy", "pillow", "scikit-learn")


def environment_tags() -> dict[str, str]:
    """Tags of every run; the commit is that of the code's checkout, else of the current folder's, else absent."""
    return _fixed_tags() | _commit_tags(Path(xray_opt.__file__).parent, Path.cwd())


@cache
def _fixed_tags() -> dict[str, str]:
    tags = {
        "mlflow.user": user_name(),
        "mlflow.source.name": "xray-opt",
        "mlflow.source.type": "LOCAL",
        "xray_opt.host": socket.gethostname(),
        "xray_opt.version": xray_opt.__version__,
        "version.python": platform.python_version(),
    }
    for package in PACKAGES:
        try:
            tags[f"version.{package}"] = version(package)
        except PackageNotFoundError:
            continue
    return tags


def machine_tags(device: str) -> dict[str, str]:
    """Tags of what a run computes on: results are equal to the bit where these, and the versions, are.

    Args:
        device: as ``training.device`` names it.
    """
    try:
        found = resolve_device(device)
    except ConfigError:  # training says so
        return {}
    name = f"{found.type} {torch.cuda.get_device_name(found)}" if found.type == "cuda" else found.type
    return {
        "xray_opt.cpu": _processor(),
        "xray_opt.cpu_instructions": torch.backends.cpu.get_cpu_capability(),
        "xray_opt.threads": str(torch.get_num_threads()),
        "xray_opt.device": name,
    }


@cache
def _processor() -> str:
    """Model of the processor, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())


@cache
def _commit_tags(package: Path, here: Path) -> dict[str, str]:
    for folder in (package, here):
        commit = _git(folder, "rev-parse", "HEAD")
        # An installed package below somebody's checkout (its .venv) is not that checkout's code.
        if commit and (folder == here or _git(folder, "ls-files", "--error-unmatch", "__init__.py")):
            changed = bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))
            return {"mlflow.source.git.commit": commit, "xray_opt.git_changed": str(changed).lower()}
    return {}


def _git(folder: Path, *arguments: str) -> str:
    """Output of a git command, empty where there is no git, no checkout or no commit."""
    try:
        answer = subprocess.run(["git", "-C", folder, *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""
