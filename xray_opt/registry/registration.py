"""Registering a run's adapter as a models-from-code pyfunc that needs nothing but MLflow to load.

The model is saved to a folder, uploaded and registered by explicit calls of the client: ``Model.log`` would do the same
through MLflow's global tracking URI, which threads share.
"""

from __future__ import annotations

import base64
import json
import shutil
import tempfile
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import mlflow.pyfunc
import pandas as pd
from mlflow.entities import LoggedModel, LoggedModelOutput, Run
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, DataType, Schema

import xray_opt
from xray_opt.adapter import Bundle, read_bundle
from xray_opt.backbone import Base, save_base
from xray_opt.errors import BaseMismatch
from xray_opt.faults import disk_faults
from xray_opt.mlflow_client import EXISTS, Connection, speaking
from xray_opt.registry.versions import ROBUST, Version, as_version, settle_alias, version_for_run

PACKAGE = Path(xray_opt.__file__).parent
#: What the code of a model imports; their versions are pinned to those of the training.
REQUIREMENTS = (
    *("mlflow", "torch", "torchvision", "peft", "safetensors", "numpy", "pandas", "pillow", "pyyaml"),
    *("scikit-learn", "pydicom"),
)
COMMIT = "mlflow.source.git.commit"
SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec(DataType.string, name, required=False) for name in ("image", "path")]),
    outputs=Schema(
        [
            ColSpec(DataType.double, "probability"),
            ColSpec(DataType.string, "label"),
            ColSpec(DataType.double, "threshold"),
        ]
    ),
)


def register(
    connection: Connection,
    run_id: str,
    bundle_folder: Path,
    base: Base,
    name: str,
    tags: Mapping[str, str],
    example_image: bytes,
) -> Version:
    """Register a run's adapter under ``name``; the first version is ``champion``, a later one ``candidate``.

    Safe to repeat: a run that has a version already keeps it, only its alias is repaired.

    Args:
        bundle_folder: local copy of the run's adapter bundle.
        base: the weights the adapter was trained on.
        tags: study, trial, digests; git commit, validation scores and what changed films cost are added.
        example_image: a made-up film (JPEG or PNG) for the input example, never a patient's.

    Raises:
        BaseMismatch: ``base`` is not the adapter's.
        TrackingError: MLflow refuses.
    """
    made = version_for_run(connection, name, run_id)
    if made is None:
        bundle = read_bundle(bundle_folder)
        if bundle.base_sha256 != base.sha256:
            raise BaseMismatch(f"cannot register {name}: the adapter of run {run_id} was trained on another base")
        with speaking(connection.uri, f"register the adapter of run {run_id} as {name}"):
            made = _register(connection, run_id, bundle_folder, bundle, base, name, tags, example_image)
    settle_alias(connection, made)
    return made


def _register(
    connection: Connection,
    run_id: str,
    bundle_folder: Path,
    bundle: Bundle,
    base: Base,
    name: str,
    tags: Mapping[str, str],
    example_image: bytes,
) -> Version:
    client = connection.client
    _ensure_model(connection, name, bundle.classes[1])
    run = client.get_run(run_id)
    facts = {key: f"{value:.6f}" for key, value in bundle.scores.items() if key.startswith("val.")}
    facts |= dict(tags) | {"xray_opt.base_sha256": base.sha256}
    if commit := run.data.tags.get(COMMIT):
        facts["git_commit"] = commit
    facts |= {key: value for key, value in run.data.tags.items() if key.startswith(ROBUST)}
    model = _log_model(connection, run, name, facts, bundle_folder, base, example_image)
    made = client.create_model_version(
        name,
        # MLflow's own database store would look up "models:/ID" through the global tracking URI.
        source=model.artifact_location,
        run_id=run_id,
        tags=facts,
        description=_description(run, facts),
        model_id=model.model_id,
    )
    link = [{"name": name, "version": str(made.version)}]
    client.set_logged_model_tags(model.model_id, {"mlflow.modelVersions": json.dumps(link)})
    return as_version(made)


def _ensure_model(connection: Connection, name: str, positive: str) -> None:
    try:
        connection.client.create_registered_model(
            name, description=f"Chest X-ray → probability of {positive}. Research only, not for clinical use."
        )
    except MlflowException as error:
        if error.error_code != EXISTS:
            raise


def _description(run: Run, facts: Mapping[str, str]) -> str:
    where = f"{facts.get('xray_opt.study') or 'run'} {run.info.run_name or run.info.run_id}"
    score = facts.get("val.f1")
    return f"{where}: val F1 {float(score):.4f} at 0.5" if score else where


def _log_model(
    connection: Connection,
    run: Run,
    name: str,
    facts: Mapping[str, str],
    bundle_folder: Path,
    base: Base,
    example_image: bytes,
) -> LoggedModel:
    """Make the LoggedModel whose files the version points at; PENDING until all are there, FAILED if that fails."""
    client = connection.client
    model = client.create_logged_model(
        run.info.experiment_id,
        name=name,
        source_run_id=run.info.run_id,
        tags={**facts, "xray_opt.role": "registered"},
        params=run.data.params,
        model_type="pyfunc",
    )
    try:
        with tempfile.TemporaryDirectory(prefix="xray-opt-") as scratch:
            with disk_faults():
                saved = save_pyfunc(Path(scratch), model, run.info.run_id, bundle_folder, base, example_image)
            client.log_model_artifacts(model.model_id, str(saved))
    except BaseException:
        client.finalize_logged_model(model.model_id, "FAILED")
        raise
    client.log_outputs(run.info.run_id, [LoggedModelOutput(model.model_id, step=0)])
    return client.finalize_logged_model(model.model_id, "READY")


def save_pyfunc(
    scratch: Path, model: LoggedModel, run_id: str, bundle_folder: Path, base: Base, example_image: bytes
) -> Path:
    """Write the MLflow model folder below ``scratch``: served_model.py, code, base, bundle, signature, requirements."""
    weights = save_base(base.without_lists(), scratch / "base.safetensors")
    folder = scratch / "model"
    mlflow.pyfunc.save_model(
        str(folder),
        python_model=str(PACKAGE / "served_model.py"),
        artifacts={"base": str(weights), "bundle": str(bundle_folder)},
        code_paths=[str(_copy_code(scratch / "code"))],
        signature=SIGNATURE,
        input_example=pd.DataFrame({"image": [base64.b64encode(example_image).decode("ascii")]}),
        pip_requirements=requirements(),
        mlflow_model=Model(
            artifact_path=model.artifact_location, run_id=run_id, model_uuid=model.model_id, model_id=model.model_id
        ),
    )
    for cached in folder.rglob("__pycache__"):
        shutil.rmtree(cached)
    return folder


def _copy_code(folder: Path) -> Path:
    """The package's Python files, from a checkout or an installed wheel alike."""
    target = folder / PACKAGE.name
    for source in sorted(PACKAGE.rglob("*.py")):
        copy = target / source.relative_to(PACKAGE)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, copy)
    return target


def requirements() -> list[str]:
    """Pinned requirements of a served model; a build tag such as ``+cpu`` is left out, other machines have others."""
    pinned = []
    for package in REQUIREMENTS:
        try:
            pinned.append(f"{package}=={version(package).partition('+')[0]}")
        except PackageNotFoundError:
            continue
    return pinned
