"""Spaces as a whole: conditions that can hold, values that are settings, image sizes, and what a study optimises."""

import dataclasses

import pytest

from xray_opt.config import OBJECTIVES, StudyConfig, load_study, override
from xray_opt.config.study_file import shipped_studies
from xray_opt.errors import ConfigError
from xray_opt.tuning.rules import first_difference

SPACE = """
name: wide
config:
  model: {strategy: lora}
  lora: {rank: 4}
  image: {size: 96}
space:
  model.strategy: {type: categorical, choices: [lora, linear]}
  lora.rank: {type: categorical, choices: [4, 8], when: {model.strategy: lora}}
  lora.stages: {type: categorical, choices: [late, all], when: {model.strategy: lora}}
  image.size: {type: categorical, choices: [64, 48]}
  optimizer.weight_decay: {type: float, low: 1e-4, high: 1e-1, log: true}
  loss.gamma: {type: float, low: 0, high: 4}
  loss.label_smoothing: {type: float, low: 0, high: 0.2}
  augment.border: {type: float, low: 0, high: 0.2}
  augment.recompress: {type: categorical, choices: [0.0, 0.5]}
  augment.ratio_min: {type: float, low: 0.5, high: 0.9}
  augment.ratio_max: {type: float, low: 1.1, high: 2.0}
  augment.brightness: {type: float, low: 0, high: 0.2}
enqueue:
  - {model.strategy: linear, image.size: 48}
"""


def study(tmp_path, text=SPACE):
    path = tmp_path / "wide.yaml"
    path.write_text(text)
    return load_study(path)


def refused(tmp_path, text):
    with pytest.raises(ConfigError) as caught:
        study(tmp_path, text)
    assert "wide.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_rule_of_two_sections_is_checked_wherever_both_may_be_drawn(tmp_path):
    batches = "training.batch_size: {type: categorical, choices: [1, 8]"
    norms = "model.batch_norm: {type: categorical, choices: [frozen, train]}"
    fixed = SPACE.replace("model: {strategy: lora}", "model: {strategy: lora, batch_norm: train}")
    for text in (
        SPACE.replace("space:", f"space:\n  {norms}\n  {batches}}}"),
        fixed.replace("space:", f"space:\n  {batches}}}"),
        SPACE.replace("image: {", "training: {micro_batch: 1}\n  image: {").replace("space:", f"space:\n  {norms}"),
    ):
        assert "model.batch_norm=train needs at least 2 films a batch" in refused(tmp_path, text)
    apart = SPACE.replace("space:", f"space:\n  {norms}\n  {batches}, when: {{model.batch_norm: frozen}}}}")
    assert len(study(tmp_path, apart).space) == 14
    with pytest.raises(ConfigError, match="needs at least 2 films"):
        override(study(tmp_path).config, {"model.batch_norm": "train", "training.batch_size": 1})


def test_strategies_losses_sizes_and_counter_shortcuts_can_be_searched(tmp_path):
    wide = study(tmp_path)
    assert len(wide.space) == 12
    assert wide.image_sizes == (64, 48)
    assert dataclasses.replace(wide, space=()).image_sizes == (96,)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("choices: [lora, linear]}", "choices: [full, linear]}", "lora.rank is never searched: model.strategy"),
        ("when: {model.strategy: lora}}\n  lora.st", "when: {model.batch_norm: train}}\n  lora.st", "never train"),
        ("choices: [4, 8], when", "choices: [4, 512], when", "lora.rank must be between 1 and 256, not 512"),
        ("low: 0.5, high: 0.9", "low: 0.5, high: 1.2", "0 < min <= max <= 10, not (1.2, 1.1)"),
        ("high: 4}", "high: 40}", "loss.gamma must be between 0 and 10, not 40"),
        ("{type: categorical, choices: [64, 48]}", "{type: int, low: 32, high: 96}", "among choices alone"),
        ("choices: [64, 48]", "choices: [64, 16]", "image.size must be between 32 and 1024"),
        ("high: 0.2}\n  augment.border", "high: 1}\n  augment.border", "loss.label_smoothing must be in"),
        ("type: float, low: 0, high: 4}", "type: float, low: 0, high: x}", "finite number"),
        ("{model.strategy: linear, image.size: 48}", "{model.strategy: linear, lora.rank: 4}", "only where model"),
    ],
)
def test_a_space_that_makes_no_sense_is_refused_with_one_line(tmp_path, old, new, says):
    assert old in SPACE
    assert says in refused(tmp_path, SPACE.replace(old, new))


