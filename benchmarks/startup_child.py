"""One call of ``tune`` with a stopwatch on its parts, until its first training step is done; run by startup.py."""

import time

STARTED = time.monotonic()

from collections.abc import Iterator  # noqa: E402  the clock starts first
from contextlib import contextmanager  # noqa: E402
from functools import wraps  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

from measure import Values, serve, spawned  # noqa: E402

from xray_opt.config import Config, Parameter, PrunerConfig, StudyConfig, Workspace, override  # noqa: E402

#: What is reported beside the parts.
TOTAL = "first step done"
SECOND = ("2nd trial: start to first step", "1st trial's end to that")


class Stopwatch:
    """Seconds of each part, without the parts within it; stands still after the first training step."""

    def __init__(self) -> None:
        self.parts: dict[str, float] = {}
        self.done = 0.0
        self._within: list[float] = []

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time what happens here under ``name``."""
        began = time.monotonic()
        self._within.append(0.0)
        try:
            yield
        finally:
            spent = time.monotonic() - began
            own = spent - self._within.pop()
            if self._within:
                self._within[-1] += spent
            if not self.done:
                self.parts[name] = self.parts.get(name, 0.0) + own

    def wrap(self, place: Any, attribute: str, name: str) -> None:
        """Time every call of ``place.attribute``."""
        original = getattr(place, attribute)

        @wraps(original)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return original(*args, **kwargs)

        setattr(place, attribute, timed)


def run(job: dict[str, Any]) -> Values:
    """Seconds of the parts from the start of the process to the end of the first step; and of the second trial."""
    watch = Stopwatch()
    watch.parts["interpreter"] = STARTED - spawned()
    with watch.part("import"):
        from workload import SHARES, settings

        from xray_opt.tracking import Run
        from xray_opt.trainer import trainer
        from xray_opt.trainer.step import Stepper
        from xray_opt.workers import StudyWatcher, calls
    # A name that is gone ends this with an AttributeError: better than a part that is silently missing.
    for attribute in ("prepared", "shortcut_screen"):
        watch.wrap(calls, attribute, "data")
    watch.wrap(calls.Sizes, "open", "data")
    for attribute in ("fresh_base", "study_base"):
        watch.wrap(calls, attribute, "base")
    watch.wrap(calls, "open_study", "storage")
    for attribute in ("connect", "_describe_once"):
        watch.wrap(calls, attribute, "MLflow")
    watch.wrap(trainer, "attach", "attach")
    watch.wrap(calls.Tracking, "open", "MLflow")
    watch.wrap(Run, "__enter__", "MLflow")
    steps = first_steps(watch, Stepper)
    starts: list[float] = []
    ends: list[float] = []
    study = study_of(override(settings(job), {"data.root": job["root"]} | {f"data.{k}": v for k, v in SHARES.items()}))

    def started(*_: Any) -> None:
        starts.append(time.monotonic())
        steps.append(0.0)

    watcher = StudyWatcher(trial_started=started, trial_ended=lambda _: ends.append(time.monotonic()))
    calls.tune(study, Workspace(Path(job["workspace"])), job["trials"], watcher=watcher)
    total = watch.done - spawned()
    values = watch.parts | {"rest": total - sum(watch.parts.values()), TOTAL: total}
    if len(steps) > 1:
        values |= dict(zip(SECOND, (steps[1] - starts[1], steps[1] - ends[0]), strict=True))
    return values


def first_steps(watch: Stopwatch, stepper: Any) -> list[float]:
    """When the first step of each trial began; who sees a trial start appends a zero, its first step replaces it."""
    begun: list[float] = []
    original = stepper.step

    @wraps(original)
    def step(*args: Any, **kwargs: Any) -> Any:
        if begun and not begun[-1]:
            begun[-1] = time.monotonic()
        if watch.done:
            return original(*args, **kwargs)
        with watch.part("first step"):
            loss = original(*args, **kwargs)
            float(loss)  # waits for the device
        watch.done = time.monotonic()
        return loss

    stepper.step = step
    return begun


def study_of(config: Config) -> StudyConfig:
    """A study whose trials differ in rank and alpha too: neither may cost a recompilation."""
    rank = Parameter("lora.rank", "categorical", choices=(4, 8, 16, 32))
    alpha = Parameter("lora.alpha", "categorical", choices=(8.0, 16.0, 32.0))
    return StudyConfig("startup", config, (rank, alpha), pruner=PrunerConfig("none"))


if __name__ == "__main__":
    serve(run)
