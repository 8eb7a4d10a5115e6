"""Live progress of a study or a run: one rewritten line on a terminal, plain lines elsewhere, always on stderr."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

import click

from xray_opt.cli.output import cell, duration, short_names

if TYPE_CHECKING:
    from xray_opt.config import StudyConfig
    from xray_opt.trainer import Epoch
    from xray_opt.tuning import TrialRecord


class Progress:
    """Prints what happens; knows trial n of N, epoch, time to go and the best so far.

    The time to go is the mean time of the trials finished in this call, times the trials to go.
    """

    def __init__(self, total: int | None = None) -> None:
        self.total = total
        self.live = sys.stderr.isatty()
        self.width = 0
        self.began = time.monotonic()
        self.finished = 0
        self.counted = 0
        self.best: tuple[float, int] | None = None
        self.epochs = 0
        self.second: str | None = None
        self.running: dict[int, str] = {}
        self.slots: dict[int, str] = {}
        self.announced: dict[str, float] = {}

    def say(self, line: str) -> None:
        """A line that stays."""
        self._clear()
        click.echo(line, err=True)

    def bar(self, what: str, done: int, total: int) -> None:
        """Progress of a preparation step; elsewhere than on a terminal a line every ten seconds and at the end."""
        if self.live:
            self._rewrite(f"{what} {done}/{total}")
            if done >= total:
                self._clear()
        elif done >= total or time.monotonic() - self.announced.setdefault(what, time.monotonic()) > 10:
            self.announced[what] = time.monotonic()
            click.echo(f"{what} {done}/{total}", err=True)

    def known(self, counted: int, best: TrialRecord | None) -> None:
        """What the study held before this call."""
        self.counted = counted
        if best is not None and best.value is not None:
            self.best = (best.value, best.number)

    def placed(self, number: int, slot: str | None) -> None:
        """In which slot a trial is about to run; none: its slot died."""
        if slot is None:
            self.running.pop(number, None)
        else:
            self.slots[number] = f"{slot} · "

    def trial_started(self, number: int, study: StudyConfig, params: Mapping[str, object]) -> None:
        """Announce a trial and its params."""
        self.epochs, self.second = study.config.training.epochs, study.second
        shown = ", ".join(
            f"{short} {cell(value)}" for short, value in zip(short_names(params), params.values(), strict=True)
        )
        self.running[number] = ""
        place = min(self.counted + len(self.running), self.total or sys.maxsize)
        self.say(f"{self._slot(number)}trial {number} ({place} of {self.total}): {shown}")

    def epoch(self, number: int | None, epoch: Epoch) -> None:
        """One epoch's scores."""
        trial = "" if number is None else f"{self._slot(number)}trial {number} · "
        line = (
            f"{trial}epoch {epoch.number}/{self.epochs} · loss {epoch.train_loss:.4f} · val F1 {epoch.val.f1:.4f} · "
            f"AUC {epoch.val.auc:.4f} · {epoch.images_per_second:.0f} img/s"
        )
        if number is not None:
            self.running[number] = f"trial {number} {epoch.number}/{self.epochs} F1 {epoch.val.f1:.3f}"
        if self.live and len(self.running) > 1:
            self._rewrite(" · ".join(filter(None, self.running.values())) + self._outlook())
        elif self.live and number is not None:
            self._rewrite(line + self._outlook())
        else:
            self.say("  " + line)

    def trial_ended(self, record: TrialRecord) -> None:
        """One line for a finished trial, with the outlook."""
        self.finished += 1
        self.running.pop(record.number, None)
        if record.state in ("COMPLETE", "PRUNED"):
            self.counted += 1
        if record.state == "COMPLETE" and record.value is not None and (self.best or (-1.0, 0))[0] < record.value:
            self.best = (record.value, record.number)
        what = f"failed: {record.reason}, {record.message}"
        if record.state == "COMPLETE":
            what = f"val F1 {cell(record.value)}"
            what += f", {self.second} {cell(record.second)}" if record.second is not None else ""
        elif record.state == "PRUNED":
            what = f"pruned after epoch {max(record.intermediate, default=0)}"
        trial = f"{self._slot(record.number)}trial {record.number}"
        self.say(f"{trial}: {what} in {duration(record.seconds or 0)}{self._outlook()}")

    def _slot(self, number: int) -> str:
        return self.slots.get(number, "")

    def _outlook(self) -> str:
        text = "" if self.best is None else f" · best {self.best[0]:.4f} (trial {self.best[1]})"
        left = max((self.total or 0) - self.counted, 0)
        if not self.finished or not left:
            return text
        return f"{text} · {duration((time.monotonic() - self.began) / self.finished * left)} to go"

    def _rewrite(self, line: str) -> None:
        line = line[: shutil.get_terminal_size().columns - 1]
        click.echo("\r" + line.ljust(self.width), nl=False, err=True)
        self.width = len(line)

    def _clear(self) -> None:
        if self.live and self.width:
            click.echo("\r" + " " * self.width + "\r", nl=False, err=True)
            self.width = 0