def test_whole_numbers_are_not_searched_as_fractions(tmp_path):
    assert "lora.rank must be int" in refused(tmp_path, "space:\n  lora.rank: {type: float, low: 1, high: 8}\n")


def test_what_is_searched_need_not_fit_the_fixed_value_of_its_partner(tmp_path):
    text = "space:\n  augment.ratio_min: {type: float, low: 1.4, high: 1.5}\n"
    assert "ratio" in refused(tmp_path, text)
    assert study(tmp_path, text + "  augment.ratio_max: {type: float, low: 1.6, high: 2}\n")


def test_a_size_under_a_condition_may_be_the_fixed_one_too(tmp_path):
    text = SPACE.replace("choices: [64, 48]}", "choices: [64, 48], when: {model.strategy: lora}}")
    assert study(tmp_path, text.replace(", image.size: 48", "")).image_sizes == (64, 48, 96)


def test_the_fixed_value_of_a_conditional_setting_is_a_rule(tmp_path):
    before = study(tmp_path).rules()
    now = study(tmp_path, SPACE.replace("rank: 4}\n  image", "rank: 8}\n  image")).rules()
    assert first_difference(before, now) == "lora.rank was 4, now it is 8"
    older = {**before, "fixed": {n: v for n, v in before["fixed"].items() if not n.startswith("lora.")}}
    older.pop("objectives")
    assert first_difference(older, now) is None, "studies that did not keep it go on"


def objectives(tmp_path, line, more=""):
    return study(tmp_path, f"name: two\nobjectives: {line}\n{more}")


@pytest.mark.parametrize("second", sorted(OBJECTIVES.keys() - {"val.f1"}))
def test_a_study_may_have_a_second_objective(tmp_path, second):
    two = objectives(tmp_path, f"[val.f1, {second}]")
    assert (two.objectives, two.second, two.pruner.name) == (("val.f1", second), second, "none")
    assert two.rules()["objectives"] == ["val.f1", second]
    one = study(tmp_path, "name: two\n")
    assert (one.second, one.pruner.name) == (None, "median")
    assert first_difference(one.rules(), two.rules()) == (f"its objectives were val.f1, now they are val.f1, {second}")


@pytest.mark.parametrize(
    ("line", "more", "says"),
    [
        ("[latency, val.f1]", "", "objectives must be val.f1, alone or with one of parameters, latency, robustness"),
        ("[val.f1, val.f1]", "", "objectives must be"),
        ("[val.f1, speed]", "", "objectives must be"),
        ("[val.f1, latency, robustness]", "", "objectives must be"),
        ("[]", "", "objectives must be"),
        ("val.f1", "", "a list such as"),
        ("[val.f1, 3]", "", "must be text"),
        ("[val.f1, latency]", "pruner: {name: median}", "pruner.name must be none with two objectives, not median"),
        ("[val.f1, latency]", "pruner: {}", "pruner.name must be none"),
        ("[val.f1, latency]", "sampler: {name: cmaes}", "sampler.name must not be cmaes"),
    ],
)
def test_other_objectives_are_refused_with_one_line(tmp_path, line, more, says):
    assert says in refused(tmp_path, f"name: two\nobjectives: {line}\n{more}\n")


def test_a_space_is_checked_again_with_what_the_command_line_fixes(tmp_path, monkeypatch):
    from xray_opt.cli.options import study_from

    monkeypatch.setenv("XRAY_OPT_HOME", str(tmp_path))
    path = tmp_path / "rank.yaml"
    path.write_text("space:\n  lora.rank: {type: int, low: 2, high: 8, when: {model.strategy: lora}}\n")
    options = {"data": None, "weights": None, "device": None, "uri": None}
    assert study_from(str(path), None, None, sets=(), **options).space
    with pytest.raises(ConfigError, match=r"space\.lora\.rank is never searched: model\.strategy is never lora"):
        study_from(str(path), None, None, sets=("model.strategy=linear",), **options)


def test_a_study_made_in_python_has_one_objective():
    assert StudyConfig("s").objectives == ("val.f1",)
    with pytest.raises(ConfigError, match=r"pruner\.name must be none"):
        StudyConfig("s", objectives=("val.f1", "latency"))


@pytest.mark.parametrize("path", sorted(shipped_studies().glob("*.yaml")), ids=lambda path: path.stem)
def test_the_first_known_good_setting_of_a_shipped_study_is_a_config(path):
    shipped = load_study(path)
    assert shipped.enqueue
    override(shipped.config, shipped.enqueue[0])
