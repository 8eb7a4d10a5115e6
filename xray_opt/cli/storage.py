"""``storage``: the proxy in front of a study storage."""

from __future__ import annotations

import click

from xray_opt.cli.options import storage_option


@click.group()
def storage() -> None:
    """Serve a study storage to many workers."""


@storage.command()
@storage_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=13000, show_default=True, help="Port; 0 takes a free one."
)
def serve(storage: str | None, host: str, port: int) -> None:
    """Run Optuna's gRPC proxy in front of a PostgreSQL or SQLite storage until Ctrl-C.

    Workers name it as their storage, grpc://HOST:PORT. It also finds trials whose workers are lost and queues them
    again. There is no login and no encryption: for trusted networks only. Needs the extra grpc; docs/workers.md.
    """
    from xray_opt.config import Workspace
    from xray_opt.tuning import storage_url
    from xray_opt.tuning.serving import serve as run

    run(storage_url(Workspace.here(), storage), host, port, lambda line: click.echo(line, err=True))
