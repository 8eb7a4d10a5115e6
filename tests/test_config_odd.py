"""Settings and study files that nobody writes by accident: refused with one short line, at no cost of memory."""

import pytest

from xray_opt.config import Config, Workspace, find_study, load_study, override, parse_assignments
from xray_opt.config.dotted import read_yaml
from xray_opt.errors import ConfigError


def study(tmp_path, text):
    path = tmp_path / "tiny.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{[a]: 1}", "a key must be plain text"),
        ("!!int ''", "cannot be read"),
        ("!!bool maybe", "cannot be read"),
        ("!!timestamp x", "cannot be read"),
        ("1:1:1:" * 200 + "1.0", "cannot be read"),
        ("[" * 5000, "cannot be read"),
        ("a: &a {x: 1}\nb: {<<: [" + "*a, " * 1001 + "]}", "more than 1000 names in one mapping"),
    ],
)
def test_yaml_that_makes_its_parser_stumble_is_one_line(text, says):
    with pytest.raises(ConfigError, match=f"^here is not valid YAML: .*{says}") as caught:
        read_yaml(text, "here")
    assert len(str(caught.value)) < 200


def test_aliases_that_grow_by_the_power_cost_no_memory(tmp_path):
    laughs = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
    merges = "a0: &a0 {k: 1}\n" + "".join(
        f"a{n}: &a{n}\n  <<: [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
    )
    nested = read_yaml(laughs, "here")["a11"]
    with pytest.raises(ConfigError, match=r"lora\.rank must be int") as caught:
        override(Config(), {"lora.rank": nested})
    assert len(str(caught.value)) < 300
    with pytest.raises(ConfigError, match="more than 1000 names"):
        read_yaml(merges, "here")


@pytest.mark.parametrize("text", ["0x" + "f" * 5000, "0x" + "f" * 20, "-0x" + "f" * 20])
@pytest.mark.parametrize("name", ["lora.rank", "lora.alpha", "data.train_films"])
def test_numbers_beyond_64_bits_are_refused(name, text):
    with pytest.raises(ConfigError, match=f"{name} is not valid YAML: a number beyond 63 bits"):
        parse_assignments([f"{name}={text}"])


@pytest.mark.parametrize("name", ["lora.alpha", "tracking.system_interval", "optimizer.learning_rate"])
@pytest.mark.parametrize("text", [".inf", "-.inf", ".nan"])
def test_numbers_that_are_none_are_refused(name, text):
    with pytest.raises(ConfigError, match=f"{name} must be a finite number"):
        parse_assignments([f"{name}={text}"])


@pytest.mark.parametrize(
    "bounds", ["low: 1, high: 64, step: .inf", "low: 1, high: 64, step: .nan", "low: 1, high: .inf"]
)
def test_a_space_has_finite_bounds(tmp_path, bounds):
    text = f"name: s\nspace:\n  lora.alpha: {{type: float, {bounds}}}\n"
    with pytest.raises(ConfigError, match=r"tiny\.yaml: space\.lora\.alpha.* finite number"):
        load_study(study(tmp_path, text))


def test_a_wrong_condition_names_the_file(tmp_path):
    text = "name: s\nspace:\n  lora.rank: {type: int, low: 1, high: 8, when: {lora.alpha: x}}\n"
    with pytest.raises(ConfigError, match=r"tiny\.yaml: space\.lora\.rank: lora\.alpha must be float"):
        load_study(study(tmp_path, text))


@pytest.mark.parametrize("device", ["cuda:²", "5", "cuda:٣", "cuda:", "cuda:-1"])
def test_a_device_is_one_that_torch_knows(device):
    with pytest.raises(ConfigError, match=r"training\.device must be"):
        override(Config(), {"training.device": device})


def test_a_study_file_is_small_and_its_name_is_one(tmp_path):
    path = tmp_path / "big.yaml"
    path.write_text("#" * (1 << 18) + "\n")
    with pytest.raises(ConfigError, match="more than 256 KiB are no settings"):
        load_study(path)
    for name in ("x" * 5000, "a\0b"):
        with pytest.raises(ConfigError, match="no study file") as caught:
            find_study(name, Workspace(tmp_path))
        assert len(str(caught.value)) < 200
