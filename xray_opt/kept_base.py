"""The base weights of a study: those it started with, whatever a path or a library holds by now.

Random and own weights are kept once a study, beside its checkpoints; ImageNet's are verified by their digest anyway.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from xray_opt.backbone import Base, load_base, read_base, save_base
from xray_opt.config import StudyConfig, Workspace
from xray_opt.errors import ModelError
from xray_opt.tuning import OpenStudy, study_notes

#: Study notes: digest of the base weights, and where they came from.
SHA256, ORIGIN = "base_sha256", "base_origin"


def fresh_base(study: StudyConfig, workspace: Workspace) -> Base | None:
    """The weights that the settings name, read before the study is made; none where the study keeps its own already.

    Raises:
        ModelError: they cannot be had.
        StudyError: the storage is away.
    """
    known = study_notes(study.name, workspace, study.storage).get(SHA256)
    if known and kept_path(study.name, workspace, str(known)).is_file():
        return None
    return load_base(study.config.model)


def study_base(opened: OpenStudy, fresh: Base | None = None) -> Base:
    """The base weights of an open study; noted, and kept where they cannot be fetched again.

    Args:
        fresh: the weights that the settings name, where they have been read already.

    Raises:
        ModelError: the study was made on other weights.
    """
    study, workspace = opened.config, opened.workspace
    known = opened.notes.get(SHA256)
    kept = known and kept_path(study.name, workspace, str(known))
    if kept and kept.is_file():
        base = read_base(kept)
    else:
        base = fresh or load_base(study.config.model)
        if base.origin != "imagenet":
            save_base(base, kept_path(study.name, workspace, base.sha256))
    if known and base.sha256 != known:
        raise ModelError(
            f"study {study.name} was made on base weights {str(known)[:12]}, these are {base.sha256[:12]}: "
            "give the former with --weights PATH, or start another study with --name"
        )
    opened.annotate(SHA256, base.sha256)
    origin = str(opened.notes.get(ORIGIN) or base.origin)
    opened.annotate(ORIGIN, origin)
    return replace(base, origin=origin)


def log_base(base: Base, log: Callable[[Path, str], None]) -> None:
    """Keep base weights that cannot be fetched again with a run (``log``: file, folder), without the films they saw."""
    if base.origin != "imagenet":
        with tempfile.TemporaryDirectory(prefix="xray-opt-") as folder:
            log(save_base(base.without_lists(), Path(folder) / "base.safetensors"), "base")


def kept_path(study: str, workspace: Workspace, sha256: str) -> Path:
    """Where a study keeps a copy of its base; by digest, as studies of one name in two storages share the folder."""
    return workspace.study_folder(study) / f"base-{sha256[:16]}.safetensors"
