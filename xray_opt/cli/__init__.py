"""The command line: one file a group of commands; errors become one line and an exit code here, once.

Exit codes: 0 done · 1 error · 2 wrong setting or option · 3 data · 4 weights or adapter · 5 training · 6 study ·
7 tracking · 8 the service · 9 a GPU failed · 10 a disk refuses · 11 too many failed trials ·
130 interrupted (Ctrl-C, SIGTERM, SIGHUP).
"""

from __future__ import annotations

import importlib
import io
import os
import sys

import click

from xray_opt import __version__
from xray_opt.cli.terminal import bear_a_closed_terminal, undisturbed
from xray_opt.errors import XrayError, disk_refusals, printable
from xray_opt.interrupts import INTERRUPTED
from xray_opt.threads import sleep_soon

#: Command → module of this package that holds it; modules are imported when their command is called.
COMMANDS = {
    "tune": "tune",
    "train": "tune",
    "compare": "compare",
    "confirm": "confirm",
    "finalize": "evidence",
    "baseline": "baseline",
    "reproduce": "reproduce",
    "report": "report",
    "evaluate": "models",
    "explain": "explain",
    "predict": "predict",
    "promote": "moves",
    "rollback": "moves",
    "weights": "models",
    "base": "base",
    "export": "export",
    "serve": "serve",
    "study": "study",
    "storage": "storage",
    "data": "data",
    "sync": "sync",
    "gc": "upkeep",
    "ui": "ui",
    "doctor": "doctor",
    "migrate": "migrate",
    "up": "service",
    "down": "service",
    "status": "service",
    "backup": "service",
    "restore": "service",
}
#: Commands that read ``.env`` themselves, and say what is wrong with it.
READ_ENV_THEMSELVES = ("doctor", "up", "down", "status", "backup", "restore")


class LazyGroup(click.Group):
    """Imports the file of a command only when that command is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of all commands, in the order of ``COMMANDS``."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, or None."""
        module = COMMANDS.get(cmd_name)
        if module is None:
            return None
        command: click.Command = getattr(importlib.import_module(f"xray_opt.cli.{module}"), cmd_name)
        return command


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="xray-opt")
@click.pass_context
def group(context: click.Context) -> None:
    """Find, prove and ship the best LoRA adapter of EfficientNetV2-S for chest X-rays.

    Works in the current folder (or XRAY_OPT_HOME): data/, studies/ and mlruns/ lie there, and .env, whose variables
    name a tracking server and a study storage. Start with `xray-opt data prepare FOLDER`, then `xray-opt tune`. Not
    for clinical use.

    Exit codes: 0 done, 1 error, 2 wrong setting or option, 3 data, 4 weights or adapter, 5 training, 6 study,
    7 tracking, 8 the service, 9 a GPU failed, 10 a disk refuses,
    11 too many failed trials, 130 interrupted.
    """
    if context.invoked_subcommand not in READ_ENV_THEMSELVES:
        read_env()


def read_env() -> None:
    """Take what the workspace's ``.env`` says into the environment, before anything is read from there."""
    from xray_opt.config.environment_file import load_environment
    from xray_opt.config.workspace import Workspace

    load_environment(Workspace.here(), lambda line: click.echo(f"warning: {line}", err=True))


def main() -> None:
    """Entry point of ``xray-opt``."""
    bear_a_closed_terminal()
    sleep_soon()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # File names may hold bytes that are no text, and a terminal may know few letters: both are shown as escapes.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with disk_refusals():
            group.main(standalone_mode=False)
    except XrayError as error:
        fail(" ".join(str(error).split()), error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        sys.exit(2)
    except click.ClickException as error:
        fail(printable(" ".join(error.format_message().split())), error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        fail("interrupted; run the same command again to go on", INTERRUPTED)
    except BrokenPipeError:
        # The reader (head, less) went away: nothing is wrong, and Python must not complain while it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def fail(line: str, code: int) -> None:
    """Print one line to stderr, no password in it, and exit with ``code``."""
    from xray_opt.config.environment_file import redacted

    undisturbed()
    click.echo(redacted(f"error: {line}" if code != INTERRUPTED else line), err=True)
    sys.exit(code)
