"""Figures of one model's answers: ROC, precision–recall, reliability; the confusion matrix is a table."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes

from xray_opt.report.curves import Curve, Reliability
from xray_opt.report.drawing import BLUE, GREY, RED, drawn, marks

#: Where the threshold lies on a curve: (x, y), none where it is not known.
Mark = tuple[float, float] | None


def roc(name: str, what: str, curve: Curve, mark: Mark, score: str, classes: tuple[str, str]) -> Markup:
    """The ROC curve with its band, and the threshold on it."""

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=":", gid="chance")
        _stairs(axes, curve, mark, "post")
        axes.set(xlabel="share of {} films called {}".format(*classes), ylabel="sensitivity")

    return drawn(f"{name}-roc", f"ROC curve, {what}", f"AUC {score}. {_words(curve, mark)}", draw)


def precision_recall(name: str, what: str, curve: Curve, mark: Mark, score: str, share: float) -> Markup:
    """The precision–recall curve with its band; a model that knows nothing has the positives' share everywhere."""

    def draw(axes: Axes) -> None:
        axes.axhline(share, color=GREY, linewidth=0.8, linestyle=":", gid="chance")
        _stairs(axes, curve, mark, "pre")
        axes.set(xlabel="sensitivity (recall)", ylabel="precision")

    words = f"Average precision {score}. {_words(curve, mark)}"
    return drawn(f"{name}-pr", f"Precision–recall curve, {what}", words, draw)


def reliability(name: str, what: str, found: Reliability, score: str, positive: str) -> Markup:
    """Share of positives over predicted probability, a point a bin; the area of a point tells its films."""

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=":", gid="perfect")
        sizes = 12 + 90 * found.films / found.films.max()
        for place, (x, low, high) in enumerate(zip(found.predicted, found.low, found.high, strict=True)):
            if not np.isnan(low):
                axes.plot([x, x], [low, high], color=BLUE, linewidth=1.5, gid=f"bar-{place}")
        marks(axes, found.predicted, found.observed, sizes, BLUE, gid="bins", zorder=3)
        words = {"xlabel": "predicted probability", "ylabel": f"share with {positive}"}
        axes.set(**words, xlim=(-0.03, 1.03), ylim=(-0.03, 1.05))

    rows = zip(found.predicted, found.observed, found.films, strict=True)
    words = "; ".join(f"predicted {x:.2f}, observed {y:.2f} ({n} films)" for x, y, n in rows)
    return drawn(f"{name}-reliability", f"Reliability, {what}", f"ECE {score}. {words}", draw)


def confusion(caption: str, counts: Mapping[str, int], classes: tuple[str, str]) -> Markup:
    """The confusion matrix; each cell is as dark as its share of its row."""
    negative, positive = classes
    rows = (
        (negative, counts["true_negative"], counts["false_positive"]),
        (positive, counts["false_negative"], counts["true_positive"]),
    )
    body = Markup("").join(_confused(*row) for row in rows)
    return Markup(
        '<div class="scroll" role="region" tabindex="0" aria-label="{0}"><table class="confusion">'
        '<caption>{0}</caption><thead><tr><td></td><th scope="col">called {2}</th>'
        '<th scope="col">called {3}</th></tr></thead>'
        "<tbody>{1}</tbody></table></div>\n"
    ).format(caption, body, negative, positive)


def _confused(truth: str, negative: int, positive: int) -> Markup:
    shares = [count / max(negative + positive, 1) for count in (negative, positive)]
    cells = Markup("").join(
        Markup('<td style="background:rgba(0,114,178,{:.2f})"><b>{}</b><br>{:.1f} %</td>').format(
            0.05 + 0.45 * share, count, 100 * share
        )
        for share, count in zip(shares, (negative, positive), strict=True)
    )
    return Markup('<tr><th scope="row">{}</th>{}</tr>').format(truth, cells)


def _stairs(axes: Axes, curve: Curve, mark: Mark, where: str) -> None:
    if curve.low is not None and curve.high is not None:
        axes.fill_between(curve.at, curve.low, curve.high, color=BLUE, alpha=0.2, linewidth=0, gid="band")
    axes.step(curve.x, curve.y, where=where, color=BLUE, linewidth=1.6, gid="curve")  # type: ignore[arg-type]
    if mark is not None:
        axes.scatter([mark[0]], [mark[1]], 42, facecolors="none", edgecolors=RED, zorder=4, gid="threshold")
    axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.05))


def _words(curve: Curve, mark: Mark) -> str:
    threshold = "" if mark is None else f"The ring marks the threshold: {mark[0]:.3f} over, {mark[1]:.3f} up. "
    return threshold + (curve.why or "The band holds the middle 95 % of resamples of patients.")
