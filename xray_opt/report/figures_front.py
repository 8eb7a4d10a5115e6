"""The Pareto front of a study with two objectives."""

from __future__ import annotations

from markupsafe import Markup
from matplotlib.axes import Axes

from xray_opt.config import OBJECTIVES
from xray_opt.report.drawing import BLUE, GREY, drawn, empty, finite, label, legend_below, marks
from xray_opt.report.figures_study import F1, complete
from xray_opt.report.records import Evidence
from xray_opt.tuning import TrialRecord

#: So many trials of the front have their number beside them.
MOST_NUMBERS = 12
#: Objective → what its axis says.
AXES = {
    "parameters": "trained parameters",
    "latency": "milliseconds a film",
    "robustness": "share of decisions that stay",
}


def front(evidence: Evidence) -> Markup:
    """Every complete trial by both objectives; the front as the stairs below which no trial is worth choosing."""
    study = evidence.study
    done = [trial for trial in complete(study) if finite([trial.second])]
    best = [trial for trial in study.front if trial in done]
    others = [trial for trial in done if trial not in best]
    second = str(study.second)
    better = "fewer" if second == "parameters" else "less" if OBJECTIVES.get(second) == "minimize" else "more"

    def draw(axes: Axes) -> None:
        if not done:
            return empty(axes, "no trial is complete")
        if others:
            marks(axes, *_places(others), 18, GREY, label="other complete trials", gid="others")
        x, y = _places(best)
        # Between two trials of the front only the one of lower F1 is as good in the other objective.
        axes.step(x, y, where="pre", color=BLUE, linewidth=1.2, gid="stairs")
        marks(axes, x, y, 26, BLUE, label="Pareto front", gid="best", zorder=3)
        for trial in best[:MOST_NUMBERS]:
            place = (trial.second or 0.0, trial.value or 0.0)
            axes.annotate(f"{trial.number}", place, (3, 3), textcoords="offset points", fontsize=7.5)
        axes.set(xlabel=f"{label(AXES.get(second, second))} ({better} is better)", ylabel=F1)
        if second == "parameters" and min(trial.second or 0.0 for trial in done) > 0:
            axes.set_xscale("log")
        legend_below(axes)

    words = f"{len(best)} of {len(done)} complete trials are on the front: "
    words += "; ".join(f"trial {one.number}: {one.value:.4f} and {one.second:.6g}" for one in best[:MOST_NUMBERS])
    return drawn("front", f"Validation F1 against {second}", words, draw)


def _places(trials: list[TrialRecord]) -> tuple[list[float], list[float]]:
    return [trial.second or 0.0 for trial in trials], [trial.value or 0.0 for trial in trials]
