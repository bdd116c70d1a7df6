from __future__ import annotations

import pytest
import torch

from robustgen.classifiers.base import Classifier
from robustgen.draws import Draws
from robustgen.errors import UserError
from robustgen.perturb import Identity, enforce_budget
from robustgen.threat import ThreatModel

THREAT = ThreatModel("linf", 0.1)


def x() -> torch.Tensor:
    return torch.linspace(0, 1, 3 * 16).view(3, 1, 4, 4)


def test_identity_is_the_picture() -> None:
    found = Identity()(Classifier(), x(), torch.zeros(3), Draws(0, "clean", torch.arange(3)))
    assert torch.equal(found.images, x())
    assert found.broken_by is None


def test_what_left_the_ball_or_the_box_is_projected_and_reported() -> None:
    x_adv = x().clone()
    x_adv[0] = (x_adv[0] + 0.05).clamp(0, 1)
    x_adv[1] += 0.2
    x_adv[2, 0, 3, 3] = 1.05  # in the ball, outside the box
    checked = enforce_budget(THREAT, x(), x_adv)
    assert checked.within_budget.tolist() == [True, False, False]
    assert torch.equal(checked.images[0], x_adv[0])
    assert THREAT.contains(x(), checked.images).all()
    assert torch.allclose(checked.distance, torch.tensor([0.05, 0.1, 0.0]).double(), atol=1e-6)
    assert checked.images.dtype == torch.float32


def test_rounding_is_left_as_it_is() -> None:
    x_adv = x()[1:2] + 0.1 + 5e-7
    checked = enforce_budget(THREAT, x()[1:2], x_adv)
    assert checked.within_budget.all()
    assert torch.equal(checked.images, x_adv)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_nan_and_infinite_pixels_are_an_error(value: float) -> None:
    x_adv = x()
    x_adv[0, 0, 0, 0] = value
    with pytest.raises(UserError, match="NaN or infinite"):
        enforce_budget(THREAT, x(), x_adv)


def test_another_shape_is_an_error() -> None:
    with pytest.raises(UserError, match="shape"):
        enforce_budget(THREAT, x(), x()[:2])
