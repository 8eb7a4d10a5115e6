"""Strategies and bundles: what is trained, what is saved, what is refused; a round trip to the bit."""

import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import PeftModel
from safetensors.torch import load_file, save_file

from xray_opt.adapter import (
    attach,
    load_bundle,
    logits,
    lora_targets,
    make_bundle,
    read_bundle,
    restore,
    save_bundle,
    set_mode,
    trainable_state,
)
from xray_opt.adapter.attach import norms
from xray_opt.adapter.bundle import Bundle, content_sha256
from xray_opt.backbone import Base, build_network, file_sha256, random_base
from xray_opt.config import Config, LoraConfig, override
from xray_opt.errors import BaseMismatch, ConfigError, ModelError


@pytest.fixture(scope="module")
def base() -> Base:
    return random_base(0)


@pytest.fixture(scope="module")
def images():
    return torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def config(**values):
    return override(Config(), {name.replace("__", "."): value for name, value in values.items()} | {"image.size": 64})


def trained(base, settings):
    """A network whose every trainable weight, and statistics where they are trained, have moved."""
    network = attach(base, settings)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
        set_mode(network, True)
        logits(network, torch.randn(4, 3, 64, 64, generator=generator))
    set_mode(network, False)
    return network


def answer(network, images):
    with torch.no_grad():
        return logits(network, images)


def trainable(network):
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


@pytest.mark.parametrize(("targets", "stages", "count"), [("dense", "all", 79), ("ungrouped", "all", 140)])
def test_targets_are_the_convolutions_that_the_design_counts(base, targets, stages, count):
    names = lora_targets(build_network(base.state), LoraConfig(targets=targets, stages=stages))
    assert len(names) == count


def test_early_and_late_make_up_all(base):
    network = build_network(base.state)
    early, late, both = (set(lora_targets(network, LoraConfig(stages=stages))) for stages in ("early", "late", "all"))
    assert early | late == both
    assert not early & late
    assert all(int(name.split(".")[1]) >= 4 for name in late)


@pytest.mark.parametrize(("rank", "millions"), [(4, 0.36), (8, 0.71), (16, 1.42), (32, 2.84)])
def test_trainable_weights_of_the_default_placement(base, rank, millions):
    assert trainable(attach(base, config(lora__rank=rank))) / 1e6 == pytest.approx(millions, abs=0.005)


def test_each_strategy_trains_what_it_says(base):
    linear, full = (attach(base, config(model__strategy=strategy)) for strategy in ("linear", "full"))
    assert trainable(linear) == 1281
    assert trainable(full) == sum(parameter.numel() for parameter in full.parameters())
    lora = attach(base, config())
    assert {name.split(".")[-1] for name, p in lora.named_parameters() if p.requires_grad and "lora" not in name} == {
        "weight",
        "bias",
    }


def test_an_untrained_adapter_changes_nothing(base, images):
    plain = attach(base, config(model__strategy="linear"))
    assert torch.equal(answer(attach(base, config()), images), answer(plain, images))


def test_the_seed_gives_the_same_start_and_the_global_state_is_left_alone(base):
    before = torch.get_rng_state()
    first, second = attach(base, config()), attach(base, config())
    other = attach(base, config(training__seed=1))
    assert torch.equal(before, torch.get_rng_state())
    a, b, c = (trainable_state(network) for network in (first, second, other))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert any(not torch.equal(a[name], c[name]) for name in a)


def test_frozen_norms_stay_in_evaluation_mode_and_trained_ones_follow(base, images):
    frozen, follows = attach(base, config()), attach(base, config(model__batch_norm="train"))
    for network in (frozen, follows):
        set_mode(network, True)
    assert not any(module.training for module in norms(frozen))
    assert all(module.training for module in norms(follows))
    before = norms(frozen)[5].running_mean.clone()
    logits(frozen, images)
    assert torch.equal(before, norms(frozen)[5].running_mean)
    before = norms(follows)[5].running_mean.clone()
    logits(follows, images)
    assert not torch.equal(before, norms(follows)[5].running_mean)


