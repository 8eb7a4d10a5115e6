"""What the figures draw: the right number of points, lines and bars, and the right places."""

import re
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from report_records import HOSTILE, RANK, RATE, films, logits, mixed, predictions, study, trial, whole
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from xray_opt.report import Evidence, Predictions, curves, figures_front, figures_study
from xray_opt.report import figures_scores as scores
from xray_opt.report.drawing import drawn

SVG = "{http://www.w3.org/2000/svg}"
CLASSES = ("normal", "pneumonia")


def evidence(*trials, **more) -> Evidence:
    return replace(Evidence(study(*trials), "now", "0.1.0"), **more)


def read(svg) -> ElementTree.Element:
    return ElementTree.fromstring(str(svg))


def group(root, name: str) -> ElementTree.Element | None:
    return next((one for one in root.iter(f"{SVG}g") if one.get("id") == name), None)


def points(root, name: str) -> list[tuple[float, float]]:
    """Where the markers of a group stand: those that are used again, or the middles of their own outlines."""
    found = group(root, name)
    if found is None:
        return []
    used = [(float(one.get("x")), float(one.get("y"))) for one in found.iter(f"{SVG}use")]
    outlines = [corners(one) for one in found.iter(f"{SVG}path")]
    return used or [tuple((one.min(axis=0) + one.max(axis=0)) / 2) for one in outlines]


def corners(line: ElementTree.Element) -> np.ndarray:
    """(N, 2) corners of an outline, and what its curves bend towards."""
    return np.array([[float(x), float(y)] for x, y in re.findall(r"(-?[\d.]+) (-?[\d.]+)", line.get("d"))])


def path(root, name: str) -> np.ndarray:
    """(N, 2) corners of the line of a group."""
    return corners(next(group(root, name).iter(f"{SVG}path")))


def words(root) -> list[str]:
    return ["".join(one.itertext()) for one in root.iter(f"{SVG}text")]


def test_history_has_a_mark_a_trial_and_the_best_so_far_never_falls():
    root = read(figures_study.history(Evidence(mixed(), "now", "0.1.0")))
    assert len(points(root, "history-complete")) == 7
    assert len(points(root, "history-pruned")) == 3
    ((failed, _),) = points(root, "history-failed")
    width = float(root.get("viewBox").split()[2])
    assert max(x for x, _ in points(root, "history-pruned")) < failed < width, "a failed trial is not cut off"
    best = path(root, "history-best")
    assert (np.diff(best[:, 1]) <= 0).all(), "up is less in an SVG"
    highest = min(y for _, y in points(root, "history-complete"))
    assert best[-1, 1] == pytest.approx(highest, abs=1e-3)
    assert {"complete", "failed", "best so far", "trial"} <= set(words(root))


def test_epochs_have_a_line_a_trial_and_a_cross_where_one_was_pruned():
    root = read(figures_study.epochs(Evidence(mixed(), "now", "0.1.0")))
    lines = [f"epochs-t{number}" for number in range(12) if group(root, f"epochs-t{number}") is not None]
    assert lines == [f"epochs-t{number}" for number in range(10)]
    assert len(path(root, "epochs-t3")) == 3
    for number in (7, 8, 9):
        assert points(root, f"epochs-pruned-{number}")[0] == pytest.approx(
            path(root, f"epochs-t{number}")[-1], abs=1e-3
        )
    assert group(root, "epochs-pruned-3") is None


def test_epochs_of_a_large_study_are_those_of_its_best_trials():
    many = [trial(number, "COMPLETE", 0.5, [number / 1000]) for number in range(figures_study.MOST_LINES + 40)]
    text = str(figures_study.epochs(evidence(*many)))
    assert text.count('id="epochs-t') - text.count('id="epochs-title') - text.count('id="epochs-text') == 200
    assert 'id="epochs-t39"' not in text
    assert 'id="epochs-t40"' in text


def test_importances_are_bars_as_long_as_their_shares():
    root = read(figures_study.importances(evidence(importances={RATE: 0.75, RANK: 0.25})))
    widths = [np.ptp(path(root, f"importances-bar-{row}")[:, 0]) for row in (0, 1)]
    assert widths[1] == pytest.approx(3 * widths[0], rel=1e-3), "the largest share is on top"
    assert {"rank", "learning_rate", " 0.75"} <= set(words(root))


def test_parallel_coordinates_have_a_line_a_complete_trial_with_gaps():
    own = [
        trial(0, "COMPLETE", 0.5, params={RATE: 1e-5, RANK: 4}),
        trial(1, "COMPLETE", 0.7, params={RATE: 1e-3, RANK: 16}),
        trial(2, "COMPLETE", 0.9, params={RATE: 1e-3}),
        trial(3, "PRUNED", None),
    ]
    root = read(figures_study.parallel(evidence(*own)))
    assert [number for number in range(4) if group(root, f"parallel-line-{number}") is not None] == [0, 1, 2]
    first, second = path(root, "parallel-line-0"), path(root, "parallel-line-1")
    assert len(first) == len(second) == 3
    assert first[0, 1] > second[0, 1], "rank 4 is below rank 16"
    assert len(path(root, "parallel-line-2")) == 2, "without its rank a trial's line begins at the rate"
    assert {"1e-05", "0.001", "4", "16", "0.500", "0.900"} <= set(words(root))


