"""Checks of what a study works with: films, base weights, MLflow, the Optuna storage, and the clocks of both."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from xray_opt.config import DataConfig, ModelConfig, StudyConfig, TrackingConfig, Workspace
from xray_opt.doctor.findings import ERROR, OK, WARNING, Finding
from xray_opt.errors import DataError, StudyError
from xray_opt.places import Place
from xray_opt.tuning import probe_storage, storage_url

#: Seconds that clocks may differ: run times and dashboards look odd beyond, signatures of S3 are refused at 15 min.
SKEW, MOST_SKEW = 5.0, 300.0
#: Variables that hold a login of MLflow.
LOGIN = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_TOKEN")


def check_films(study: StudyConfig | None, workspace: Workspace) -> Iterator[Finding]:
    """Whether films were prepared, and are what they were then."""
    from xray_opt.dataset import kept_manifest

    again = "xray-opt data prepare FOLDER"
    try:
        manifest, untouched = kept_manifest(study.config.data if study else DataConfig(), workspace)
    except DataError as error:
        yield Finding(WARNING, "films", str(error), again)
        return
    if manifest is None and untouched:
        yield Finding(OK, "films", "found, not yet split with these settings: the next tune does it")
    elif manifest is None:
        yield Finding(WARNING, "films", "the manifest was changed or damaged", again)
    elif not untouched:
        text = f"{manifest.root} was changed since it was prepared: another set of films makes another study"
        yield Finding(WARNING, "films", text, f"bring the old films back, or {again}")
    else:
        yield Finding(OK, "films", f"{len(manifest.films)} in {manifest.root}, unchanged, split {manifest.sha256[:12]}")


def check_weights(study: StudyConfig | None) -> Iterator[Finding]:
    """Whether the base weights are on this machine, and are what they should be."""
    from xray_opt.backbone import kept_weights, read_base

    base = (study.config.model if study else ModelConfig()).base
    if base == "random":
        yield Finding(WARNING, "weights", "random ones, as the study says", "--set model.base=imagenet, for real use")
    elif base != "imagenet":
        yield Finding(OK, "weights", f"{base}, SHA-256 {read_base(Path(base)).sha256[:12]}")
    else:
        path, verified = kept_weights()
        if verified:
            yield Finding(OK, "weights", f"{path}, SHA-256 verified")
        elif path.exists():
            yield Finding(ERROR, "weights", f"{path} is not torchvision's ImageNet file", "remove it")
        else:
            yield Finding(WARNING, "weights", f"not on this machine ({path})", "xray-opt weights, or --weights PATH")


def check_tracking(place: Place, workspace: Workspace) -> Iterator[Finding]:
    """MLflow: reachable, login accepted, versions, and an artifact written, read and deleted."""
    from xray_opt.mlflow_client import connect
    from xray_opt.tracking import probe_server, round_trip

    tracking = _tracking(place, workspace)
    if _is_embedded(tracking, workspace) and not (workspace.mlruns / "mlflow.db").exists():
        yield Finding(OK, "tracking", f"embedded in {workspace.mlruns}, made by the first run")
        return
    connection = connect(tracking, workspace)
    if not connection.uri.startswith(("http://", "https://")):
        yield Finding(OK, "tracking", connection.shown)
        if connection.artifact_root is not None:
            yield _writable(connection.artifact_root)
        return
    facts = probe_server(connection)
    login = "login accepted" if any(os.environ.get(name) for name in LOGIN) else "no login asked"
    text = f"{connection.shown}, MLflow {facts.version}, {login}, {facts.seconds * 1000:.0f} ms"
    if facts.version.split(".")[:2] != facts.client.split(".")[:2]:
        text, fix = f"{text}; the client here is {facts.client}", "bring both to one version"
        yield Finding(WARNING, "tracking", text, fix)
    else:
        yield Finding(OK, "tracking", text)
    if facts.skew is not None:
        yield _clock("tracking", facts.skew)
    yield Finding(OK, "artifacts", f"written, read and deleted in {round_trip(connection):.1f} s")


def check_storage(place: Place, workspace: Workspace) -> Iterator[Finding]:
    """The Optuna storage: reachable, login accepted, may be written, of this Optuna's version."""
    facts = probe_storage(storage_url(workspace, place.storage))
    if facts.version is None:
        yield Finding(OK, "storage", f"{facts.shown}, made by the first study")
        return
    tables = "its tables are this Optuna's" if facts.made else "its tables are made by the first study"
    yield Finding(OK, "storage", f"{facts.shown}, {facts.version}, {tables}, {facts.seconds * 1000:.0f} ms")
    if facts.skew is not None:
        yield _clock("storage", facts.skew)


def _tracking(place: Place, workspace: Workspace) -> TrackingConfig:
    """The MLflow store that a study noted; the default where there is no such study yet, which makes no storage."""
    if place.study is not None and not probe_storage(storage_url(workspace, place.storage)).made:
        return TrackingConfig(uri=place.uri)
    with suppress(StudyError):
        return place.tracking(workspace)
    return TrackingConfig(uri=place.uri)


def _is_embedded(tracking: TrackingConfig, workspace: Workspace) -> bool:
    uri = tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")
    return not uri or uri == workspace.mlflow_uri


def _writable(folder: Path) -> Finding:
    if os.access(folder, os.W_OK):
        return Finding(OK, "artifacts", f"{folder} may be written")
    return Finding(ERROR, "artifacts", f"{folder} may not be written", "give your user write access to it")


def _clock(store: str, skew: float) -> Finding:
    """A finding on a store's clock, which is ``skew`` seconds ahead of ours."""
    text = f"{store}'s is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} ours"
    if abs(skew) <= SKEW:
        return Finding(OK, "clock", f"{store}'s agrees with ours")
    return Finding(ERROR if abs(skew) > MOST_SKEW else WARNING, "clock", text, "set both by NTP (timedatectl)")
