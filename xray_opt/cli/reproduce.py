"""``reproduce``: does a recorded run come out again?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from xray_opt.cli.options import Number, as_json, of_study, tracking_option
from xray_opt.cli.output import print_json
from xray_opt.cli.progress import Progress
from xray_opt.errors import XrayError

if TYPE_CHECKING:
    from xray_opt.reproduce import Reproduction
    from xray_opt.trainer import Epoch


@click.command()
@click.argument("run")
@click.option("--data", metavar="PATH", help="Where the films lie now.")
@click.option(
    "--weights", type=click.Path(path_type=Path), help="The base weights, where MLflow and workspace have none."
)
@click.option(
    "--tolerance",
    type=Number(min=0),
    default=0.01,
    show_default=True,
    help="How far a score may be off where it is not equal; of losses, as a share of the largest recorded one.",
)
@click.option("--device", metavar="NAME", help="Another device than the recorded one.")
@of_study
@tracking_option
@as_json
def reproduce(
    run: str,
    data: str | None,
    weights: Path | None,
    tolerance: float,
    device: str | None,
    study_name: str | None,
    uri: str | None,
    as_json: bool,
) -> None:
    """Train RUN (the id of an MLflow run) anew and compare it with what was recorded; the study is not touched.

    Films, base weights and settings must be those of the run, which is checked first. With the same processor, threads
    and versions every value is equal bit for bit. Elsewhere, and on a GPU, it is within the tolerance, and learning
    rates are equal. If not, the first difference is named and the exit code is 1. A pruned or failed run is trained as
    far as it came.
    """
    from xray_opt.config import Workspace
    from xray_opt.places import find_place
    from xray_opt.reproduce import reproduce as rerun
    from xray_opt.reproduce.rerunning import RerunWatcher

    workspace, progress = Workspace.here(), Progress()

    def epoch(one: Epoch, recorded: int) -> None:
        progress.epochs = recorded
        progress.epoch(None, one)

    watcher = RerunWatcher(progress.say, progress.bar, epoch)
    place = find_place(workspace, study_name, uri=uri)
    found = rerun(run, workspace, data, weights, tolerance, device, place, watcher)
    if as_json:
        print_json(found.to_dict())
    else:
        _print(found)
    if not found.reproduced:
        raise XrayError(_refusal(found))


def _refusal(found: Reproduction) -> str:
    """What is not as recorded, in one line."""
    if found.beyond is not None:
        return f"run {found.run} is not reproduced: {found.beyond.text()}"
    first = found.first.text() if found.first else "nothing is named"
    return (
        f"run {found.run} is not reproduced bit for bit, though processor, threads, device and versions are those "
        f"recorded: {first}; a changed checkout (its tag xray_opt.git_changed) or a batch that was halved may be why"
    )


def _print(found: Reproduction) -> None:
    for name, recorded, here in found.environment:
        click.echo(f"differs: {name}: recorded {recorded}, here {here}")
    if not found.environment:
        click.echo("the same processor, threads, device and versions as recorded")
    end = {"FINISHED": "finished", "KILLED": "pruned", "FAILED": "failed"}.get(found.state, found.state)
    click.echo(f"run {found.run} ({end}): {found.epochs} of {found.recorded_epochs} epochs compared")
    if found.verdict == "equal":
        click.echo("equal bit for bit")
        return
    if found.first is not None:
        click.echo(f"first difference: {found.first.text()}")
    if found.largest is not None:
        click.echo(f"largest difference: {found.largest.text()}")
    if found.verdict in ("within", "unequal"):
        click.echo(f"all within {found.tolerance:g} (losses: of the largest recorded one)")
    if found.verdict == "within" and not found.environment:
        click.echo("a GPU adds in any order: only a CPU gives the same bits again")
