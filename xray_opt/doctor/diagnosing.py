"""All checks together."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import suppress
from functools import partial

from xray_opt.config import StudyConfig, Workspace, find_study, load_environment, load_study
from xray_opt.doctor.findings import ERROR, OK, WARNING, Check, Finding, run_checks
from xray_opt.doctor.machine import check_disk, check_docker, check_gpu, check_packages, check_ports, check_python
from xray_opt.doctor.stores import check_films, check_storage, check_tracking, check_weights
from xray_opt.errors import ConfigError, XrayError, one_line
from xray_opt.places import Place, find_place

#: Seconds that all checks, side by side, may take.
PATIENCE = 15.0
#: What some checks import: seconds of work that no deadline should count.
HEAVY = ("xray_opt.tracking", "xray_opt.backbone")


def diagnose(workspace: Workspace, study: str | None = None, patience: float | None = None) -> list[Finding]:
    """Check machine, packages, films, weights and stores; nothing is made but one small artifact, which is deleted.

    Args:
        study: name or file of a study whose films, weights and stores are meant; none means the defaults.
        patience: seconds after which a check that has not answered is an error; none means 15.
    """
    first = list(_environment(workspace))
    try:
        place, config = find_place(workspace, study), _config(study, workspace)
    except XrayError as error:
        first.append(Finding(ERROR, "study", one_line(error), "name a study or its file with --study"))
        place, config = Place(), None
    for name in HEAVY:
        with suppress(Exception):  # the check that needs it says what is wrong
            importlib.import_module(name)
    checks: dict[str, Check] = {
        "python": check_python,
        "packages": check_packages,
        "gpu": check_gpu,
        "disk": partial(_disk, workspace),
        "weights": partial(check_weights, config),
        "films": partial(check_films, config, workspace),
        "tracking": partial(check_tracking, place, workspace),
        "storage": partial(check_storage, place, workspace),
        "docker": check_docker,
        "ports": check_ports,
    }
    return first + run_checks(checks, PATIENCE if patience is None else patience)


def _environment(workspace: Workspace) -> Iterator[Finding]:
    path, said = workspace.root / ".env", list[str]()
    try:
        load_environment(workspace, said.append)
    except ConfigError as error:
        yield Finding(ERROR, ".env", str(error), "mend the line, or move the file away")
        return
    for line in said:
        yield Finding(WARNING, ".env", line.partition(": ")[0], line.partition(": ")[2])
    if path.exists() and not said:
        yield Finding(OK, ".env", f"{path} is read")


def _config(study: str | None, workspace: Workspace) -> StudyConfig | None:
    """The study's file, where it has one of its name."""
    if study is None:
        return None
    with suppress(ConfigError):
        return load_study(find_study(study, workspace))
    return None


def _disk(workspace: Workspace) -> Iterator[Finding]:
    from xray_opt.backbone import weight_cache

    yield from check_disk(workspace, weight_cache())
