"""Settings, dotted names, YAML and study files: what is accepted, and the line that refuses the rest."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xray_opt.config import (
    Config,
    Workspace,
    as_text,
    find_study,
    flatten,
    load_study,
    override,
    parse_assignments,
)
from xray_opt.config.dotted import read_yaml
from xray_opt.config.study_file import shipped_studies
from xray_opt.errors import ConfigError

GOOD = """
name: tiny
trials: 4
config:
  model: {base: random, strategy: lora}
  training: {epochs: 2}
space:
  optimizer.learning_rate: {type: float, low: 1e-5, high: 1e-3, log: true}
  model.strategy: {type: categorical, choices: [lora, linear]}
  lora.rank: {type: categorical, choices: [4, 8], when: {model.strategy: lora}}
  training.batch_size: {type: int, low: 8, high: 32, step: 8}
enqueue:
  - {optimizer.learning_rate: 1e-4, lora.rank: 8}
"""


def study(tmp_path, text=GOOD):
    path = tmp_path / "tiny.yaml"
    path.write_text(text)
    return load_study(path)


def test_flatten_names_every_setting_once_and_override_inverts_it():
    flat = flatten(Config())
    assert flat["optimizer.learning_rate"] == 1e-4
    assert override(Config(), flat) == Config()


def test_override_changes_a_copy():
    changed = override(Config(), {"lora.rank": 8, "lora.alpha": 16})
    assert (changed.lora.rank, changed.lora.alpha, Config().lora.rank) == (8, 16.0, 16)
    assert isinstance(changed.lora.alpha, float)


def test_settings_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().lora.rank = 3


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("lora.rnak", 8, "did you mean lora.rank"),
        ("LORA.RANK", 8, "did you mean lora.rank"),
        ("lora", 8, "unknown setting"),
        ("lora.rank", 8.5, "must be int"),
        ("lora.rank", True, "must be int"),
        ("lora.rank", 0, "between 1 and 256"),
        ("optimizer.learning_rate", "fast", "must be float"),
        ("optimizer.learning_rate", -1.0, "positive"),
        ("optimizer.learning_rate", float("nan"), "finite"),
        ("model.strategy", "qlora", "one of lora, linear, full"),
        ("training.device", "tpu", "auto, cuda"),
        ("training.micro_batch", 17, "1 to batch_size"),
        ("data.val_fraction", 0.5, "sum to 1"),
        ("data.root", 3, "str or null"),
        ("image.size", 7, "between 32 and 1024"),
        ("augment.scale_min", 1.2, "min <= max"),
        ("tracking.registered_model", " ", "printable"),
        ("tracking.registered_model", "a\nb", "printable"),
        ("tracking.registered_model", "a'b", "printable"),
        ("tracking.registered_model", 'a"b', "printable"),
        ("tracking.registered_model", "x" * 251, "printable"),
    ],
)
def test_wrong_settings_are_refused_with_one_line(name, value, says):
    with pytest.raises(ConfigError, match=says) as caught:
        override(Config(), {name: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-5", 1e-5), ("1.0e-5", 1e-5), ("3E+2", 300.0), ("0.1", 0.1), ("1", 1), ("e5", "e5"), ("null", None)],
)
def test_yaml_reads_numbers_as_people_write_them(text, value):
    read = read_yaml(text, "test")
    assert read == value
    assert type(read) is type(value)


def test_assignments():
    values = parse_assignments(["lora.rank=8", "optimizer.learning_rate=1e-4", "data.root=a=b"])
    assert values == {"lora.rank": 8, "optimizer.learning_rate": 1e-4, "data.root": "a=b"}
    with pytest.raises(ConfigError, match="name=value"):
        parse_assignments(["lora.rank"])


@pytest.mark.parametrize(
    ("value", "text"), [(None, "null"), (True, "true"), (1e-4, "0.0001"), (8, "8"), ("lora", "lora")]
)
def test_one_spelling_of_a_value(value, text):
    assert as_text(value) == text


def test_a_study_file_is_read_with_types(tmp_path):
    tiny = study(tmp_path)
    assert (tiny.name, tiny.trials, tiny.config.training.epochs) == ("tiny", 4, 2)
    rate, strategy, rank, batch = tiny.space
    assert (rate.kind, rate.log, rate.low) == ("float", True, 1e-5)
    assert rank.when == {"model.strategy": "lora"}
    assert (batch.step, strategy.choices) == (8, ("lora", "linear"))
    assert tiny.enqueue == ({"optimizer.learning_rate": 1e-4, "lora.rank": 8},)
    assert rank.applies({"model.strategy": "lora"})
    assert not rank.applies({"model.strategy": "linear"})
    assert tiny.settings({"lora.rank": 4}).lora.rank == 4


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("trials: 4", "trails: 4", "unknown key 'trails'"),
        ("trials: 4", "trials: 0", "at least 1"),
        ("trials: 4", "trials: yes", "whole number"),
        ("trials: 4", "trials: 4\ntrials: 5", "stands twice"),
        ("trials: 4", "trials: " + ":".join("1" * 2500), "a number beyond 63 bits"),
        ("name: tiny", "name: a/b", "letters, digits"),
        ("name: tiny", 'name: "it\'s"', "letters, digits"),
        ("name: tiny", "name: ..", "letters, digits"),
        ("name: tiny", 'name: "tiny\\n"', "letters, digits"),
        ("name: tiny", "name: Thörax", "letters, digits"),
        ("name: tiny", f"name: {'x' * 101}", "letters, digits"),
        ("name: tiny", "name: [", "not valid YAML"),
        ("epochs: 2", "epohcs: 2", "did you mean training.epochs"),
        ("type: int", "type: integer", "float, int or categorical"),
        ("low: 8,", "low: 64,", "low <= high"),
        ("low: 8,", "low: 8.5,", "whole numbers"),
        ("choices: [4, 8]", "choices: []", "at least one value"),
        ("choices: [4, 8]", "choices: [4, 4]", "twice"),
        ("choices: [4, 8]", "choices: [4, eight]", "must be int"),
        ("choices: [4, 8]", "choices: [4, 8], step: 2, foo: 1", "unknown key 'foo'"),
        ("low: 1e-5,", "low: 0,", "low > 0 with log"),
        ("when: {model.strategy: lora}", "when: {training.batch_size: 8}", "must stand above"),
        ("lora.rank: 8}", "lora.rank: 64}", "outside the space"),
        ("lora.rank: 8}", "lora.alpha: 64}", "not in the space"),
        ("training.batch_size: {", "data.seed: {", "may not be searched"),
        ("space:", "sampler: {name: magic}\nspace:", "sampler.name must be one of tpe"),
        ("space:", "pruner: {warmup: 3}\nspace:", "unknown key 'warmup'"),
        ("space:", "sampler: {multivariate: 3}\nspace:", "true or false"),
        ("config:", "config: 3\nfoo:", "foo"),
    ],
)
def test_wrong_study_files_are_refused_with_one_line(tmp_path, old, new, says):
    assert old in GOOD
    with pytest.raises(ConfigError, match=says) as caught:
        study(tmp_path, GOOD.replace(old, new))
    assert "tiny.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.text(max_size=200))
def test_any_text_is_a_study_or_one_line(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(text, encoding="utf-8", errors="replace")
    refused = None
    try:
        load_study(path)
    except ConfigError as error:
        refused = str(error)
    assert refused is None or "\n" not in refused


def test_rules_hold_what_is_computed_and_not_where(tmp_path):
    tiny = study(tmp_path)
    elsewhere = dataclasses.replace(tiny, config=override(tiny.config, {"training.device": "cpu", "data.root": "x"}))
    changed = dataclasses.replace(tiny, config=override(tiny.config, {"training.epochs": 3}))
    assert tiny.rules() == elsewhere.rules()
    assert tiny.rules() != changed.rules()
    assert "training.batch_size" not in tiny.rules()["fixed"]
    assert tiny.rules()["fixed"]["lora.rank"] == 16, "it stands where the condition does not hold"


@pytest.mark.parametrize("path", sorted(shipped_studies().glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_studies_load_and_open_with_their_command(path):
    loaded = load_study(path)
    assert loaded.name == path.stem
    assert "xray-opt tune" in path.read_text().split("name:")[0]


def test_the_reference_sweep_is_enqueued():
    reference = load_study(shipped_studies() / "reference.yaml")
    settings = [
        tuple(item[k] for k in ("optimizer.learning_rate", "lora.rank", "lora.alpha")) for item in reference.enqueue
    ]
    assert settings == [(1.01e-4, 8, 32), (1.87e-4, 16, 64), (1.78e-4, 16, 32), (5.32e-5, 16, 16)]


def test_studies_are_found_by_path_and_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    workspace = Workspace(tmp_path)
    assert find_study("laptop", workspace) == shipped_studies() / "laptop.yaml"
    assert find_study("studies/laptop.yaml", workspace) == shipped_studies() / "laptop.yaml"
    workspace.studies.mkdir()
    (workspace.studies / "laptop.yaml").write_text(GOOD)
    assert find_study("laptop", workspace) == workspace.studies / "laptop.yaml"
    (workspace.studies / "exp.v2.yaml").write_text("name: exp\n")
    assert find_study("exp.v2", workspace) == workspace.studies / "exp.v2.yaml"
    with pytest.raises(ConfigError, match="shipped studies: demo, kinds, laptop, pareto, reference"):
        find_study("elsewhere/laptop.yaml", workspace)


@pytest.mark.parametrize("name", ["what?", "50%", "a%41"])
def test_a_workspace_whose_databases_have_no_url_is_one_line(tmp_path, monkeypatch, name):
    """Both databases would lie outside of it, in one file."""
    monkeypatch.setenv("XRAY_OPT_HOME", str(tmp_path / name))
    workspace = Workspace.here()
    for asked in (lambda: workspace.study_database, lambda: workspace.mlflow_uri):
        with pytest.raises(ConfigError, match="in its path") as caught:
            asked()
        assert "\n" not in str(caught.value)


def test_workspace_follows_the_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("XRAY_OPT_HOME", str(tmp_path))
    assert Workspace.here().mlruns == tmp_path / "mlruns"
    monkeypatch.delenv("XRAY_OPT_HOME")
    monkeypatch.chdir(tmp_path)
    assert Workspace.here().study_database == tmp_path / "studies" / "optuna.db"
