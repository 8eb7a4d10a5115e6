"""``promote``, ``rollback``: which version of a registered model is used."""

from __future__ import annotations

import textwrap
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from xray_opt.cli.options import as_json, of_study, tracking_option
from xray_opt.cli.output import print_json, print_table

if TYPE_CHECKING:
    from xray_opt.registry import Comparison, Move, Version

name_option = click.option("--name", default="xray-pneumonia", show_default=True, help="Registered model.")
why_option = click.option("--why", default="", help="The reason; it is kept with the move.")


@click.command()
@name_option
@click.option("--version", "number", help="Version to promote; default: the candidate.")
@why_option
@of_study
@tracking_option
@as_json
def promote(name: str, number: str | None, why: str, study_name: str | None, uri: str | None, as_json: bool) -> None:
    """Make the candidate (or another version) the champion, and show how the two compare.

    Who did it, when, why and on what evidence is kept as a tag of the registered model: xray-opt rollback --history.
    """
    from xray_opt.config import Workspace
    from xray_opt.places import find_place
    from xray_opt.scoring import promote as move

    found = move(name, number, Workspace.here(), find_place(Workspace.here(), study_name, uri=uri), why)
    _print(found, as_json)


@click.command()
@name_option
@click.option("--to", "number", metavar="VERSION", help="Version to go back to; default: the champion before.")
@why_option
@click.option("--history", is_flag=True, help="Only show who moved the champion when; change nothing.")
@of_study
@tracking_option
@as_json
def rollback(
    name: str, number: str | None, why: str, history: bool, study_name: str | None, uri: str | None, as_json: bool
) -> None:
    """Give the champion back to the version that had it before; once more, to the one before that.

    What uses the model by models:/NAME@champion gets the earlier version at its next load; xray-opt serve has to be
    started again.
    """
    from xray_opt.config import Workspace
    from xray_opt.places import find_place
    from xray_opt.scoring import champion_moves
    from xray_opt.scoring import rollback as move

    place = find_place(Workspace.here(), study_name, uri=uri)
    if history:
        _print_moves(name, champion_moves(name, Workspace.here(), place), as_json)
        return
    _print(move(name, number, Workspace.here(), place, why), as_json)


def _print(found: Comparison, as_json: bool) -> None:
    if as_json:
        print_json(asdict(found))
        return
    new, old = found.new, found.old
    rows = [_row(side, one) for side, one in (("before", old), ("champion", new)) if one is not None]
    heads = ["", "version", "study", "val F1", "confirmed F1", "test F1", "split"]
    print_table(heads, rows, title=new.name)
    if old is not None and not found.same_data:
        click.echo("the two were validated on different data: their scores cannot be compared")
    if "confirmed.f1" not in new.tags and "test.f1" not in new.tags:
        click.echo("its only evidence is the score it was chosen by; confirm and finalize give more")
    for split, films in (("val", "validation"), ("test", "test")):
        if worst := new.tags.get(f"robust.{split}.worst"):
            click.echo(textwrap.fill(f"worst case of changed {films} films: {worst}", 80, subsequent_indent="  "))
    for one in found.meanwhile:
        click.echo(textwrap.fill(f"meanwhile {one.who} had made version {one.version} the champion ({one.by})", 80))
    back = "" if old is None else f", in place of version {old.version}"
    click.echo(f"champion: {new.name} version {new.version}{back}")


def _row(side: str, one: Version) -> list[Any]:
    tags = one.tags
    test = tags.get("test.f1", "").partition(" ")[0]
    scores = [one.val_f1, tags.get("confirmed.f1"), test or None]
    return [side, one.version, tags.get("xray_opt.study", ""), *scores, tags.get("xray_opt.manifest_sha256", "")[:12]]


def _print_moves(name: str, moves: list[Move], as_json: bool) -> None:
    if as_json:
        print_json([asdict(one) for one in moves])
        return
    if not moves:
        click.echo(f"no move of the champion of {name} is recorded")
        return
    rows = [[one.when[:19].replace("T", " "), one.by, one.version, one.who, one.why or None] for one in moves]
    print_table(["when (UTC)", "by", "to version", "who", "why"], rows, title=name)
