"""``serve``: a registered version behind HTTP."""

from __future__ import annotations

from pathlib import Path

import click

from xray_opt.cli.models import CHAMPION
from xray_opt.cli.options import of_study, tracking_option


@click.command()
@click.option("--model", default=CHAMPION, show_default=True, help="Registered version.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; there is no login.")
@click.option("--port", type=click.IntRange(1, 65535), default=5001, show_default=True, help="Port to listen on.")
@click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="Processes with the model.")
@click.option("--most-mib", type=click.IntRange(1, 2048), default=64, show_default=True, help="Largest request in MiB.")
@click.option("--films", type=click.Path(path_type=Path), help="Folder of films that requests may name by path.")
@of_study
@tracking_option
def serve(
    model: str,
    host: str,
    port: int,
    workers: int,
    most_mib: int,
    films: Path | None,
    study_name: str | None,
    uri: str | None,
) -> None:
    """Answer films over HTTP with MLflow's scoring server, until Ctrl-C. Not for clinical use.

    POST JSON to /invocations: {"dataframe_records": [{"image": "BASE64"}]}. The version is fixed when it starts: start
    it again when the champion has moved. docs/shipping.md tells what is answered to what.
    """
    from xray_opt.config import Workspace
    from xray_opt.places import find_place
    from xray_opt.serving import Served
    from xray_opt.serving import serve as start

    def say(served: Served) -> None:
        click.echo(f"version {served.version}: POST {served.url}")
        click.echo("Ctrl-C ends it; not for clinical use")

    workspace = Workspace.here()
    place = find_place(workspace, study_name, uri=uri)
    start(model, workspace, place, host, port, workers, most_mib, films, say)
