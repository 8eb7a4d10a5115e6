"""Room robustness: what the changes do to a film, what a model with a known weakness is told, what is logged."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from xray_opt.adapter import Bundle
from xray_opt.config import TrackingConfig
from xray_opt.dataset import decode
from xray_opt.evaluate import Predictor
from xray_opt.intervals import Patients
from xray_opt.mlflow_client import connect
from xray_opt.robustness import MASKS, PERTURBATIONS, judge, rescore
from xray_opt.robustness.perturbing import at_rate, brighter, cut, reencoded, reshaped, with_gamma
from xray_opt.tuning import read_study

ALL = {**PERTURBATIONS, **MASKS}


def scene(seed: int = 0, height: int = 200, width: int = 260) -> np.ndarray:
    """A film with structure of all sizes, like anatomy with noise on it."""
    chance = np.random.default_rng(seed)
    coarse = Image.fromarray(chance.integers(60, 200, (12, 12), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float64)
    return np.clip(smooth + chance.normal(0, 6, smooth.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("name", ALL)
def test_a_change_is_a_function_of_the_film_alone_and_leaves_it_as_it_was(name: str) -> None:
    film = scene()
    before = film.copy()
    first, second = ALL[name](film), ALL[name](film)
    assert np.array_equal(first, second)
    assert np.array_equal(film, before)
    assert (first.dtype, first.ndim) == (np.uint8, 2)
    assert not np.array_equal(first, film)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("shape", [(16, 16), (17, 400), (400, 16)])
def test_films_of_odd_sizes_survive(name: str, shape: tuple[int, int]) -> None:
    changed = ALL[name](scene(1, *shape))
    assert min(changed.shape) >= 1


def test_recompression_is_pillows_and_harder_quality_loses_more() -> None:
    film = scene()
    buffer = io.BytesIO()
    Image.fromarray(film).save(buffer, "JPEG", quality=50)
    assert np.array_equal(reencoded(film, 50), decode(buffer.getvalue()))
    losses = [np.abs(reencoded(film, quality).astype(float) - film).mean() for quality in (30, 50, 75, 95)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] > 0


def test_at_one_rate_rough_and_smooth_films_take_the_same_room() -> None:
    sizes = []
    for noise in (0, 8, 30):
        film = scene(2, 300, 300).astype(np.float64) + np.random.default_rng(3).normal(0, noise, (300, 300))
        film = np.clip(film, 0, 255).astype(np.uint8)
        known = {quality: reencoded(film, quality) for quality in range(1, 96)}
        chosen = at_rate(film, 1.0)
        (quality,) = [quality for quality, one in known.items() if np.array_equal(one, chosen)][-1:]
        buffer = io.BytesIO()
        Image.fromarray(film).save(buffer, "JPEG", quality=quality)
        sizes.append(8 * (len(buffer.getvalue()) - 330) / film.size)
    assert all(size < 1.1 for size in sizes)
    assert min(sizes[1:]) > 0.85  # what is smooth may need less even at the best quality


def test_cuts_take_equal_shares_off_every_edge() -> None:
    film = scene(0, 200, 300)
    assert np.array_equal(cut(film, 0.1), film[20:180, 30:270])
    narrow, flat = reshaped(film, -0.2), reshaped(film, 0.25)
    assert np.array_equal(narrow, film[:, 30:270])
    assert np.array_equal(flat, film[20:180])
    assert [round(one.shape[1] / one.shape[0] / 1.5, 2) for one in (narrow, flat)] == [0.8, 1.25]


def test_greys_are_moved_as_said() -> None:
    film = np.array([[0, 51, 102], [153, 204, 255]], dtype=np.uint8)
    assert brighter(film, 0.1).tolist() == [[26, 76, 128], [178, 230, 255]]
    assert with_gamma(film, 2.0).tolist() == [[0, 10, 41], [92, 163, 255]]
    even = PERTURBATIONS["equalised"](scene())
    counts = np.bincount(even.ravel() // 64, minlength=4)
    assert counts.max() < 1.1 * counts.min()


def test_what_is_painted_out_leaves_nothing_of_itself() -> None:
    """Two films that differ only where it is painted become one."""
    for name, box in (
        ("corners painted out", (slice(0, 30), slice(0, 39))),
        ("border painted out", (slice(180, 200), slice(0, 260))),
        ("lungs painted out", (slice(40, 160), slice(50, 210))),
    ):
        film, other = scene(), scene()
        other[box] = 255
        assert np.array_equal(ALL[name](film), ALL[name](other)), name
        changed = ALL[name](film) != film
        assert not changed.all()
        assert changed[box].mean() > 0.9


class Reads(nn.Module):
    """A model whose logit is the mean of one box of the normalised square, less a constant, times a slope."""

    def __init__(self, rows: slice, columns: slice, slope: float = 20.0) -> None:
        super().__init__()
        self.box, self.slope = (rows, columns), slope

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        rows, columns = self.box
        return self.slope * images[:, :1, rows, columns].mean(dim=(2, 3))


def predictor(network: nn.Module, side: int = 48) -> Predictor:
    bundle = Bundle("full", "train", 0.0, "0" * 64, "random", 32, side)
    return Predictor(network, bundle, torch.device("cpu"))


def write(folder: Path, films: list[np.ndarray]) -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = []
    for number, film in enumerate(films):
        paths.append(folder / f"{number:03d}.png")
        Image.fromarray(film).save(paths[-1])
    return paths


def test_answers_are_those_of_a_film_that_was_changed_and_saved(tmp_path: Path) -> None:
    films = [scene(seed, 60 + seed, 80) for seed in range(20)]
    asked = predictor(Reads(slice(0, 20), slice(0, 32)))
    seen: list[tuple[int, int]] = []
    found = rescore(asked, write(tmp_path / "plain", films), ALL, lambda done, n: seen.append((done, n)))
    assert (found.logits.shape, found.names, found.unread) == ((1 + len(ALL), 20), tuple(ALL), ())
    assert seen == [(16, 20), (20, 20)]
    for row, change in enumerate([lambda film: film, *ALL.values()]):
        saved = write(tmp_path / f"changed{row}", [change(film) for film in films])
        np.testing.assert_allclose(found.logits[row], asked.logits(saved), atol=1e-4)


def test_films_that_went_are_named_and_the_others_are_scored(tmp_path: Path) -> None:
    paths = write(tmp_path, [scene(seed, 40, 40) for seed in range(5)])
    paths[1].unlink()
    paths[3].write_bytes(b"<html>")
    found = rescore(predictor(Reads(slice(None), slice(None))), paths, {"equalised": ALL["equalised"]})
    assert found.kept.tolist() == [0, 2, 4]
    assert found.logits.shape == (2, 3)
    assert ["001.png" in found.unread[0], "no such file" in found.unread[0]] == [True, True]
    assert "003.png: not an image" in found.unread[1]


def judged(changed: np.ndarray, patients: int = 300, names: tuple[str, ...] = ("edges cut by 10 %", "JPEG quality 30")):
    """A model with two films a patient that tells the classes well, and its answers under changes."""
    chance = np.random.default_rng(0)
    labels = np.tile(np.repeat([0, 1], patients), 1)
    plain = np.clip(0.5 + 0.25 * (2 * labels - 1) + chance.normal(0, 0.12, len(labels)), 0.01, 0.99)
    rows = np.stack([plain, *(np.clip(plain + change, 0, 1) for change in changed)])
    groups = [f"{label}-{number // 2}" for number, label in enumerate(labels)]
    return judge(names, (), rows, labels, Patients(groups), 0.5), rows


def test_flips_and_changes_are_counted_and_goals_judged() -> None:
    shift = np.array([[-0.3] * 600, [0.0] * 600])
    suite, rows = judged(shift)
    cut10, jpeg = suite.conditions
    assert cut10.flipped.value == np.mean((rows[1] >= 0.5) != (rows[0] >= 0.5)) > 0.2
    assert cut10.flipped.low < cut10.flipped.value < cut10.flipped.high
    assert (jpeg.flipped.value, jpeg.flipped.low, jpeg.auc_change.value) == (0, 0, 0)
    assert jpeg.flipped.high == pytest.approx(1 - 0.025 ** (1 / 300), abs=1e-9)
    assert suite.worst_case is cut10
    assert [(goal.what, goal.verdict) for goal in suite.goals] == [
        ("re-compression", "met"),
        ("a cut of 10 %", "not met"),
    ]
    assert suite.metrics("val")["robust.val.flipped_cut"] == cut10.flipped.value


def test_a_goal_that_the_interval_does_not_tell_is_said_to_be_so() -> None:
    suite, _ = judged(np.zeros((2, 120)), patients=60)
    assert {goal.verdict for goal in suite.goals} == {"not told apart by the interval"}
    few, _ = judged(np.zeros((2, 12)), patients=6)
    assert "too few patients" in few.conditions[0].flipped.why
    assert {goal.verdict for goal in few.goals} == {"not told apart by the interval"}


def test_the_interval_of_flips_covers_their_share() -> None:
    """300 patients, flips that cluster by patient: about 95 of 100 intervals hold the true share."""
    chance = np.random.default_rng(5)
    labels = np.repeat([0, 1], 150)
    hits = []
    for _ in range(200):
        plain = np.where(labels == 1, 0.8, 0.2)
        own = np.repeat(chance.random(150) < 0.06, 2)
        rows = np.stack([plain, np.where(own, 1 - plain, plain), plain])
        groups = [str(number // 2) for number in range(300)]
        one = judge(("edges cut by 10 %", "JPEG quality 30"), (), rows, labels, Patients(groups), 0.5).conditions[0]
        hits.append(one.flipped.low <= 0.06 <= one.flipped.high)
    assert 0.90 < np.mean(hits) < 0.99


def test_a_model_that_reads_a_corner_is_flagged_and_one_that_reads_the_lungs_is_not(tmp_path: Path) -> None:
    chance = np.random.default_rng(0)
    labels = np.tile([0, 1], 30)
    middle, corner = [], []
    for label in labels:
        film = chance.integers(60, 90, (64, 64), dtype=np.uint8)
        lungs, marked = film.copy(), film.copy()
        lungs[20:44, 20:44] += np.uint8(25 * label)
        marked[1:6, 1:6] += np.uint8(90 * label)  # inside a border of a tenth, and a corner
        middle.append(lungs)
        corner.append(marked)
    groups = Patients([str(number) for number in range(60)])
    found = {}
    for name, films, network in (
        ("lungs", middle, Reads(slice(8, 24), slice(8, 24))),
        ("corner", corner, Reads(slice(0, 5), slice(0, 5))),
    ):
        answers = rescore(predictor(network), write(tmp_path / name, films), ALL)
        probabilities = 1 / (1 + np.exp(-(answers.logits - np.median(answers.logits[0]))))
        found[name] = judge(answers.names, tuple(MASKS), probabilities, labels, groups, 0.5)
    assert found["lungs"].plain.auc.value == found["corner"].plain.auc.value == 1
    assert found["lungs"].shortcuts == ()
    flagged = " ".join(found["corner"].shortcuts)
    assert all(words in flagged for words in ("reads the border", "reads the corners", "without the lungs: AUC 1.000"))
    assert {one.name for one in found["corner"].masks} == {*MASKS, "corners painted out"}


def test_the_command_prints_the_worst_case_first_in_80_columns_and_logs(tuned) -> None:
    place, _, _ = tuned
    plain, suite = place.json("evaluate"), place.json("evaluate", "--robustness")
    assert suite["at_threshold"] == plain["at_threshold"]
    assert plain["robustness"] is None
    names = [one["name"] for one in suite["robustness"]["conditions"]]
    assert names == list(PERTURBATIONS)
    done = place.run("evaluate", "--robustness")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[1].startswith(f"worst case: {suite['robustness']['worst']}: AUC ")
    assert sum(line.startswith("goal under 2 %") for line in lines) == 2
    assert {name for name in ALL if any(line.strip().startswith(name) for line in lines)} == set(ALL)
    client = connect(TrackingConfig(), place.workspace).client
    run = str(read_study("tiny", place.workspace).best.notes["mlflow_run"])
    assert json.loads(Path(client.download_artifacts(run, "robustness-val.json")).read_text()) == suite["robustness"]
    worst = client.get_run(run).data.metrics["robust.val.worst_flipped"]
    assert worst == max(one["flipped"]["value"] for one in suite["robustness"]["conditions"])
    told = client.get_run(run).data.tags["robust.val.worst"]
    assert told.startswith(f"{suite['robustness']['worst']}: AUC ")
    assert f"{100 * worst:.1f}" in told
    assert told.endswith(f"flipped at threshold {suite['threshold']:.4f}")
    assert client.get_model_version_by_alias("xray-pneumonia", "champion").tags["robust.val.worst"] == told


def test_an_outside_folder_and_the_sealed_test_have_the_same_report(tuned, tmp_path: Path) -> None:
    from xray_opt.leaderboard import openings
    from xray_opt.phantom import make_phantoms

    place, _, _ = tuned
    make_phantoms(tmp_path / "others", 14, 99)
    for path in sorted((tmp_path / "others").rglob("*.jpeg")):
        path.rename(path.with_name(path.name.replace("person", "person9").replace("IM-0", "IM-9")))
    outside = place.json("evaluate", "--robustness", "--data", str(tmp_path / "others"), "--split", "all")
    assert outside["robustness"]["films"] == outside["films"]
    refused = place.run("evaluate", "--robustness", "--split", "test")
    assert (refused.returncode, "sealed" in refused.stderr) == (2, True)
    before = len(openings(read_study("tiny", place.workspace)))
    opened = place.json("evaluate", "--robustness", "--split", "test", "--why", "robust on the test?")
    after = openings(read_study("tiny", place.workspace))
    assert (len(after), after[-1].why) == (before + 1, "robust on the test?")
    assert after[-1].scores["test.f1"] == opened["at_threshold"]["f1"]
