"""Writes docs/cli.md from the commands' own help: ``python scripts/cli_docs.py``; with ``-`` it prints the page."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import click

from xray_opt.cli import group

TARGET = Path(__file__).parent.parent / "docs" / "cli.md"
HEAD = """# Commands

Made from the commands' own `--help` by `python scripts/cli_docs.py`; do not edit by hand.
"""


def commands(command: click.Command, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """The command and everything below it, parents first."""
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            if child is not None:
                yield from commands(child, (*path, name))


def text() -> str:
    """The whole page."""
    parts = [HEAD]
    for path, command in commands(group, ("xray-opt",)):
        # A width of its own: the page must not depend on the terminal that made it.
        look = {"terminal_width": 100, "max_content_width": 100, "help_option_names": ["-h", "--help"]}
        context = click.Context(command, info_name=" ".join(path), **look)
        parts.append(f"## {' '.join(path)}\n\n```text\n{command.get_help(context)}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    if sys.argv[1:] == ["-"]:
        print(text(), end="")
    else:
        TARGET.write_text(text(), encoding="utf-8")