def test_a_logarithmic_scale_puts_the_geometric_mean_in_the_middle():
    own = [trial(number, "COMPLETE", 0.5, params={RATE: rate}) for number, rate in enumerate((1e-5, 1e-4, 1e-3))]
    root = read(figures_study.parallel(evidence(*own)))
    heights = [path(root, f"parallel-line-{number}")[0, 1] for number in range(3)]
    assert heights[1] == pytest.approx((heights[0] + heights[2]) / 2, abs=0.01)


def test_slices_have_a_figure_a_param_and_a_point_a_trial():
    found = dict(figures_study.slices(Evidence(mixed(), "now", "0.1.0")))
    assert set(found) == {RATE, RANK}
    for place, name in enumerate(sorted(found)):
        assert len(points(read(found[name]), f"slice-{place}-p")) == 7
    assert {"4", "8", "16"} & set(words(read(found[RANK])))


def test_confirmation_has_search_score_interval_and_seeds_of_each_setting():
    verdict = whole().confirmation
    root = read(figures_study.confirmation(verdict))
    for row, one in enumerate(reversed(verdict["settings"])):
        assert len(points(root, f"confirmation-seeds-{row}")) == 3
        ((search, _),) = points(root, f"confirmation-search-{row}")
        ((middle, _),) = points(root, f"confirmation-confirmed-{row}")
        assert (search > middle) == (one["search"] > one["confirmed"]["value"])
        low, high = path(root, f"confirmation-interval-{row}")[:, 0]
        assert low < middle < high
    assert any("★" in text for text in words(root))


@pytest.mark.parametrize("name", ["history", "epochs", "importances", "parallel"])
def test_nothing_to_draw_is_said(name):
    root = read(getattr(figures_study, name)(evidence()))
    assert group(root, f"{name}-empty") is not None
    assert len(words(root)) == 1


def test_values_that_are_no_numbers_are_left_out():
    odd = [
        trial(0, "COMPLETE", float("nan"), [float("nan")]),
        trial(1, "COMPLETE", 0.5, [float("inf"), 0.4], params={RATE: float("nan"), "x": HOSTILE, "y": True}),
    ]
    root = read(figures_study.history(evidence(*odd)))
    assert len(points(root, "history-complete")) == 1
    assert group(read(figures_study.epochs(evidence(*odd))), "epochs-t0") is None
    assert "True" in words(read(figures_study.parallel(evidence(*odd))))


def test_a_drawing_keeps_letters_as_letters_and_runs_nothing():
    svg = drawn("odd", HOSTILE, HOSTILE, lambda axes: axes.set_xlabel("$x_1$ & <b>"))
    root = read(svg)
    assert "$x_1$ & <b>" in words(root)
    assert root.find(f"{SVG}title").text.startswith("<script>alert(1)</script>")
    assert not [one for one in root.iter() if one.tag.endswith(("script", "style", "metadata", "image"))]
    assert all(one.get("id", "odd-").startswith("odd-") for one in root.iter())
    assert drawn("a", "", "", lambda axes: axes.plot([1, 2])) == drawn("a", "", "", lambda axes: axes.plot([1, 2]))


@pytest.fixture(scope="module")
def own() -> Predictions:
    made = films(3)
    return predictions(made, np.round(logits(made, 2.0, 3), 1))  # rounded: there are ties


def test_the_curves_are_those_of_scikit_learn(own):
    roc = curves.roc(own)
    false, true, _ = roc_curve(own.labels, own.probabilities, drop_intermediate=False)
    np.testing.assert_allclose((roc.x, roc.y), (false, true), atol=1e-12)
    assert np.trapezoid(roc.y, roc.x) == pytest.approx(roc_auc_score(own.labels, own.probabilities))
    pr = curves.precision_recall(own)
    precision, recall, _ = precision_recall_curve(own.labels, own.probabilities)
    last = np.argmax(pr.x == 1)
    np.testing.assert_allclose(pr.x[1 : last + 1], recall[::-1][1 : last + 1], atol=1e-12)
    np.testing.assert_allclose(pr.y[1 : last + 1], precision[::-1][1 : last + 1], atol=1e-12)
    area = float((np.diff(pr.x) * pr.y[1:]).sum())
    assert area == pytest.approx(average_precision_score(own.labels, own.probabilities))


