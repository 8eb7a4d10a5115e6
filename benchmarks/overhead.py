"""Seconds a trial that are not training, in small and in large studies (G8).

    python benchmarks/overhead.py --out results/overhead.json

An objective of microseconds that reports ten epochs, on SQLite and PostgreSQL, at about trial 50 and trial 1,000 (what
came before is put into the storage at once): our loop of ``tune`` against Optuna's own ``optimize`` with the same
sampler and pruner. Then whole trials of the product on tiny films: what they take beyond their epochs (network,
MLflow, the adapter saved, read back and scored).
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import workload
from fake_objective import EPOCHS, SPACE, STARTUP, rising
from measure import HERE, Absent, Column, Rounds, Thunk, Values, child, finish, interleave, parser
from postgres import server

from xray_opt.config import Config, SamplerConfig, StudyConfig, Workspace, override
from xray_opt.tuning import Outcome, TrialContext, open_study
from xray_opt.tuning.records import OWNER

SEED = 0
#: A worker that cannot be looked at from here.
ELSEWHERE = {"host": "elsewhere", "sight": "elsewhere", "pid": 1, "started": "tick 1"}


def main() -> None:
    """Measure, print, write."""
    arguments = parser(__doc__)
    arguments.add_argument("--at", type=int, nargs="+", default=[50, 1000], help="sizes of a study (default: 50 1000)")
    arguments.add_argument("--trials", type=int, default=5, help="trials a sample (default: 5)")
    workload.add_arguments(arguments, films=32, size=64, batch=16)
    args = arguments.parse_args()
    if args.toy:
        args.at, args.trials, args.rounds, args.films, args.size, args.batch = [12, 16], 2, 1, 16, 32, 8
    sections = {"loop": loop(args), "product": product(args)}
    columns = {
        "loop": [Column("s", "seconds a trial with an objective of microseconds (ratios to the first)", 4)],
        "product": [
            Column("rest_s", "seconds of a whole trial beyond its epochs"),
            Column("trial_s", "… and with them"),
        ],
    }
    finish(args, sections, columns)
    print("\n".join(growth(sections["loop"], args.at)))


def growth(rounds: Rounds, at: list[int]) -> list[str]:
    """How much dearer a trial of the largest study is than one of the smallest, for each loop and storage."""
    lines = ["", f"cost of trial {at[-1]:,} over that of trial {at[0]:,}"]
    for name in rounds.samples:
        kind, _, number = name.rpartition(", trial ")
        if number == f"{at[0]:,}":
            small, large = (statistics.median(rounds.of(f"{kind}, trial {size:,}", "s")) for size in (at[0], at[-1]))
            lines.append(f"{kind:<34}{large / small:>11.2f}")
    return lines


def loop(args: argparse.Namespace) -> Rounds:
    """Both loops on both storages at all sizes, in one interleaved run."""
    thunks: dict[str, Thunk] = {}
    absent: dict[str, str] = {}
    with ExitStack() as stack:
        for kind, opened in (("SQLite", sqlite), ("PostgreSQL", server)):
            try:
                url = stack.enter_context(opened())
            except Absent as error:
                absent[kind] = str(error)
                continue
            for at in args.at:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="xray-bench-")))
                for name, made in (("Optuna", Plain), ("ours", Ours)):
                    thunks[f"{name}, {kind}, trial {at:,}"] = made(url, at, folder, args.trials)
        rounds = interleave(thunks, args.rounds, warm_up={})
    rounds.absent |= absent
    return rounds


@contextmanager
def sqlite() -> Iterator[str]:
    """A new file."""
    with tempfile.TemporaryDirectory(prefix="xray-bench-") as folder:
        yield f"sqlite:///{folder}/optuna.db"


class Plain:
    """Optuna's own loop with our sampler and pruner."""

    def __init__(self, url: str, at: int, folder: Path, trials: int) -> None:
        sampler = optuna.samplers.TPESampler(n_startup_trials=STARTUP, multivariate=True, group=True, seed=SEED)
        pruner = optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=3)
        self.study = optuna.create_study(
            study_name=f"plain-{at}", storage=url, direction="maximize", sampler=sampler, pruner=pruner
        )
        self.trials = trials
        fill(self.study, at - trials)

    def __call__(self) -> Values:
        """Median seconds from one objective to the next."""
        begun: list[float] = []

        def objective(trial: optuna.Trial) -> float:
            begun.append(time.perf_counter())
            for parameter in SPACE:
                trial.suggest_float(parameter.name, parameter.low, parameter.high, log=True)
            for epoch in range(1, EPOCHS + 1):
                trial.report(rising(trial.number, epoch), epoch)
                if trial.should_prune():
                    raise optuna.TrialPruned
            return rising(trial.number, EPOCHS)

        self.study.optimize(objective, n_trials=self.trials + 1)
        return between(begun)


