"""Losses, beside torch's own cross-entropy and the reference's formulas."""

from __future__ import annotations

import math

import pytest
import torch
from pyautoattack.autopgd_base import APGDAttack_targeted
from torch import Tensor
from torch.nn import functional

from robustgen.attacks import losses

REFERENCE = APGDAttack_targeted(None, eps=0.1)


def logits(n: int = 64, classes: int = 10) -> tuple[Tensor, Tensor, Tensor]:
    """Random logits in float64, labels that lead in a half of them, and a class that is not the label."""
    z = 5 * torch.randn(n, classes, dtype=torch.float64)
    y = torch.where(torch.arange(n) % 2 == 0, z.argmax(1), torch.arange(n) % classes)
    return z, y, (y + 1 + torch.arange(n) % (classes - 1)) % classes


def gradient(loss: losses.LabelledLoss, z: Tensor, y: Tensor, target: Tensor) -> Tensor:
    z = z.clone().requires_grad_()
    return torch.autograd.grad(loss(z, y, target).sum(), z)[0]


def cross_entropy(z: Tensor, y: Tensor, target: Tensor) -> Tensor:
    return functional.cross_entropy(z, y, reduction="none")


def test_cross_entropy_is_the_softplus_of_the_log_odds() -> None:
    z, y, target = logits()
    odds = losses.log_odds(z, y)
    torch.testing.assert_close(functional.softplus(odds), cross_entropy(z, y, target))
    p = z.softmax(1).gather(1, y[:, None]).squeeze(1)
    torch.testing.assert_close(odds, ((1 - p) / p).log())


def test_log_odds_have_the_direction_of_the_cross_entropy() -> None:
    z, y, target = logits()
    a, b = gradient(losses.log_odds, z, y, target), gradient(cross_entropy, z, y, target)
    assert (functional.cosine_similarity(a, b) > 1 - 1e-6).all()
    p = z.softmax(1).gather(1, y[:, None])
    torch.testing.assert_close(a * (1 - p), b)


def test_log_odds_have_a_gradient_where_float32s_cross_entropy_has_none() -> None:
    z = torch.tensor([[200.0, 0.0, -3.0]])
    y = target = torch.tensor([0])
    assert not gradient(cross_entropy, z, y, target).any()
    # (p - onehot) / (1 - p_y): the others' shares among themselves
    exact = torch.tensor([[-1.0, 1 / (1 + math.exp(-3)), 1 / (1 + math.exp(3))]])
    torch.testing.assert_close(gradient(losses.log_odds, z, y, target), exact)


@pytest.mark.parametrize("classes", [4, 10])
def test_dlr_is_the_references(classes: int) -> None:
    z, y, target = logits(classes=classes)
    REFERENCE.y_target = target

    def theirs(z: Tensor, y: Tensor, target: Tensor) -> Tensor:
        return REFERENCE.dlr_loss(z, y)

    def theirs_targeted(z: Tensor, y: Tensor, target: Tensor) -> Tensor:
        return REFERENCE.dlr_loss_targeted(z, y)

    for ours, wanted in ((losses.dlr, theirs), (losses.targeted_dlr, theirs_targeted)):
        torch.testing.assert_close(ours(z, y, target), wanted(z, y, target), rtol=0, atol=1e-12)
        torch.testing.assert_close(gradient(ours, z, y, target), gradient(wanted, z, y, target))


def test_margins_are_differences_of_two_logits() -> None:
    z = torch.tensor([[1.0, 4.0, 2.5], [1.0, 4.0, 2.5], [3.0, 3.0, 0.0]])
    y, target = torch.tensor([1, 2, 0]), torch.tensor([0, 0, 2])
    assert losses.margin(z, y).tolist() == [-1.5, 1.5, 0.0]
    assert losses.targeted_margin(z, y, target).tolist() == [-3.0, -1.5, -3.0]


@pytest.mark.parametrize("name", ["dlr", "dlr-targeted"])
def test_dlr_does_not_see_shift_and_scale(name: str) -> None:
    z, y, target = logits()
    value = losses.LOSSES[name](z, y, target)
    torch.testing.assert_close(losses.LOSSES[name](1000 * z - 7, y, target), value)


@pytest.mark.parametrize("name", ["margin", "dlr"])
def test_is_positive_exactly_where_another_class_is_predicted(name: str) -> None:
    z, y, target = logits()
    wrong = z.argmax(1) != y
    assert 8 < int(wrong.sum()) < 56
    assert torch.equal(losses.LOSSES[name](z, y, target) > 0, wrong)
    assert torch.equal(losses.LOSSES["ce"](z, y, target) > 0, z.softmax(1).gather(1, y[:, None])[:, 0] < 0.5)


def test_as_many_classes_as_the_denominators_have() -> None:
    for name, needed in losses.CLASSES_NEEDED.items():
        z, y, target = logits(classes=needed)
        assert torch.isfinite(losses.LOSSES[name](z, y, target)).all()
        fewer = logits(classes=needed - 1)
        with pytest.raises(IndexError):
            losses.LOSSES[name](*fewer)
