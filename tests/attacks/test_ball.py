"""Random points and steepest steps against what a ball is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from robustgen.attacks.ball import normalise, random_direction, random_point, steepest
from robustgen.draws import Draws
from robustgen.threat import ThreatModel

GREY = torch.full((400, 1, 3, 3), 0.5)


def draws(first: int = 0, stop: int = 400) -> Draws:
    return Draws(0, "ball", np.arange(first, stop))


def test_noise_is_uniform_in_linf_and_normal_in_l2_and_l1() -> None:
    flat = random_direction(GREY, "linf", draws())
    assert flat.shape == GREY.shape
    assert stats.kstest(flat.flatten().numpy(), stats.uniform(-1, 2).cdf).pvalue > 1e-3
    assert stats.kstest(random_direction(GREY, "l2", draws()).flatten().numpy(), "norm").pvalue > 1e-3
    assert torch.equal(random_direction(GREY, "l1", draws()), random_direction(GREY, "l2", draws()))


def test_in_linf_every_pixel_is_uniform() -> None:
    delta = (random_point(ThreatModel("linf", 0.1), GREY, draws()) - GREY).flatten().numpy()
    assert stats.kstest(delta, stats.uniform(-0.1, 0.2).cdf).pvalue > 0.01


def test_in_l2_all_lie_on_the_sphere_and_no_way_is_preferred() -> None:
    delta = (random_point(ThreatModel("l2", 0.3), GREY, draws()) - GREY).flatten(1)
    torch.testing.assert_close(delta.norm(dim=1), torch.full((400,), 0.3))
    # a coordinate of a point of the unit sphere in 9 dimensions: its square is Beta(1/2, 4)
    assert stats.kstest((delta[:, 0] / 0.3).square().numpy(), stats.beta(0.5, 4).cdf).pvalue > 0.01
    assert abs(float((delta[:, 0] > 0).float().mean()) - 0.5) < 0.1


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_point_stays_in_ball_and_box_and_belongs_to_its_sample(norm: str) -> None:
    threat = ThreatModel(norm, 0.5)  # type: ignore[arg-type]
    x = torch.rand(400, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    found = random_point(threat, x, draws())
    assert threat.contains(x, found).all()
    assert torch.equal(random_point(threat, x[7:9], draws(7, 9)), found[7:9])


def test_no_direction_of_norm_1_leads_up_faster() -> None:
    generator = torch.Generator().manual_seed(0)
    gradient = torch.randn(5, 1, 3, 3, generator=generator)
    for norm, dual in (("linf", 1), ("l2", 2)):
        rise = (gradient * steepest(gradient, norm)).sum((1, 2, 3))  # type: ignore[arg-type]
        torch.testing.assert_close(rise, gradient.flatten(1).norm(p=dual, dim=1))
    for norm, order in (("linf", torch.inf), ("l2", 2)):
        length = normalise(gradient, norm).flatten(1).norm(p=order, dim=1)  # type: ignore[arg-type]
        torch.testing.assert_close(length, torch.ones(5))
    assert not normalise(torch.zeros(1, 1, 3, 3), "l2").any()