CASES = [
    {"lora__rank": 4},
    {"lora__rank": 32, "lora__stages": "late"},
    {"lora__rank": 8, "model__batch_norm": "train"},
    {"lora__rank": 8, "lora__targets": "ungrouped", "lora__dropout": 0.1},
    {"model__strategy": "linear"},
    {"model__strategy": "linear", "model__batch_norm": "train"},
    {"model__strategy": "full"},
    {"model__strategy": "full", "model__batch_norm": "train"},
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case.values())))
def test_a_bundle_comes_back_to_the_bit(base, images, tmp_path, case):
    settings_ = config(**case)
    network = trained(base, settings_)
    bundle = replace(make_bundle(base, settings_, 96), threshold=0.4, scores={"val.f1": 0.9})
    folder = save_bundle(network, tmp_path / "bundle", bundle)
    loaded, read = load_bundle(folder, base)
    assert torch.equal(answer(network, images), answer(loaded, images))
    assert (read.threshold, read.scores, read.cache_side) == (0.4, {"val.f1": 0.9}, 96)
    assert not loaded.training
    assert not any(path.suffix in (".pt", ".pkl", ".bin", ".pth") for path in folder.iterdir())


def test_restore_inverts_trainable_state(base, images):
    settings_ = config(model__batch_norm="train")
    network = trained(base, settings_)
    other = attach(base, settings_)
    restore(other, trainable_state(network))
    assert torch.equal(answer(network, images), answer(other, images))


def test_plain_peft_reads_the_adapter(base, images, tmp_path):
    network = trained(base, config(lora__rank=8))
    folder = save_bundle(network, tmp_path / "bundle", make_bundle(base, config(lora__rank=8), 96))
    plain = build_network(base.state)
    with torch.no_grad():
        plain.classifier[1].weight.copy_(network.base_model.model.classifier[1].weight)
        plain.classifier[1].bias.copy_(network.base_model.model.classifier[1].bias)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = PeftModel.from_pretrained(plain, str(folder)).eval()
    assert torch.allclose(answer(theirs, images), answer(network, images), atol=1e-6)


def test_the_wrong_base_is_refused(base, tmp_path):
    settings_ = config(model__strategy="linear")
    folder = save_bundle(attach(base, settings_), tmp_path / "bundle", make_bundle(base, settings_, 96))
    with pytest.raises(BaseMismatch, match=r"random seed 0.*random seed 1"):
        load_bundle(folder, random_base(1))


@pytest.fixture
def bundle(base, tmp_path):
    settings_ = config(lora__rank=2, lora__stages="early")
    return save_bundle(attach(base, settings_), tmp_path / "bundle", make_bundle(base, settings_, 96))


def sign(folder):
    """Make the digests of a bundle right again: what is refused now is refused for what it says."""
    path = folder / "bundle.json"
    document = json.loads(path.read_text())
    if isinstance(document.get("files"), dict):
        document["files"] = {
            name: file_sha256(folder / name) if (folder / name).is_file() else digest
            for name, digest in document["files"].items()
        }
    path.write_text(json.dumps(document | {"sha256": content_sha256(document)}))


def edit(folder, name="bundle.json", **changes):
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    sign(folder)


def refusal(folder, base):
    """The one line with which a bundle is refused."""
    with pytest.raises(ModelError) as caught:
        load_bundle(folder, base)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"format": 1}, "format '1'"),
        ({"threshold": "high"}, "threshold"),
        ({"threshold": 3.0}, "out of range"),
        ({"threshold": float("nan")}, "out of range"),
        ({"temperature": 0}, "out of range"),
        ({"thresholds": {"0.95": 2.0}}, "out of range"),
        ({"thresholds": {"0.95": "low"}}, "thresholds"),
        ({"image_size": 10**9}, "out of range"),
        ({"image_size": 96}, "image.size 64, the record 96"),
        ({"strategy": "magic"}, "unknown strategy"),
        ({"strategy": "linear"}, "names the file 'adapter_config.json'"),
        ({"batch_norm": "train"}, "does not name the file 'batch_norm"),
        ({"dropout": 0.9}, "model.dropout 0.2, the record 0.9"),
        ({"files": {}}, "does not name the file"),
        ({"files": {"../../etc/passwd": "0"}}, "names the file '../../etc/passwd'"),
        ({"files": ["head"]}, "files"),
        ({"base_sha256": None}, "base_sha256"),
        ({"config": {"lora.rank": "many"}}, "lora.rank"),
        ({"config": {"lora.rank": 16}}, "lora_alpha|: r is not|target_modules"),
    ],
)
def test_records_that_contradict_themselves_are_refused_with_one_line(base, bundle, changes, says):
    edit(bundle, **changes)
    assert re.search(says, refusal(bundle, base))


