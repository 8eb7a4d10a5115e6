"""The folded adapter against plain PEFT: the same logits, gradients, training curve and files."""

import copy
import itertools
import warnings

import pytest
import torch
from peft import LoraConfig as PeftLora
from peft import PeftModel, get_peft_model
from small_sets import kaggle_set
from torch import nn
from twin import lively_base, plain_peft

from xray_opt.adapter import attach, logits, make_bundle, restore, save_bundle, set_mode, trainable_state
from xray_opt.adapter.folded import FoldedNorm, FrozenConv
from xray_opt.adapter.folded_conv import FoldedConv
from xray_opt.backbone import build_network, random_base
from xray_opt.cache import open_images
from xray_opt.config import Config, DataConfig, Workspace, override
from xray_opt.dataset import prepare
from xray_opt.trainer import Trainer, trainer


@pytest.fixture(scope="module")
def base():
    return lively_base()


@pytest.fixture(scope="module")
def images():
    return torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def settings(**changed):
    small = {"image.size": 32, "lora.rank": 4, "training.device": "cpu", "training.precision": "fp32"}
    return override(Config(), small | {name.replace("_", ".", 1): value for name, value in changed.items()})


@torch.no_grad()
def moved(network, seed=1):
    """``network`` with an adapter and a head as training leaves them: the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    return network


def gradients(network, images):
    """Logits in training mode and the gradient of every trained weight; dropout and depth are drawn alike."""
    set_mode(network, True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        answer = logits(network, images)
    loss = nn.functional.binary_cross_entropy_with_logits(answer, torch.arange(len(images)) % 2 / 1.0)
    names, weights = zip(*((n, p) for n, p in network.named_parameters() if p.requires_grad), strict=True)
    return answer.detach(), dict(zip(names, torch.autograd.grad(loss, weights), strict=True))


def evaluated(network, images):
    network.eval()
    with torch.inference_mode():
        return logits(network, images)


def assert_equal_to_peft(base, images, config):
    """In fp32 where norms are frozen; norms that train on six small images magnify rounding, so there in float64."""
    exact = config.model.batch_norm == "train"
    kind, near, share = (torch.float64, 1e-9, 1e-7) if exact else (torch.float32, 1e-5, 1e-4)
    ours, theirs = (moved(network).to(kind) for network in (attach(base, config), plain_peft(base, config)))
    images = images.to(kind)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    torch.testing.assert_close(evaluated(ours, images), evaluated(theirs, images), atol=near, rtol=near)
    (logit, gradient), (wanted_logit, wanted) = gradients(ours, images), gradients(theirs, images)
    assert logit.std() > 1e-3, "an oracle that says the same of all images says nothing"
    torch.testing.assert_close(logit, wanted_logit, atol=near, rtol=near)
    assert gradient.keys() == wanted.keys()
    for name, value in wanted.items():
        assert (gradient[name] - value).norm() <= share * value.norm(), name


QUICK = [(4, "all", "frozen", "dense"), (32, "early", "frozen", "dense"), (8, "late", "train", "ungrouped")]
EVERY = [(*case, "dense") for case in itertools.product((4, 8, 16, 32), ("early", "late", "all"), ("frozen", "train"))]


@pytest.mark.parametrize(
    ("rank", "stages", "batch_norm", "targets"),
    [*QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in EVERY if case not in QUICK)],
)
def test_names_logits_and_gradients_equal_plain_peft(base, images, rank, stages, batch_norm, targets):
    config = settings(lora_rank=rank, lora_stages=stages, lora_targets=targets, model_batch_norm=batch_norm)
    assert_equal_to_peft(base, images, config)


def test_with_dropout_the_layers_are_pefts_own(base, images):
    config = settings(lora_dropout=0.1)
    ours, theirs = moved(attach(base, config)), moved(plain_peft(base, config))
    assert not any(isinstance(module, FoldedConv) for module in ours.modules())
    assert list(ours.state_dict()) == list(theirs.state_dict())
    torch.testing.assert_close(evaluated(ours, images), evaluated(theirs, images), atol=5e-6, rtol=5e-6)


def test_every_convolution_before_a_frozen_norm_takes_it_over(base):
    network = attach(base, settings(lora_stages="late"))
    kinds = [type(module) for module in network.modules()]
    assert kinds.count(FoldedNorm) == sum(isinstance(module, nn.BatchNorm2d) for module in network.modules()) == 110
    assert kinds.count(FrozenConv) + kinds.count(FoldedConv) == 110
    assert not any(issubclass(kind, FoldedNorm | FrozenConv) for kind in kinds_of(base, model_batch_norm="train"))
    assert not any(issubclass(kind, FoldedNorm | FrozenConv) for kind in kinds_of(base, model_strategy="full"))


def kinds_of(base, **changed):
    return [type(module) for module in attach(base, settings(**changed)).modules()]


def test_folding_the_norms_leaves_the_answers_of_a_frozen_network(base, images):
    network = attach(base, settings(model_strategy="linear"))
    plain = build_network(base.state)
    plain.classifier.load_state_dict(network.classifier.state_dict())
    assert list(network.state_dict()) == list(plain.state_dict())
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in network.state_dict().items())
    wanted = evaluated(plain, images)
    assert wanted.std() > 1e-3
    torch.testing.assert_close(evaluated(network, images), wanted, atol=1e-5, rtol=0)


class Small(nn.Module):
    """One adapted convolution."""

    def __init__(self, kernel, stride, bias):
        super().__init__()
        self.conv = nn.Conv2d(24, 20, kernel, stride, kernel // 2, bias=bias)

    def forward(self, images):
        return self.conv(images)


def small(kernel=3, stride=1, bias=False, rank=2, folded=True):
    settings_ = PeftLora(r=rank, lora_alpha=3, target_modules=["conv"])
    if folded:
        settings_._register_custom_module({nn.Conv2d: FoldedConv})
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        network = get_peft_model(Small(kernel, stride, bias), settings_)
        nn.init.normal_(network.base_model.model.conv.lora_B["default"].weight, std=0.1)
    return network


@pytest.mark.parametrize("sparing", [False, True])
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize(("kernel", "stride", "bias"), [(1, 1, False), (3, 2, False), (3, 1, True)])
def test_gradients_are_those_of_finite_differences(kernel, stride, bias, normed, sparing):
    conv = small(kernel, stride, bias).base_model.model.conv
    if normed:
        conv.fold_norm(torch.linspace(0.5, 2, 20).double(), torch.linspace(-1, 1, 20).double())
    conv.double()
    conv._parts = conv.parts(torch.float64)._replace(sparing=sparing)
    images = torch.randn(2, 24, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    down, up = conv.lora_A["default"].weight, conv.lora_B["default"].weight
    assert torch.autograd.gradcheck(
        lambda *inputs: conv(inputs[0]), (images.requires_grad_(), down, up), fast_mode=True, atol=1e-7
    )


@pytest.mark.parametrize("rank", [1, 16])
def test_both_ways_of_the_gradient_agree_in_bf16(rank):
    conv = small(rank=rank).base_model.model.conv
    images = torch.randn(4, 24, 8, 8, generator=torch.Generator().manual_seed(0))
    found = []
    for sparing in (False, True):
        conv._parts = conv.parts(torch.bfloat16)._replace(sparing=sparing)
        with torch.autocast("cpu", torch.bfloat16):
            answer = conv(images)
        assert answer.dtype == torch.bfloat16
        answer.float().square().sum().backward()
        found.append([parameter.grad.clone() for parameter in conv.parameters() if parameter.requires_grad])
        conv.zero_grad()
    for one, other in zip(*found, strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() <= 0.02 * one.norm()


def test_small_deltas_are_in_the_weight_before_it_is_cast():
    conv = small().base_model.model.conv
    plain = conv.base_layer.weight.detach()
    with torch.no_grad():
        down, up = conv.lora_A["default"].weight.double(), conv.lora_B["default"].weight
        delta = 1.5 * torch.einsum("or,rihw->oihw", up.double()[:, :, 0, 0], down)
        up *= 1e-3 * plain.abs().mean() / delta.abs().mean()
        delta = 1.5 * torch.einsum("or,rihw->oihw", up.double()[:, :, 0, 0], down)
    with torch.autocast("cpu", torch.bfloat16):
        parts = conv.parts(torch.bfloat16)
        with torch.no_grad():
            folded = parts.weight(parts.columns())
    assert folded.dtype == torch.float32
    kept = (folded.double() - plain.double() - delta).norm() / delta.norm()
    assert kept < 1e-4
    images = torch.randn(2, 24, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        answer = conv(images)
    wanted = nn.functional.conv2d(images.bfloat16(), folded.bfloat16(), None, 1, 1)
    torch.testing.assert_close(answer, wanted)


def test_what_is_kept_in_evaluation_follows_every_change_of_the_adapter(base, images):
    config = settings()
    network = moved(attach(base, config))
    conv = next(module for module in network.modules() if isinstance(module, FoldedConv))
    first = evaluated(network, images)
    kept = conv._kept[1]
    assert torch.equal(evaluated(network.to("cpu"), images), first)
    assert conv._kept[1] is kept, "nothing changed, so nothing is folded again"
    # A step of the optimizer, without any change of mode.
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=1e-2, fused=True)
    logits(network, images).sum().backward()
    optimizer.step()
    stepped = evaluated(network, images)
    assert torch.equal(stepped, evaluated(same(base, config, network), images))
    assert not torch.equal(stepped, first)
    # Weights written back, weights moved, and a copy.
    restore(network, trainable_state(moved(attach(base, config), 2)))
    assert torch.equal(evaluated(network, images), evaluated(moved(attach(base, config), 2), images))
    twin = moved(copy.deepcopy(network), 5)
    assert torch.equal(evaluated(twin, images), evaluated(same(base, config, twin), images))
    wide = evaluated(network.double(), images.double())
    torch.testing.assert_close(wide.float(), evaluated(network.float(), images), atol=1e-5, rtol=0)


def same(base, config, network):
    """A new network with the weights of ``network``."""
    other = attach(base, config)
    restore(other, trainable_state(network))
    return other


@pytest.mark.parametrize("cast", [False, True])
def test_training_behind_an_evaluation_in_inference_mode_gives_the_gradients_of_training_alone(base, images, cast):
    """What an evaluation keeps must be neither an inference tensor nor stale when gradients are wanted."""
    found = []
    for looked in (False, True):
        network = moved(attach(base, settings(lora_stages="late")))
        with torch.autocast("cpu", torch.bfloat16, enabled=cast):
            if looked:
                evaluated(network, images)
                moved(network, 3)
            else:
                moved(network, 3)
            found.append(gradients(network, images.clone().requires_grad_())[1])
    assert all(torch.equal(gradient, found[1][name]) for name, gradient in found[0].items())
    assert all(gradient.abs().max() > 0 for gradient in found[0].values())


def test_plain_peft_reads_what_was_folded_to_the_bit(base, images, tmp_path):
    config = settings(lora_rank=8)
    network = moved(attach(base, config))
    folder = save_bundle(network, tmp_path / "bundle", make_bundle(base, config, 96))
    plain = build_network(base.state)
    plain.classifier.load_state_dict(network.base_model.model.classifier.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = PeftModel.from_pretrained(plain, str(folder)).eval()
    state = theirs.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    torch.testing.assert_close(evaluated(theirs, images), evaluated(network, images), atol=5e-6, rtol=5e-6)


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    root = kaggle_set(tmp_path_factory.mktemp("films"), patients=10, films=1)
    data = DataConfig(root=str(root), train_fraction=0.6, val_fraction=0.2, test_fraction=0.2)
    return open_images(prepare(data), 32, Workspace(tmp_path_factory.mktemp("home")))


@pytest.mark.parametrize(
    ("rank", "batch_norm"),
    [(4, "frozen"), *(pytest.param(*case, marks=pytest.mark.slow) for case in [(32, "frozen"), (4, "train")])],
)
def test_three_epochs_take_the_course_they_take_with_plain_peft(base, films, monkeypatch, rank, batch_norm):
    config = settings(lora_rank=rank, model_batch_norm=batch_norm, training_epochs=3, training_batch_size=6)
    if batch_norm == "train":  # norms over fewer films would magnify even float64's rounding
        config, base = override(config, {"training.batch_size": 12}), random_base(0)
    else:
        config = override(config, {"training.micro_batch": 3})
    ours, theirs = (course(config, films, base, start, monkeypatch) for start in (attach, plain_peft))
    assert ours[0] == pytest.approx(theirs[0], rel=1e-3)
    assert ours[1] == pytest.approx(theirs[1], rel=1e-3)
    assert len(ours[0]) == len(set(ours[0])) == 3


def course(config, films, base, start, monkeypatch):
    """Training and validation losses; where norms train, in float64: rounding grows with every step there."""

    def started(base, config):
        network = start(base, config)
        if config.model.batch_norm == "train":
            network.double().register_forward_pre_hook(lambda module, inputs: (inputs[0].double(),))
        return network

    monkeypatch.setattr(trainer, "attach", started)
    epochs = list(Trainer(config, films, base).epochs())
    return [epoch.train_loss for epoch in epochs], [epoch.val_loss for epoch in epochs]
