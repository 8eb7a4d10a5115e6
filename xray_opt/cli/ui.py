"""``ui``: MLflow and optuna-dashboard on the embedded stores."""

from __future__ import annotations

import click

from xray_opt.cli.options import storage_option, tracking_option


@click.command()
@click.option("--mlflow-port", type=click.IntRange(1, 65535), default=5000, show_default=True, help="Port of MLflow.")
@click.option(
    "--dashboard-port", type=click.IntRange(1, 65535), default=8080, show_default=True, help="Port of the dashboard."
)
@storage_option
@tracking_option
def ui(mlflow_port: int, dashboard_port: int, storage: str | None, uri: str | None) -> None:
    """Start both UIs on 127.0.0.1 until Ctrl-C."""
    from xray_opt.config import Workspace
    from xray_opt.interfaces import serve_interfaces

    serve_interfaces(Workspace.here(), mlflow_port, dashboard_port, click.echo, storage, uri)