@pytest.mark.parametrize(
    ("setting", "value", "says"),
    [
        ("lora.rank", 4, "adapter_config.json: r is not"),
        ("lora.alpha", 64.0, "lora_alpha is not"),
        ("lora.dropout", 0.5, "lora_dropout is not"),
        ("lora.stages", "late", "target_modules is not"),
        ("lora.targets", "ungrouped", "target_modules is not"),
        ("model.strategy", "full", "model.strategy 'full', the record 'lora'"),
        ("lora.rank", 0, "lora.rank must be"),
        ("lora.height", 1, "unknown setting"),
    ],
)
def test_settings_that_did_not_make_the_weights_are_refused(base, bundle, setting, value, says):
    edit(bundle, config=json.loads((bundle / "bundle.json").read_text())["config"] | {setting: value})
    assert re.search(says, refusal(bundle, base))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("r", 4),
        ("r", None),
        ("lora_alpha", 1),
        ("lora_dropout", 0.1),
        ("target_modules", []),
        ("target_modules", 3),
        ("target_modules", [[]]),
        ("bias", "all"),
        ("use_rslora", True),
        ("use_dora", True),
        ("rank_pattern", {"x": 1}),
    ],
)
def test_an_adapter_config_that_says_otherwise_is_refused(base, bundle, name, value):
    edit(bundle, "adapter_config.json", **{name: value})
    assert "adapter_config.json" in refusal(bundle, base)


def test_the_adapter_config_is_the_same_text_for_the_same_adapter(base, bundle):
    names = json.loads((bundle / "adapter_config.json").read_text())["target_modules"]
    assert names == sorted(lora_targets(build_network(base.state), LoraConfig(stages="early")))
    settings_ = config(lora__rank=2, lora__stages="early")
    again = save_bundle(attach(base, settings_), bundle.with_name("again"), make_bundle(base, settings_, 96))
    assert {path.name: path.read_bytes() for path in again.iterdir()} == {
        path.name: path.read_bytes() for path in bundle.iterdir()
    }


LORA = "base_model.model.features.1.0.block.0.0.lora_A.weight"


@pytest.mark.parametrize(
    ("file", "change", "says"),
    [
        ("head", lambda state: state.pop("classifier.1.bias"), "classifier.1.bias is missing"),
        ("head", lambda state: state.update(extra=torch.zeros(1)), "extra is left over"),
        ("head", lambda state: state.update({"classifier.1.bias": torch.zeros(())}), r"is \(\) torch.float32"),
        ("head", lambda state: state.update({"classifier.1.weight": torch.zeros(1, 1)}), r"is \(1, 1\)"),
        ("head", lambda state: state.update({"classifier.1.bias": torch.zeros(1).double()}), "torch.float64"),
        ("head", lambda state: state["classifier.1.bias"].fill_(float("nan")), "classifier.1.bias is not finite"),
        ("adapter_model", lambda state: state[LORA].view(-1)[:1].fill_(float("inf")), "not finite"),
        ("adapter_model", lambda state: state.pop(LORA), "lora_A.default.weight is missing"),
        ("adapter_model", lambda state: state.update({LORA: state[LORA][:1].clone()}), r"is \(1, 24, 3, 3\)"),
        ("adapter_model", lambda state: state.update({"classifier.1.bias": torch.zeros(1)}), "stands in two files"),
    ],
)
def test_tensors_that_do_not_fit_exactly_are_refused_by_name(base, bundle, file, change, says):
    path = bundle / f"{file}.safetensors"
    state = load_file(path)
    change(state)
    save_file(state, path)
    sign(bundle)
    assert re.search(says, refusal(bundle, base))


def test_restore_writes_nothing_of_a_state_that_does_not_fit(base):
    network = attach(base, config(model__strategy="linear"))
    before = trainable_state(network)
    wrong = {"classifier.1.weight": torch.ones(1, 1280), "classifier.1.bias": torch.full((1,), float("nan"))}
    with pytest.raises(ModelError, match="not finite"):
        restore(network, wrong)
    assert all(torch.equal(value, before[name]) for name, value in trainable_state(network).items())


def test_changed_weights_are_refused(base, bundle):
    path = bundle / "head.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelError, match="changed or damaged"):
        read_bundle(bundle)
    path.unlink()
    with pytest.raises(ModelError, match=r"lacks head\.safetensors"):
        read_bundle(bundle)
    shutil.rmtree(bundle)
    with pytest.raises(ModelError, match="no adapter bundle"):
        read_bundle(bundle)


