"""Focal loss against its formula in float64, its gradient, and its ends; smoothed labels against torch's."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from xray_opt.loss import FocalLoss


def by_the_formula(logits, targets, alpha, gamma):
    p = torch.sigmoid(logits.double())
    p_t = torch.where(targets == 1, p, 1 - p)
    alpha_t = torch.where(targets == 1, torch.tensor(alpha).double(), torch.tensor(1 - alpha).double())
    return (-alpha_t * (1 - p_t) ** gamma * torch.log(p_t)).mean()


@pytest.mark.parametrize("alpha", [0.1, 0.25, 0.9])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
def test_equals_the_formula(alpha, gamma):
    torch.manual_seed(0)
    logits, targets = torch.randn(200) * 4, torch.randint(0, 2, (200,))
    ours = FocalLoss(alpha, gamma)(logits, targets)
    assert ours.item() == pytest.approx(by_the_formula(logits, targets, alpha, gamma).item(), rel=1e-5)


def test_gamma_zero_is_half_of_cross_entropy_at_alpha_one_half():
    torch.manual_seed(0)
    logits, targets = torch.randn(50), torch.randint(0, 2, (50,)).float()
    expected = functional.binary_cross_entropy_with_logits(logits, targets) / 2
    assert FocalLoss(0.5, 0.0)(logits, targets).item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_gradient(gamma):
    torch.manual_seed(0)
    logits = (torch.randn(12, dtype=torch.float64) * 3).requires_grad_()
    targets = torch.randint(0, 2, (12,))
    assert torch.autograd.gradcheck(lambda values: FocalLoss(0.3, gamma)(values, targets), (logits,))


@pytest.mark.parametrize("gamma", [0.0, 0.3, 2.0, 10.0])
@pytest.mark.parametrize("size", [20.0, 100.0, 1e4])
def test_stays_finite_at_extreme_logits(gamma, size):
    logits = torch.tensor([size, -size, size, -size], requires_grad=True)
    loss = FocalLoss(0.25, gamma)(logits, torch.tensor([0, 1, 1, 0]))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()
    assert loss.item() > size / 4 * 0.25  # the two wrong ones cost about |logit| each


def test_half_precision_logits_are_scored_in_fp32():
    logits = torch.tensor([1.0, -2.0]).bfloat16()
    assert FocalLoss(0.25, 2.0)(logits, torch.tensor([1, 0])).dtype == torch.float32


def test_alpha_weighs_the_positives():
    wrong = torch.tensor([-1.0])
    high = FocalLoss(0.9, 2.0)(wrong, torch.tensor([1]))
    low = FocalLoss(0.1, 2.0)(wrong, torch.tensor([1]))
    assert (high / low).item() == pytest.approx(9, rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("alpha", [0.25, 0.5])
def test_smoothed_labels_are_those_of_torch(alpha, smoothing):
    torch.manual_seed(0)
    logits, targets = (torch.randn(200, dtype=torch.float64) * 4).requires_grad_(), torch.randint(0, 2, (200,))
    both = torch.stack([torch.zeros_like(logits), logits], dim=1)  # of two classes, softmax is the sigmoid
    weight = torch.tensor([1 - alpha, alpha], dtype=torch.float64)
    theirs = nn.CrossEntropyLoss(weight, label_smoothing=smoothing, reduction="none")(both, targets).mean()
    ours = FocalLoss(alpha, 0.0, smoothing)(logits, targets)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-12)
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-14)
    if alpha == 0.5:
        plain = nn.CrossEntropyLoss(label_smoothing=smoothing)(both, targets)
        assert ours.item() == pytest.approx(plain.item() / 2, rel=1e-12)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_a_smoothed_focal_loss_mixes_those_of_both_labels(gamma):
    torch.manual_seed(0)
    logits, targets = torch.randn(50) * 4, torch.randint(0, 2, (50,))
    mixed = 0.85 * by_the_formula(logits, targets, 0.3, gamma) + 0.15 * by_the_formula(logits, 1 - targets, 0.3, gamma)
    assert FocalLoss(0.3, gamma, 0.3)(logits, targets).item() == pytest.approx(mixed.item(), rel=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 2.0])
def test_no_smoothing_changes_no_bit(gamma):
    torch.manual_seed(0)
    logits, targets = torch.randn(500) * 20, torch.randint(0, 2, (500,)).float()
    results = []
    for smoothing in (0.0, torch.zeros((), dtype=torch.float64)):
        own = logits.clone().requires_grad_()
        loss = FocalLoss(0.25, gamma, smoothing)(own, targets)
        loss.backward()
        results.append((loss.detach(), own.grad))
    own = logits.clone().requires_grad_()
    margin = own * (2 * targets - 1)
    focus = torch.exp(gamma * functional.logsigmoid(-margin))
    weight = 0.25 * targets + 0.75 * (1 - targets)
    loss = torch.mean(-weight * focus * functional.logsigmoid(margin))
    loss.backward()
    for found in results:
        assert torch.equal(found[0], loss.detach())
        assert torch.equal(found[1], own.grad)
