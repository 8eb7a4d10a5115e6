"""``doctor``: check the machine and everything the work needs."""

from __future__ import annotations

import sys
import textwrap
from dataclasses import asdict

import click

from xray_opt.cli.options import as_json
from xray_opt.cli.output import print_json

#: Columns of status and subject, and of a whole line.
STATUS, WHAT, WIDTH = 8, 11, 80


@click.command()
@click.option("--study", metavar="NAME", help="A study, or its file: check its films, weights and stores.")
@as_json
def doctor(study: str | None, as_json: bool) -> None:
    """Check everything the work needs, and say how to mend what is wrong.

    Python, packages, GPU, disk, weights, films, MLflow, Optuna storage, clocks, Docker, ports. Exit code 1 where
    something is an error; warnings do not count.
    """
    from xray_opt.config import Workspace
    from xray_opt.doctor import ERROR, diagnose

    findings = diagnose(Workspace.here(), study)
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        for finding in findings:
            _print(f"{finding.status:{STATUS}}{finding.what:{WHAT}}", finding.text)
            if finding.fix:
                _print(" " * (STATUS + WHAT), f"→ {finding.fix}")
    sys.exit(1 if any(finding.status == ERROR for finding in findings) else 0)


def _print(head: str, text: str) -> None:
    """A text beside its head, in lines of at most 80 columns."""
    indent = " " * (STATUS + WHAT)
    lines = textwrap.wrap(text, WIDTH - len(indent), break_on_hyphens=False) or [""]
    click.echo("\n".join([f"{head:{len(indent)}}{lines[0]}", *(indent + line for line in lines[1:])]))
