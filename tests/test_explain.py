"""Room explain: heat where a known network looks, exact for every strategy; sheets; the command."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from xray_opt.adapter import attach, set_mode
from xray_opt.backbone import random_base
from xray_opt.config import Config, TrackingConfig, override
from xray_opt.evaluate import predict_logits
from xray_opt.explain import Cell, colours, grad_cam, sheet, shown, towards
from xray_opt.mlflow_client import connect
from xray_opt.tuning import read_study

CPU = torch.device("cpu")


class Corner(nn.Module):
    """Its features are the greys of one quarter of the film, on a grid of 8 × 8, and nothing elsewhere."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.AdaptiveAvgPool2d(8), Quarter())
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Linear(3, 1))
        nn.init.constant_(self.classifier[0].weight, weight)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.classifier(torch.flatten(self.avgpool(self.features(images)), 1))


class Quarter(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        mask = torch.zeros(8, 8)
        mask[:4, 4:] = 1
        return (images + 3) * mask


@pytest.mark.parametrize(("weight", "sign"), [(1.0, 1), (-1.0, -1)])
def test_heat_lies_in_the_corner_that_decides(weight: float, sign: int) -> None:
    films = np.random.default_rng(0).integers(0, 256, (3, 40, 40), dtype=np.uint8)
    logits, maps = grad_cam(Corner(weight), films, 32, CPU)
    assert (maps.shape, np.sign(logits).tolist()) == ((3, 8, 8), [sign] * 3)
    heat = towards(maps, np.array([sign] * 3))
    inside = np.zeros((8, 8), dtype=bool)
    inside[:4, 4:] = True
    assert (heat[:, inside] > 0).all()
    assert (heat[:, ~inside] == 0).all()
    assert heat.max(axis=(1, 2)).tolist() == [1, 1, 1]
    assert (towards(maps, np.array([-sign] * 3)) == 0).all()


def test_the_brightest_place_of_the_corner_is_the_hottest() -> None:
    film = np.full((1, 32, 32), 100, dtype=np.uint8)
    film[0, 4:8, 24:28] = 250
    film[0, 20:30, 2:12] = 250  # brighter and larger, but not looked at
    heat = towards(grad_cam(Corner(1.0), film, 32, CPU)[1], np.array([1]))[0]
    assert np.unravel_index(heat.argmax(), heat.shape) == (1, 6)


STRATEGIES = {
    "folded lora": {"model.strategy": "lora", "lora.rank": 4},
    "lora with dropout": {"model.strategy": "lora", "lora.rank": 4, "lora.dropout": 0.1, "lora.stages": "late"},
    "trained statistics": {"model.strategy": "lora", "lora.rank": 4, "model.batch_norm": "train"},
    "linear": {"model.strategy": "linear"},
    "full": {"model.strategy": "full", "model.batch_norm": "train"},
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_map_sums_to_the_logit_whatever_was_trained(name: str) -> None:
    network = attach(random_base(0), override(Config(), STRATEGIES[name] | {"image.size": 32}))
    with torch.no_grad():
        for weight in (value for key, value in network.named_parameters() if ".lora_B" in key):
            weight.normal_(0, 0.02)  # an adapter that does something
    set_mode(network, True)
    modes = [module.training for module in network.modules()]
    films = np.random.default_rng(1).integers(0, 256, (5, 48, 48), dtype=np.uint8)
    logits, maps = grad_cam(network, films, 32, CPU)
    np.testing.assert_allclose(logits, predict_logits(network, films, 32, CPU), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(maps.sum(axis=(1, 2)), logits, rtol=1e-3, atol=1e-5)
    assert [module.training for module in network.modules()] == modes
    assert all(parameter.grad is None for parameter in network.parameters())
    again = predict_logits(network, films, 32, CPU)
    np.testing.assert_allclose(again, logits, rtol=1e-4, atol=1e-5)


def test_colours_rise_evenly_in_lightness() -> None:
    ramp = colours(np.linspace(0, 1, 200)[None])[0].astype(float)
    lightness = ramp @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(lightness) > -1e-9).all()
    assert ramp[0].tolist() == [68, 1, 84]
    assert ramp[-1].tolist() == [253, 231, 37]


def test_a_sheet_shows_the_film_and_beside_it_the_heat() -> None:
    film = shown(np.full((300, 600), 90, dtype=np.uint8))
    assert film.shape == (120, 240)
    heat = np.zeros((4, 8))
    heat[0, 7] = 1
    page = np.asarray(sheet([Cell(film, heat, ("a" * 300, "PNEUMONIA at 0.9"))] * 3, ("head",)))
    grey = (page[..., 0] == 90) & (page[..., 1] == 90) & (page[..., 2] == 90)
    yellow = (page[..., 0] > 150) & (page[..., 2] < 90) & (page[..., 1] > 130)
    assert grey.sum() > 3 * 1.5 * film.size
    assert yellow.sum() > 3 * 50
    places = np.argwhere(yellow)
    assert places[:, 0].min() < 200  # top right of the right picture of the first film
    assert not yellow[:, :250].any()


def test_the_command_shows_the_worst_of_validation_and_logs_the_sheet(tuned, tmp_path: Path) -> None:
    place, _, _ = tuned
    made = place.json("explain", "--out", str(tmp_path / "worst"), "--worst", "5")
    films = made["films"]
    assert len(films) == 5
    doubts = [(one["probability"] - one["threshold"]) * (1 if one["label"] == "PNEUMONIA" else -1) for one in films]
    assert np.sign(doubts).tolist() == sorted(np.sign(doubts).tolist())
    assert made["wrong"] == sum(one["label"] != one["answer"] for one in films)
    assert Image.open(made["sheet"]).size[0] > 900
    rows = list(csv.DictReader(Path(made["table"]).read_text().splitlines()))
    assert [row["path"] for row in rows] == [one["path"] for one in films]
    answered = {row["path"]: row for row in place.json("predict", *(one["path"] for one in films))}
    for one in films:
        assert one["probability"] == pytest.approx(answered[one["path"]]["probability"], abs=1e-5)
    client = connect(TrackingConfig(), place.workspace).client
    run = str(read_study("tiny", place.workspace).best.notes["mlflow_run"])
    logged = {artifact.path for artifact in client.list_artifacts(run, "explain-val")}
    assert logged == {"explain-val/explain.png", "explain-val/explain.csv"}


def test_named_films_have_no_label_and_what_cannot_be_shown_is_one_line(tuned, tmp_path: Path) -> None:
    place, _, _ = tuned
    film = next((place.films / "val" / "NORMAL").iterdir())
    made = place.json("explain", str(film), "--out", str(tmp_path / "one"))
    assert [(one["path"], one["label"]) for one in made["films"]] == [(str(film), None)]
    for arguments, words in (
        ([str(film), "--out", str(tmp_path / "one")], "exists already"),
        ([str(place.films), "--out", str(tmp_path / "many")], "1 to 64 films"),
        (["--worst", "0", "--out", str(tmp_path / "none")], "1 to 64 films"),
        (["--split", "test", "--out", str(tmp_path / "sealed")], "sealed"),
        ([str(film), "--skip-bad", "--out", str(tmp_path / "bad")], "--split all"),
        ([str(tmp_path / "no.png"), "--out", str(tmp_path / "gone")], "does not exist"),
    ):
        done = place.run("explain", *arguments)
        assert done.returncode in (2, 3)
        assert words in done.stderr
        assert done.stderr.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one"]


def test_looking_at_test_films_is_an_opening(tuned, tmp_path: Path) -> None:
    from xray_opt.leaderboard import openings

    place, _, _ = tuned
    before = len(openings(read_study("tiny", place.workspace)))
    place.json("explain", "--split", "test", "--why", "where it looks", "--out", str(tmp_path / "test"))
    after = openings(read_study("tiny", place.workspace))
    assert (len(after), after[-1].why) == (before + 1, "where it looks")
    assert "test.f1" in after[-1].scores


def test_a_store_elsewhere_learns_no_names(tuned, server, tmp_path: Path) -> None:
    """A run on a server: the sheet's table there holds pseudonyms."""
    from xray_opt.scoring.explaining import _Asked, _explained, _log

    place, _, _ = tuned
    remote = connect(TrackingConfig(uri=server), place.workspace)
    local = connect(TrackingConfig(), place.workspace)
    from xray_opt import registry

    loaded = registry.load(local, "models:/xray-pneumonia@champion", CPU)
    experiment = remote.client.create_experiment("explained")
    run = remote.client.create_run(experiment).info.run_id
    film = next((place.films / "val" / "NORMAL").iterdir())
    asked = _Asked(registry.Loaded(loaded.predictor, run, {}), remote, 0.5, ((film, "NORMAL"),))
    _log(asked, *_explained(loaded, 0.5, asked.films), "val", place.workspace)
    text = Path(remote.client.download_artifacts(run, "explain-val/explain.csv", str(tmp_path))).read_text()
    assert film.stem not in text
    assert "film-" in text
    assert json.dumps(str(place.films))[1:-1] not in text
