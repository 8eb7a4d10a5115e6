"""A trial's page in optuna-dashboard, and the note there that leads on to its run in MLflow."""

from __future__ import annotations

import os

import optuna

#: User attribute of a trial: the page of its MLflow run.
PAGE = "mlflow_page"
#: Where ``xray-opt ui`` serves the dashboard.
DASHBOARD = "http://127.0.0.1:8080"


def trial_page(study_id: int, number: int) -> str:
    """URL of a trial in the dashboard that ``XRAY_OPT_DASHBOARD_URL`` names, else in that of ``xray-opt ui``."""
    dashboard = (os.environ.get("XRAY_OPT_DASHBOARD_URL") or DASHBOARD).rstrip("/")
    return f"{dashboard}/dashboard/studies/{study_id}/trials?numbers={number}"


def note_page(trial: optuna.Trial, page: str) -> None:
    """Keep the page of a trial's MLflow run as its user attribute and, for people, as its note in the dashboard."""
    from optuna_dashboard import save_note  # a web server comes with it

    trial.set_user_attr(PAGE, page)
    save_note(trial, f"[Run of trial {trial.number} in MLflow]({page})")
