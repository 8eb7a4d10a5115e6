"""Makes the base weights of later studies from a model that was trained as a whole (``strategy: full``).

For sites that may not download ImageNet weights. The file carries what it was trained on, so that a later study on the
same patients is found out (``overlap``).
"""

from __future__ import annotations

import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from xray_opt import registry
from xray_opt.adapter import without_peft
from xray_opt.backbone import Ancestor, ancestor, file_sha256, read_base, save_base, trained_base
from xray_opt.config import Workspace
from xray_opt.errors import ConfigError, ModelError
from xray_opt.kept_base import kept_path
from xray_opt.mlflow_client import connect
from xray_opt.places import Place
from xray_opt.scoring import own_manifest
from xray_opt.tracking import MANIFEST


@dataclass(frozen=True)
class ExportedBase:
    """A file of base weights that was written.

    Attributes:
        sha256: of the weights, by which adapters and studies know them; ``file_sha256`` is that of the file.
        trained_on: the training that made it, and those of its own base before.
    """

    path: str
    sha256: str
    file_sha256: str
    origin: str
    trained_on: tuple[Ancestor, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, without the lists of films and patients."""
        return asdict(self) | {
            "trained_on": [
                {name: value for name, value in asdict(one).items() if name not in ("films", "patients")}
                for one in self.trained_on
            ]
        }


def export_base(
    model: str, out: Path, workspace: Workspace, place: Place = Place(), weights: Path | None = None
) -> ExportedBase:
    """Write the weights and BatchNorm statistics of a fully trained model as a base file.

    Args:
        model: id of a run, ``runs:/RUN_ID`` or MLflow model URI.
        out: new file, which ends in ``.safetensors``.
        weights: the base that the model itself was trained from, where its own films are not known here.

    Raises:
        ConfigError: the file exists, or has another ending.
        ModelError: the model was not trained as a whole, is damaged, or its films are not known here.
        TrackingError: no such model, or it was not finished.
    """
    if out.suffix != ".safetensors":
        raise ConfigError(f"--out {out}: base weights are kept as .safetensors")
    if out.exists():
        raise ConfigError(f"{out} exists already; base weights are never written over, name another file with --out")
    uri = f"runs:/{model}" if re.fullmatch(r"[0-9a-f]{32}", model) else model
    connection = connect(place.tracking(workspace), workspace)
    loaded = registry.load(connection, uri, torch.device("cpu"))
    if loaded.bundle.strategy != "full":
        raise ModelError(
            f"{model} was trained with strategy {loaded.bundle.strategy}: a base is a model that was trained as a "
            "whole, so train one with model.strategy=full"
        )
    manifest = own_manifest(loaded, connection, workspace)
    if manifest is None:
        raise ModelError(
            f"{model}: the films that it was trained on are not known here (split "
            f"{loaded.tags.get(MANIFEST, 'unknown')[:12]}), so later studies could not be kept from leaking; export it "
            "in the workspace that trained it"
        )
    own = ancestor(
        ((film.sha256, film.patient) for split in ("train", "val") for film in manifest.of(split)),
        loaded.run_id,
        loaded.tags.get("xray_opt.study", ""),
        (manifest.sha256, manifest.data_sha256),
        loaded.bundle.image_size,
        manifest.classes,
    )
    state = without_peft(loaded.predictor.network).features.state_dict(prefix="features.")
    base = trained_base(state, f"full, run {loaded.run_id[:8]}", (*_before(loaded, workspace, weights), own))
    try:
        path = save_base(base, out)
    except OSError as error:
        raise ConfigError(f"cannot write {out}: {error.strerror or error}; check free space and permissions") from error
    return ExportedBase(str(path), base.sha256, file_sha256(path), base.origin, base.trained_on)


def _before(loaded: registry.Loaded, workspace: Workspace, weights: Path | None) -> tuple[Ancestor, ...]:
    """The trainings of the model's own base, with their lists, which MLflow does not have.

    Raises:
        ModelError: no file here has them.
    """
    if not loaded.trained_on:
        return ()
    sha256, study = loaded.bundle.base_sha256, loaded.tags.get("xray_opt.study")
    for path in (weights, study and kept_path(study, workspace, sha256)):
        if path and os.path.isfile(path):
            base = read_base(Path(path))
            if base.sha256 == sha256 and all(one.is_listed for one in base.trained_on):
                return base.trained_on
    raise ModelError(
        f"this model was trained from base weights of one's own ({sha256[:12]}), and which films those were trained "
        "on is not known here: name their file with --weights PATH"
    )
