"""What all benchmarks share: arguments, interleaved rounds, child processes, tables of 80 columns, JSON and a plot."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
#: The checkout comes first: a bare machine has no installed package, and another checkout's is not what is measured.
sys.path.insert(0, str(ROOT))

from xray_opt.errors import XrayError  # noqa: E402

Values = dict[str, float]
Thunk = Callable[[], Values]
_RESULT, _ABSENT = "RESULT ", "ABSENT "
_SPAWNED = "XRAY_BENCH_SPAWNED"


class Absent(Exception):
    """What is to be measured is not there; the text says what is missing and stands in the table."""


@dataclass
class Rounds:
    """Raw samples: name → one dict of values a round; and name → why there are none."""

    samples: dict[str, list[Values]] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)

    def of(self, name: str, key: str) -> list[float]:
        """All samples of one value; empty where it was not measured."""
        return [values[key] for values in self.samples.get(name, []) if key in values]


def parser(doc: str | None) -> argparse.ArgumentParser:
    """The arguments every script has."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--out", type=Path, metavar="FILE.json", help="write all raw samples there, and a plot beside it")
    made.add_argument("--rounds", type=int, default=5, help="measured rounds (default: 5)")
    made.add_argument("--toy", action="store_true", help="as small as it gets: shows that the script runs, no more")
    return made


def interleave(
    thunks: dict[str, Thunk],
    rounds: int,
    warm_up: dict[str, Thunk] | None = None,
    after: Callable[[Rounds], None] = lambda found: None,
) -> Rounds:
    """Call every thunk once a round, forwards and backwards in turn, after one round that does not count.

    One that lacks something, or that the product refuses with a clear line, stands in the table with that line.

    Args:
        warm_up: what to call in the round that does not count; none means the thunks themselves, empty no such round.
        after: told of all that was found, after each round.
    """
    found = Rounds({name: [] for name in thunks})

    def call(name: str, thunk: Thunk) -> None:
        """A sample; none from then on where something is missing."""
        if name not in found.absent:
            try:
                found.samples[name].append(thunk())
            except (Absent, XrayError) as error:
                found.absent[name] = str(error)

    for name, thunk in (thunks if warm_up is None else warm_up).items():
        call(name, thunk)
    found.samples = {name: [] for name in thunks}
    for number in range(rounds):
        for name in thunks if number % 2 == 0 else reversed(thunks):
            call(name, thunks[name])
        print(f"round {number + 1} of {rounds} done", file=sys.stderr, flush=True)
        after(found)
    return found


def child(script: Path, job: Mapping[str, Any], environment: Mapping[str, str] | None = None) -> Values:
    """Run ``script`` in a process of its own on ``job``; the values it gives to :func:`serve`.

    Raises:
        Absent: the child lacks a library.
        RuntimeError: it failed; with the end of what it said.
    """
    with tempfile.TemporaryDirectory(prefix="xray-bench-") as folder:
        file = Path(folder) / "job.json"
        file.write_text(json.dumps(job), encoding="utf-8")
        paths = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
        env = os.environ | {"PYTHONPATH": os.pathsep.join(paths), _SPAWNED: repr(time.monotonic())}
        command = [sys.executable, str(script), str(file)]
        done = subprocess.run(
            command, env=env | dict(environment or {}), cwd=ROOT, capture_output=True, text=True, check=False
        )
    for line in reversed(done.stdout.splitlines()):
        if line.startswith(_ABSENT):
            raise Absent(line.removeprefix(_ABSENT))
        if line.startswith(_RESULT) and done.returncode == 0:
            values: Values = json.loads(line.removeprefix(_RESULT))
            return values
    raise RuntimeError(f"{script.name} failed ({done.returncode}):\n{(done.stdout + done.stderr)[-3000:]}")