class Ours:
    """The loop behind ``tune``; ``database`` is what lies behind a proxy, ``running`` trials are other hosts'."""

    def __init__(
        self, url: str, at: int, folder: Path, trials: int, database: str | None = None, running: int = 0
    ) -> None:
        config = override(Config(), {"training.epochs": EPOCHS})
        sampler = SamplerConfig("tpe", startup_trials=STARTUP)
        study = StudyConfig(f"ours-{at}-{running}", config, SPACE, seed=SEED, sampler=sampler, storage=url)
        self.open: Callable[[], Any] = partial(open_study, study, Workspace(folder), "0" * 64)
        self.open()
        self.count, self.trials, self.running = at - trials, trials, running
        fill(optuna.load_study(study_name=study.name, storage=database or url), self.count, running)

    def __call__(self) -> Values:
        """Median seconds from one objective to the next (``s``), and of these outside of it (``turn_s``)."""
        begun: list[float] = []
        ended: list[float] = []

        def objective(trial: TrialContext) -> Outcome:
            begun.append(time.perf_counter())
            if len(begun) > self.trials + 1:
                raise KeyboardInterrupt  # else it would wait for the others' trials, which never end
            for epoch in range(1, EPOCHS + 1):
                trial.report(epoch, rising(trial.number, epoch))
            ended.append(time.perf_counter())
            return Outcome(rising(trial.number, EPOCHS))

        self.count += self.trials + 1
        with suppress(KeyboardInterrupt):
            self.open().tune(objective, self.count + (self.running + 1 if self.running else 0))
        turns = [after - before for before, after in zip(ended, begun[1 : self.trials + 1], strict=False)]
        return between(begun[: self.trials + 1]) | {"turn_s": statistics.median(turns)}


def fill(study: optuna.Study, trials: int, running: int = 0) -> None:
    """Put finished trials into the study, as if they had been run, and some that run on another host."""
    spread = {p.name: optuna.distributions.FloatDistribution(p.low or 0.0, p.high or 1.0, log=True) for p in SPACE}
    chance = optuna.samplers.RandomSampler(seed=SEED)._rng.rng
    made = [
        optuna.trial.create_trial(
            state=optuna.trial.TrialState.COMPLETE if number < trials else optuna.trial.TrialState.RUNNING,
            params={name: float(kind.low * (kind.high / kind.low) ** chance.rand()) for name, kind in spread.items()},
            distributions=dict(spread),
            value=rising(number, EPOCHS) if number < trials else None,
            intermediate_values={epoch: rising(number, epoch) for epoch in range(1, EPOCHS + 1)},
            user_attrs={} if number < trials else {OWNER: ELSEWHERE | {"worker": str(number)}},
        )
        for number in range(trials + running)
    ]
    study.add_trials(made)


def between(begun: list[float]) -> Values:
    """Median time between neighbours."""
    return {"s": statistics.median(after - before for before, after in itertools.pairwise(begun))}


def product(args: argparse.Namespace) -> Rounds:
    """Whole trials of ``tune``, each round in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="xray-bench-") as folder:
        manifest = workload.make_films(Path(folder) / "films", args.films)
        job = workload.job_of(Path(folder), args, 1, manifest, None) | {"what": "study", "trials": args.trials}
        thunk = partial(child, HERE / "peers" / "ours.py", job)
        return interleave({"tune, with MLflow on SQLite": thunk}, args.rounds, warm_up={})


if __name__ == "__main__":
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    main()
