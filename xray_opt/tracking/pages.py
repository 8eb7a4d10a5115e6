"""A run's page in MLflow's UI, and what a run says of its trial's page in optuna-dashboard."""

from __future__ import annotations

import os
from collections.abc import Mapping

from xray_opt.mlflow_client import Connection

#: Tag of a run: the page of its trial.
PAGE = "xray_opt.dashboard"
#: Where ``xray-opt ui`` serves MLflow.
EMBEDDED = "http://127.0.0.1:5000"
#: MLflow's tag of a run's description.
DESCRIPTION = "mlflow.note.content"


def run_page(connection: Connection, experiment_id: str, run_id: str) -> str:
    """URL of a run: in the UI that ``XRAY_OPT_MLFLOW_URL`` names, else on its server, else in that of ``xray-opt ui``.

    A worker inside a network may know its server by another name than people's browsers do: hence the variable.
    """
    server = connection.shown if connection.uri.startswith(("http://", "https://")) else EMBEDDED
    root = (os.environ.get("XRAY_OPT_MLFLOW_URL") or server).rstrip("/")
    return f"{root}/#/experiments/{experiment_id}/runs/{run_id}"


def page_tags(study: str, number: int, page: str) -> dict[str, str]:
    """Tags of a trial's run that lead to the trial's ``page``: the plain URL, and a description for MLflow's UI."""
    return {PAGE: page, DESCRIPTION: f"[Trial {number} of study {study} in optuna-dashboard]({page})"}


def moved_page_tags(tags: Mapping[str, str], study: str, number: int, page: str) -> dict[str, str]:
    """``page_tags`` of a run whose trial has another page now; what people wrote into the description stays."""
    before, words = tags.get(PAGE), tags.get(DESCRIPTION)
    fresh = page_tags(study, number, page)
    return fresh if words is None else fresh | {DESCRIPTION: words.replace(before, page) if before else words}
