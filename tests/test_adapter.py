"""Strategies and bundles: what is trained, what is saved, what is refused; a round trip to the bit."""

import json
import shutil
import warnings
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import PeftModel

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
from xray_opt.adapter.bundle import Bundle
from xray_opt.backbone import Base, build_network, random_base
from xray_opt.config import Config, LoraConfig, override
from xray_opt.errors import BaseMismatch, ModelError


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


def edit(folder, **changes):
    path = folder / "bundle.json"
    document = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"format": 2}, "format 2"),
        ({"threshold": "high"}, "threshold"),
        ({"threshold": 3.0}, "out of range"),
        ({"temperature": 0}, "out of range"),
        ({"image_size": 10**9}, "out of range"),
        ({"strategy": "magic"}, "unknown strategy"),
        ({"files": {}}, "names no files"),
        ({"files": {"../../etc/passwd": "0"}}, "no bundle has"),
        ({"files": {"gone.safetensors": "0"}}, "lacks gone"),
        ({"files": ["head"]}, "files"),
        ({"base_sha256": None}, "base_sha256"),
        ({"config": {"lora.rank": "many"}}, "lora.rank"),
        ({"config": {"lora.rank": 16}}, "does not hold the weights"),
    ],
)
def test_edited_records_are_refused_with_one_line(base, bundle, changes, says):
    edit(bundle, **changes)
    with pytest.raises(ModelError, match=says) as caught:
        load_bundle(bundle, base)
    assert "\n" not in str(caught.value)


def test_changed_weights_are_refused(base, bundle):
    path = bundle / "head.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelError, match="changed or damaged"):
        read_bundle(bundle)
    shutil.rmtree(bundle)
    with pytest.raises(ModelError, match="no adapter bundle"):
        read_bundle(bundle)


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


def test_a_bundle_is_never_written_over_and_leaves_no_parts(base, bundle):
    settings_ = config(lora__rank=2, lora__stages="early")
    with pytest.raises(ModelError, match="never written over"):
        save_bundle(attach(base, settings_), bundle, make_bundle(base, settings_, 96))
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]


def test_a_bundle_tells_nothing_of_the_machine(base, tmp_path):
    settings_ = override(config(), {"data.root": "/home/me/patients", "model.base": "/home/me/base.safetensors"})
    text = make_bundle(base, settings_, 96).to_json()
    assert "/home/me" not in text
    folder = save_bundle(attach(base, settings_), tmp_path / "b", make_bundle(base, settings_, 96))
    assert str(tmp_path) not in (folder / "adapter_config.json").read_text()
