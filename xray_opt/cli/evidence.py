"""``finalize``: the one look at the test split; and how scores with intervals are printed."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import click

from xray_opt.cli.models import device_option, model_option, sensitivity_option
from xray_opt.cli.options import as_json, of_study, storage_option, tracking_option
from xray_opt.cli.output import print_baselines, print_json, print_level_table
from xray_opt.cli.progress import Progress
from xray_opt.cli.robust import print_subgroups, print_worst

if TYPE_CHECKING:
    from xray_opt.finalize import Final


@click.command()
@model_option
@sensitivity_option
@click.option("--why", help="Why the split is opened; written to study and run.")
@click.option("--again", is_flag=True, help="Open once more what was opened before; that is counted.")
@click.option("--robustness", is_flag=True, help="Also score changed films, as evaluate does, in the same opening.")
@click.option("--data", metavar="PATH", help="Where the films lie now.")
@device_option
@of_study
@storage_option
@tracking_option
@as_json
def finalize(
    model: str,
    sensitivity: float | None,
    why: str | None,
    again: bool,
    robustness: bool,
    data: str | None,
    device: str,
    study_name: str | None,
    storage: str | None,
    uri: str | None,
    as_json: bool,
) -> None:
    """Open the sealed test split once for the chosen model: all scores with 95 % intervals, beside trivial models.

    Threshold and temperature were fixed on validation. The opening is recorded for good, by its films; a second call
    shows the record, and another model of this or any study on the same films is refused. docs/statistics.md tells how
    the intervals are made.
    """
    from xray_opt.config import Workspace
    from xray_opt.finalize import finalize as open_test
    from xray_opt.places import find_place

    place = find_place(Workspace.here(), study_name, storage, uri)
    bar = Progress().bar
    reason = {"why": why} if why else {}
    say = lambda line: click.echo(line, err=True)  # noqa: E731
    final = open_test(
        model,
        Workspace.here(),
        data,
        again=again,
        sensitivity=sensitivity,
        device=device,
        place=place,
        say=say,
        robustness=robustness,
        progress=lambda done, n: bar("change", done, n),
        **reason,
    )
    if as_json:
        print_json(final.to_dict())
    else:
        told(final)


def told(final: Final) -> None:
    """Print the record of an opening in 80 columns."""
    opening = final.opening
    click.echo(textwrap.fill(f"{final.model}, trial {final.trial} of study {final.study}, on its test split", 80))
    click.echo(f"opened {opening.when[:19]} by {opening.who}: {opening.why}")
    click.echo(f"this is opening {final.openings} of this study, and look {final.looks} at these test films")
    for line in final.others:
        click.echo(textwrap.fill(f"opened {line}", 80, subsequent_indent="  "))
    click.echo(f"threshold {final.threshold:.4f} ({final.rule}), temperature {final.temperature:.3f}")
    if final.robustness:
        print_worst(final.robustness.worst, final.robustness.goals)
    print_level_table(final.image, final.patient)
    print_subgroups(final.subgroups)
    if final.robustness:
        click.echo(f"all changes: robustness-test.json of the run, and in xray-opt report {final.study}")
    print_baselines(final.baselines)
