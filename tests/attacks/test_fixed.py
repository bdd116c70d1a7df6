"""The attack of a fixed number of steps against closed forms on linear models."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustgen.attacks.fixed import FixedSteps
from robustgen.classifiers.base import Classifier, PlainClassifier
from robustgen.classifiers.fixed_batch import FixedBatch
from robustgen.draws import Draws
from robustgen.threat import ThreatModel

SHAPE = (1, 4, 4)
X = 0.4 + 0.2 * torch.rand(6, *SHAPE, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 0, 1, 2])
EPS = {"linf": 0.1, "l2": 0.15}  # within the box from every X


class Sloped(Classifier):
    """Logits w . x + c: the energy and every logit rise along w, and the softmax never changes."""

    num_classes, input_shape = 3, SHAPE

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(16, generator=torch.Generator().manual_seed(1)))

    def logits(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        return (x.flatten(1) @ self.w)[:, None] + torch.tensor([0.0, 1.0, -1.0])


def two_classes() -> PlainClassifier:
    """Logits w . x and 0: the odds are linear."""
    layer = nn.Linear(16, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(2, 16, generator=torch.Generator().manual_seed(2)))
        layer.weight[1], layer.bias[:] = 0, 0
    return PlainClassifier(nn.Sequential(nn.Flatten(), layer), 2, SHAPE)


def draws(n: int = 6) -> Draws:
    return Draws(0, "fixed", np.arange(n))


def is_the_most(moved: Tensor, ways: list[int], w: Tensor, norm: str) -> None:
    """w . x can move by eps times the dual norm. In L2 steps of 2.5 eps in all turn the start towards w:
    tan(angle / 2) shrinks by e^-2.5, and what began at up to 120 degrees ends with a cosine of 0.96."""
    most = EPS[norm] * float((w.abs().sum() if norm == "linf" else w.norm()).detach())
    share = moved.detach() / most * torch.tensor(ways)
    assert (share <= 1 + 1e-4).all()
    assert (share >= (0.999 if norm == "linf" else 0.95)).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(("foreign", "way"), [(True, 1), (False, -1)])
def test_the_energy_moves_as_far_as_the_dual_norm_allows(
    norm: Literal["linf", "l2"], foreign: bool, way: int
) -> None:
    model = Sloped()
    attack = FixedSteps(ThreatModel(norm, EPS[norm]), "energy", foreign=foreign)
    found = attack(model, X, Y, draws()).images
    is_the_most((model.logits(found) - model.logits(X))[:, 0], [way] * 6, model.w, norm)
    assert attack.threat.contains(X, found).all()


class Shaken(Sloped):
    """The same, 8 above it, where log-probabilities have a logsumexp of 0; its draws differ a little."""

    stochastic = True

    def logits(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        return super().logits(x) + 8 + 0.01 * torch.randn(len(x), 1)


@pytest.mark.parametrize(("foreign", "way"), [(True, 1), (False, -1)])
def test_a_stochastic_models_energy_moves_too(foreign: bool, way: int) -> None:
    torch.manual_seed(0)
    found = FixedSteps(ThreatModel("linf", EPS["linf"]), "energy", foreign=foreign)(
        Shaken(), X, Y, draws()
    ).images
    plain = Sloped()
    is_the_most((plain.logits(found) - plain.logits(X))[:, 0], [way] * 6, plain.w, "linf")


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_labels_odds_fall_as_far_as_they_can_whether_right_or_wrong(norm: Literal["linf", "l2"]) -> None:
    model = two_classes()
    found = FixedSteps(ThreatModel(norm, EPS[norm]), "label")(model, X, Y % 2, draws()).images
    ways = [-1 if label == 0 else 1 for label in (Y % 2).tolist()]
    w = model.module[1].weight[0]  # type: ignore[index]
    is_the_most((model.logits(found) - model.logits(X))[:, 0], ways, w, norm)


def test_confidence_is_lowered_on_own_pictures_and_raised_on_foreign_ones() -> None:
    model = two_classes()
    before = model.logits(X).softmax(1).amax(1)
    own, foreign = (
        model.logits(FixedSteps(ThreatModel("linf", 0.1), "msp", foreign=f)(model, X, Y, draws()).images)
        .softmax(1).amax(1) for f in (False, True)
    )  # fmt: skip
    assert (own < before).all()
    assert (foreign > before).all()


def test_the_clean_picture_stands_where_nothing_is_better() -> None:
    found = FixedSteps(ThreatModel("linf", 0.1), "msp")(Sloped(), X, Y, draws()).images
    # rounding alone can move this softmax
    assert (Sloped().logits(found).softmax(1) - Sloped().logits(X).softmax(1)).abs().max() < 1e-6
    flat = PlainClassifier(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), 3, SHAPE)
    nn.init.zeros_(flat.module[1].weight)  # type: ignore[index, arg-type]
    assert torch.equal(FixedSteps(ThreatModel("linf", 0.1), "energy")(flat, X, Y, draws()).images, X)


def test_every_picture_costs_the_same_and_has_its_own_draws() -> None:
    model = FixedBatch(two_classes(), 6)
    model.begin(6)
    attack = FixedSteps(ThreatModel("linf", 0.1), "label", steps=5)
    found = attack(model, X, Y % 2, draws()).images
    assert model.forwards.tolist() == [7.0] * 6  # the clean picture, six points
    assert model.backwards.tolist() == [6.0] * 6
    assert attack.name == "fixed-label-s5"
    alone = attack(model, X[2:4], Y[2:4] % 2, Draws(0, "fixed", np.array([2, 3]))).images
    assert torch.equal(alone, found[2:4])


@pytest.mark.parametrize("scale", [1, 1000])
def test_msp_is_moved_where_the_model_is_sure(scale):
    """Of two classes msp is lowest nearest to the boundary, whatever the logits are multiplied by: log msp
    itself would be exactly 0 there, and its gradient too."""
    model = two_classes()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
    attack = FixedSteps(ThreatModel("linf", 0.01), "msp")
    found = attack(FixedBatch(model, 8), X, Y, draws()).images
    before, after = (model(x).detach()[:, 0].abs() for x in (X, found))
    assert bool((after < before).all())