RECORD = json.loads(Bundle("lora", "frozen", 0.2, "ab", "imagenet", 64, 96, config={"lora.rank": 8}).to_json())
VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just({}) | st.just([])


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([*RECORD, "new"]), VALUES)
def test_a_record_is_read_only_as_it_was_written(name, value):
    """Whatever one field is changed to, it is refused; equal but for its JSON type (8 and 8.0) counts as changed."""
    if json.dumps(RECORD.get(name, "nothing")) == json.dumps(value):
        return
    with pytest.raises(ModelError) as caught:
        Bundle.from_json(json.dumps(RECORD | {name: value}), "bundle.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", RECORD)
def test_a_record_without_a_field_is_refused(name):
    with pytest.raises(ModelError, match=r"bundle\.json"):
        Bundle.from_json(json.dumps({key: value for key, value in RECORD.items() if key != name}), "bundle.json")


@settings(deadline=None)
@given(st.permutations(list(RECORD)), st.sampled_from([None, 0, 4]), st.booleans())
def test_spaces_order_and_escapes_of_a_record_do_not_count(order, indent, ascii_only):
    text = json.dumps({name: RECORD[name] for name in order}, indent=indent, ensure_ascii=ascii_only)
    assert Bundle.from_json(text, "bundle.json").to_json() == json.dumps(RECORD, indent=2, sort_keys=True)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.one_of(
        st.text(max_size=50), st.recursive(st.none() | st.integers() | st.text(max_size=5), st.lists).map(json.dumps)
    )
)
def test_any_record_is_read_or_one_line(text):
    with pytest.raises(ModelError) as caught:
        Bundle.from_json(text, "bundle.json")
    assert "bundle.json" in str(caught.value)


def test_a_wanted_sensitivity_is_rounded_up_to_one_that_is_known():
    record = Bundle(
        "lora", "frozen", 0.2, "ab", "imagenet", 64, 96, threshold=0.5, thresholds={"0.95": 0.3, "0.96": 0.2}
    )
    found = [record.threshold_for(wanted) for wanted in (None, 0.95, 0.951, 0.96)]
    assert found == [0.5, 0.3, 0.2, 0.2]
    with pytest.raises(ConfigError, match=r"for 0\.95 to 0\.96"):
        record.threshold_for(0.99)
    with pytest.raises(ConfigError, match="--sensitivity nan"):
        record.threshold_for(float("nan"))
    with pytest.raises(ConfigError, match="for none"):
        replace(record, thresholds={}).threshold_for(0.9)


def test_a_bundle_is_never_written_over_and_leaves_no_parts(base, bundle):
    settings_ = config(lora__rank=2, lora__stages="early")
    with pytest.raises(ModelError, match="never written over"):
        save_bundle(attach(base, settings_), bundle, make_bundle(base, settings_, 96))
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]


def test_only_lora_waits_for_peft(tmp_path):
    code = """
import sys
from pathlib import Path
from xray_opt.adapter import attach, load_bundle, make_bundle, save_bundle
from xray_opt.backbone import random_base
from xray_opt.config import Config, override

base = random_base(0)
for strategy in ("linear", "full"):
    config = override(Config(), {"model.strategy": strategy})
    folder = save_bundle(attach(base, config), Path(sys.argv[1]) / strategy, make_bundle(base, config, 96))
    load_bundle(folder, base)
print([name for name in ("peft", "transformers", "accelerate") if name in sys.modules])
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_a_bundle_tells_nothing_of_the_machine(base, tmp_path):
    settings_ = override(config(), {"data.root": "/home/me/patients", "model.base": "/home/me/base.safetensors"})
    text = make_bundle(base, settings_, 96).to_json()
    assert "/home/me" not in text
    folder = save_bundle(attach(base, settings_), tmp_path / "b", make_bundle(base, settings_, 96))
    assert str(tmp_path) not in (folder / "adapter_config.json").read_text()


@pytest.mark.parametrize("name", ["bundle.json", "adapter_config.json"])
@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "huge"])
def test_what_is_no_small_file_is_not_read(base, bundle, name, kind):
    """A pipe would wait for ever, a device never end."""
    path = bundle / name
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        path.write_bytes(b" " * (1 << 21))
    line = refusal(bundle, base)
    assert name in line


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 0, -1, 1e300, 10**400])
def test_a_temperature_is_a_number_one_can_divide_by(base, bundle, value):
    edit(bundle, temperature=value)
    assert "out of range" in refusal(bundle, base)
