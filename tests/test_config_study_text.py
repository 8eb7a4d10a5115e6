"""A study file made of what a study keeps of itself starts the same study."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import STUDY

from xray_opt.config import Workspace, load_study, study_files, study_text
from xray_opt.tuning import open_study, read_study

SHIPPED = study_files(Workspace(Path("/nowhere")))


def again(path: Path, folder: Path, trials: int = 7):
    """The study of a file as JSON keeps it, written to a file and read."""
    study = load_study(path)
    written = folder / "again.yaml"
    written.write_text(study_text(study.name, study.rules(), study.search(), trials), encoding="utf-8")
    return study, load_study(written)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_study_comes_back_with_the_same_rules_and_search(path: Path, tmp_path: Path) -> None:
    study, made = again(path, tmp_path)
    assert (made.name, made.trials) == (study.name, 7)
    rules = study.rules()
    rules["fixed"]["model.base"] = Path(str(rules["fixed"]["model.base"])).name  # no folders of this machine
    assert made.rules() == rules
    assert made.search() == study.search()


EVERYTHING = """
name: odd
seed: 3
objectives: [val.f1, latency]
config:
  data: {negative: '1e-5', positive: 'yes', train_films: 30}
  tracking: {registered_model: other}
  optimizer: {weight_decay: 1.0e-7}
space:
  model.strategy: {type: categorical, choices: [lora, linear]}
  lora.rank: {type: categorical, choices: [2, 4], when: {model.strategy: lora}}
  optimizer.learning_rate: {type: float, low: 1.0e-5, high: 1.0e-2, log: true}
  training.epochs: {type: int, low: 1, high: 9, step: 2}
  loss.alpha: {type: float, low: 0.25, high: 0.75, step: 0.25}
sampler: {name: nsgaii, startup_trials: 4}
enqueue:
  - {model.strategy: lora, lora.rank: 4}
"""


def test_conditions_steps_objectives_and_odd_texts_come_back(tmp_path: Path) -> None:
    (tmp_path / "odd.yaml").write_text(EVERYTHING)
    study, made = again(tmp_path / "odd.yaml", tmp_path)
    assert made.rules() | {"fixed": None} == study.rules() | {"fixed": None}
    assert made.rules()["fixed"] == study.rules()["fixed"]
    assert made.search() == study.search()


def test_what_a_study_noted_is_enough(tmp_path: Path) -> None:
    """The notes go through a database; a later call with another sampler is the one that is told."""
    (tmp_path / "tiny.yaml").write_text(STUDY)
    workspace, study = Workspace(tmp_path), load_study(tmp_path / "tiny.yaml")
    open_study(study, workspace, "d" * 64)
    notes = read_study("tiny", workspace).notes
    assert (notes["rules"], notes["search"]) == (study.rules(), study.search())
    written = tmp_path / "again.yaml"
    written.write_text(study_text("tiny", notes["rules"], notes["search"], 3))
    open_study(load_study(written), workspace, "d" * 64)  # raises where a rule differs


def test_a_path_of_base_weights_is_named_without_its_folder_and_nothing_breaks_on_odd_notes() -> None:
    text = study_text("x", {"fixed": {"model.base": "/home/me/base.safetensors"}}, {}, 1)
    assert "/home/me" not in text
    assert "base.safetensors" in text
    odd = "<script> \x00 \ud800 {}"
    rules = {"fixed": {odd: odd, "a.b": object}, "space": [{"name": odd, "kind": odd, "choices": [odd]}], "seed": odd}
    assert study_text(odd, rules, {"sampler": odd}, 1).encode()