def test_bands_hold_the_curve_and_are_of_patients(own):
    for curve in (curves.roc(own), curves.precision_recall(own)):
        assert curve.why is None
        assert (curve.low <= curve.high + 1e-12).all()
        middle = slice(5, -5)
        line = np.interp(curve.at, curve.x, curve.y)
        inside = (curve.low - 0.05 <= line) & (line <= curve.high + 0.05)
        assert inside[middle].all()
    copied = Predictions(*(np.tile(part, 10) for part in (own.labels, own.probabilities)), own.groups * 10)
    wide, same = curves.roc(own), curves.roc(copied)
    np.testing.assert_allclose(same.high - same.low, wide.high - wide.low, atol=1e-9)
    alone = replace(copied, groups=tuple(map(str, range(len(copied.labels)))))
    assert (curves.roc(alone).high - curves.roc(alone).low).mean() < 0.5 * (wide.high - wide.low).mean()


def test_few_patients_give_no_band_and_say_so(own):
    few = Predictions(own.labels[:12], own.probabilities[:12], own.groups[:12])
    assert "10 are needed" in curves.roc(few).why
    svg = scores.roc("few", "few films", curves.roc(few), None, "0.5", CLASSES)
    assert group(read(svg), "few-roc-band") is None
    assert "10 are needed" in svg


def test_reliability_counts_every_film_and_bars_want_ten_patients(own):
    found = curves.reliability(own)
    assert found.films.sum() == len(own.labels)
    assert (found.films * found.observed).sum() == pytest.approx(own.labels.sum())
    assert (found.films * found.predicted).sum() == pytest.approx(own.probabilities.sum())
    root = read(scores.reliability("r", "films", found, "0.05", "pneumonia"))
    assert len(points(root, "r-reliability-bins")) == len(found.films)
    bars = [place for place in range(len(found.films)) if group(root, f"r-reliability-bar-{place}") is not None]
    assert bars == [place for place, low in enumerate(found.low) if not np.isnan(low)]
    assert len(bars) > 0
    known = ~np.isnan(found.low)
    assert ((found.low <= found.observed) & (found.observed <= found.high))[known].all()


def test_the_ring_is_at_the_threshold_and_the_band_is_drawn(own):
    root = read(scores.roc("v", "films", curves.roc(own), (0.0, 1.0), "0.9", CLASSES))
    ((x, y),) = points(root, "v-roc-threshold")
    line = path(root, "v-roc-curve")
    assert (x, y) == pytest.approx((line[0, 0], line[-1, 1]), abs=1e-3)
    assert group(root, "v-roc-band") is not None
    line = read(scores.precision_recall("v", "films", curves.precision_recall(own), None, "0.9", 0.6))
    assert group(line, "v-pr-curve") is not None


def test_the_confusion_matrix_tells_counts_and_shares():
    counts = {"true_positive": 30, "false_positive": 5, "true_negative": 15, "false_negative": 10}
    shown = scores.confusion("films", counts, CLASSES)
    assert re.findall(r"<b>(\d+)</b><br>([\d.]+) %", shown) == [
        ("15", "75.0"), ("5", "25.0"), ("10", "25.0"), ("30", "75.0"),
    ]  # fmt: skip
    nothing = scores.confusion("films", dict.fromkeys(counts, 0), CLASSES)
    assert nothing.count("0.0 %") == 4


def two(*values, second="parameters") -> Evidence:
    own = [replace(trial(number, "COMPLETE", one[0]), second=one[1]) for number, one in enumerate(values)]
    record = study(*own)
    rules = record.notes["rules"] | {"objectives": ["val.f1", second]}
    shares = {RATE: 0.6, RANK: 0.4}
    return Evidence(replace(record, notes={"rules": rules}), "now", "0.1.0", importances_second=shares)


def test_the_front_is_stairs_between_its_trials():
    root = read(figures_front.front(two((0.9, 1e6), (0.8, 1e4), (0.7, 1e5), (0.5, 1e3))))
    assert len(points(root, "front-best")) == 3
    assert len(points(root, "front-others")) == 1
    stairs = path(root, "front-stairs")
    assert (np.diff(stairs[:, 0]) <= 1e-6).all(), "towards fewer parameters"
    first, corner = stairs[0], stairs[1]
    assert corner[0] == pytest.approx(first[0])
    assert corner[1] > first[1], "right beside a trial only the next one is as cheap"
    assert {"0", "1", "3"} <= set(words(root))
    assert any("fewer is better" in text for text in words(root))


@pytest.mark.parametrize(("second", "better"), [("latency", "less"), ("robustness", "more"), (HOSTILE, "more")])
def test_the_axis_of_a_front_says_which_way_is_better(second, better):
    root = read(figures_front.front(two((0.9, 0.5), (0.8, 0.7), second=second)))
    assert any(f"{better} is better" in text for text in words(root))


def test_a_front_without_trials_and_with_numbers_that_are_none():
    assert group(read(figures_front.front(two())), "front-empty") is not None
    root = read(figures_front.front(two((0.9, float("nan")), (0.8, 1.0), (float("nan"), 2.0))))
    assert len(points(root, "front-best")) <= 1


def test_the_second_importances_have_ids_of_their_own():
    svg = str(figures_study.importances(two((0.9, 1.0)), second=True))
    assert 'id="importances-second-bar-0"' in svg
    assert "parameters" in svg
