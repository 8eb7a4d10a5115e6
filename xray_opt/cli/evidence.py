"""``finalize``: the one look at the test split; and how scores with intervals are printed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from xray_opt.cli.models import device_option, model_option, sensitivity_option
from xray_opt.cli.options import as_json, of_study, storage_option, tracking_option
from xray_opt.cli.output import between, print_json, print_level_table, print_table

if TYPE_CHECKING:
    from xray_opt.finalize import Final


@click.command()
@model_option
@sensitivity_option
@click.option("--why", help="Why the split is opened; written to study and run.")
@click.option("--again", is_flag=True, help="Open once more what was opened before; that is counted.")
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
    data: str | None,
    device: str,
    study_name: str | None,
    storage: str | None,
    uri: str | None,
    as_json: bool,
) -> None:
    """Open the sealed test split once for the chosen model: all scores with 95 % intervals, beside trivial models.

    Threshold and temperature were fixed on validation. The opening is recorded in study and MLflow; a second call shows
    the record. docs/statistics.md tells how the intervals are made.
    """
    from xray_opt.config import Workspace
    from xray_opt.finalize import finalize as open_test
    from xray_opt.places import find_place

    place = find_place(Workspace.here(), study_name, storage, uri)
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
        **reason,
    )
    if as_json:
        print_json(final.to_dict())
    else:
        _print(final)


def _print(final: Final) -> None:
    opening = final.opening
    click.echo(f"{final.model}, trial {final.trial} of study {final.study}, on its test split")
    click.echo(f"opened {opening.when[:19]} by {opening.who}: {opening.why}")
    click.echo(f"this is opening {final.openings} of this study")
    click.echo(f"threshold {final.threshold:.4f} ({final.rule}), temperature {final.temperature:.3f}")
    print_level_table(final.image, final.patient)
    rows = [
        [one.name, *between(one.image.scores["auc"]), one.image.scores["f1"].value, *between(one.gains["auc"])]
        for one in final.baselines
    ]
    print_table(["on the same films", "AUC", "95 %", "F1", "gain in AUC", "95 %"], rows)
    gain, best = final.headline, final.baselines[0].name
    if gain.low is None or gain.p is None:
        click.echo(f"gain over {best}: AUC {gain.value:+.4f}")
        click.echo(f"no interval: {gain.why}")
        return
    verdict = "better than" if gain.low > 0 else "worse than" if (gain.high or 0) < 0 else "not told apart from"
    click.echo(f"gain over {best}: AUC {gain.value:+.4f} ({gain.low:+.4f} to {gain.high:+.4f}), p {gain.p:.2g}")
    click.echo(f"the model is {verdict} a model that looks at no lungs")