def serve(run: Callable[[dict[str, Any]], Values]) -> None:
    """The main of a child script: the job from its file, its values to the parent."""
    try:
        values = run(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    except (Absent, XrayError) as error:
        print(f"{_ABSENT}{error}", flush=True)
        return
    print(_RESULT + json.dumps(values), flush=True)


def need(*modules: str) -> None:
    """End a child that lacks one of these modules; the parent puts that into the table."""
    if missing := [name for name in modules if importlib.util.find_spec(name) is None]:
        print(f"{_ABSENT}not installed: {', '.join(missing)}", flush=True)
        raise SystemExit(0)


def best_precision(device: str) -> str:
    """``bf16`` where the device has arithmetic for it, else ``fp32``: emulated, bf16 is slower."""
    import torch

    from xray_opt.backbone import resolve_device, resolve_precision

    return "bf16" if resolve_precision("auto", resolve_device(device)) == torch.bfloat16 else "fp32"


def spawned() -> float:
    """When the parent started this child, in this machine's ``time.monotonic``."""
    return float(os.environ[_SPAWNED])


def table(rounds: Rounds, key: str, title: str, digits: int = 2) -> list[str]:
    """Lines of at most 80 columns: median, least, most, and the median of each round's ratio to the first name."""
    names = [*rounds.samples, *(name for name in rounds.absent if name not in rounds.samples)]
    first = rounds.of(names[0], key)
    lines = ["", title, f"{'':<34}{'median':>11}{'min':>11}{'max':>11}{'ratio':>9}"]
    for name in names:
        values = rounds.of(name, key)
        if name in rounds.absent or not values:
            lines.append(f"{name:<34}{rounds.absent.get(name, 'not measured'):>42}"[:80])
            continue
        shown = "".join(f"{value:>11.{digits}f}" for value in (statistics.median(values), min(values), max(values)))
        pairs = [value / one for value, one in zip(values, first, strict=False) if one]
        lines.append(f"{name[:34]:<34}{shown}" + (f"{statistics.median(pairs):>9.2f}" if pairs else f"{'–':>9}"))
    return lines


def advantage(rounds: Rounds, key: str, name: str) -> list[str]:
    """How many times as much ``name`` gives as each other, as the median of each round's ratio."""
    own = rounds.of(name, key)
    lines = ["", f"{name} over the others, median of each round's ratio"]
    for other in rounds.samples:
        if other != name and (theirs := rounds.of(other, key)):
            ratios = [mine / value for mine, value in zip(own, theirs, strict=True)]
            lines.append(f"{other:<34}{statistics.median(ratios):>11.2f}")
    return lines


def finish(args: argparse.Namespace, sections: Mapping[str, Rounds], columns: Mapping[str, list[Column]]) -> None:
    """Print a table for every column of every section; write JSON and plot where ``--out`` was given."""
    if args.toy:
        print("\ntoy size: these figures say nothing about speed")
    for name, rounds in sections.items():
        for column in columns[name]:
            print("\n".join(table(rounds, column.key, column.title, column.digits)))
    if args.out is not None:
        write_samples(args, sections)
        print(f"\nraw samples: {args.out}")
        print(plot(args.out.with_suffix(".png"), sections, columns))


def write_samples(args: argparse.Namespace, sections: Mapping[str, Rounds]) -> None:
    """Every raw sample, the arguments, the machine and the commit, as JSON in ``--out``."""
    arguments = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
    plain = {name: {"samples": rounds.samples, "absent": rounds.absent} for name, rounds in sections.items()}
    document = {"script": Path(sys.argv[0]).name, "arguments": arguments, "machine": machine(), "sections": plain}
    write_whole(args.out, document)


def write_whole(file: Path, document: Any) -> None:
    """``document`` as JSON in ``file``; a kill leaves what stood there."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.part")
    part.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    part.replace(file)


@dataclass(frozen=True)
class Column:
    """One value of a section as it is shown."""

    key: str
    title: str
    digits: int = 2


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    facts: dict[str, Any] = {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "commit": _commit(),
    }
    if importlib.util.find_spec("torch"):
        import torch

        facts |= {"torch": torch.__version__, "threads": torch.get_num_threads(), "device": "cpu"}
        if torch.cuda.is_available():
            facts["device"] = torch.cuda.get_device_name()
    return facts


def plot(file: Path, sections: Mapping[str, Rounds], columns: Mapping[str, list[Column]]) -> str:
    """Bars of medians with least and most, one panel a column; a line that says where it is, or why there is none."""
    if not importlib.util.find_spec("matplotlib"):
        return "no plot: matplotlib is not installed"
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as pyplot

    shown = [(rounds, column) for name, rounds in sections.items() for column in columns[name]]
    height = sum(0.8 + 0.35 * len(rounds.samples) for rounds, _ in shown)
    figure, panels = pyplot.subplots(len(shown), 1, figsize=(8, height), squeeze=False, layout="constrained")
    for panel, (rounds, column) in zip(panels[:, 0], shown, strict=True):
        measured = {name: values for name in rounds.samples if (values := rounds.of(name, column.key))}
        middle = [statistics.median(values) for values in measured.values()]
        below = [m - min(values) for m, values in zip(middle, measured.values(), strict=True)]
        above = [max(values) - m for m, values in zip(middle, measured.values(), strict=True)]
        panel.barh(list(measured), middle, xerr=[below, above], color="#6c8ebf", ecolor="#333333")
        panel.invert_yaxis()
        panel.set_title(column.title, fontsize=9, loc="left")
    figure.savefig(file, dpi=120)
    pyplot.close(figure)
    return f"plot: {file}"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def _commit() -> str:
    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        return (git("rev-parse", "HEAD") or "no git checkout") + (" with changes" if git("status", "--short") else "")
    except FileNotFoundError:
        return "no git here"
