from __future__ import annotations

import pytest
import torch
from torch import Tensor

from robustgen.errors import UserError
from robustgen.threat import SLACK, ThreatModel
from robustgen.types import Norm

THREATS = [ThreatModel("linf", 0.1), ThreatModel("l2", 0.7), ThreatModel("l1", 3.0)]


def pictures(seed: int, n: int = 20, low: float = 0.0, high: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(n, 3, 5, 5, generator=generator)


@pytest.mark.parametrize("threat", THREATS, ids=lambda t: t.slug)
def test_projection_ends_in_ball_and_box_and_stays_there(threat: ThreatModel) -> None:
    x, far = pictures(0), 3 * pictures(1) - 1
    near = threat.project(x, far)
    assert threat.contains(x, near).all()
    assert not threat.contains(x, far).any()
    assert torch.allclose(threat.project(x, near), near, atol=1e-6)
    inside = x + (near - x) / 2
    assert torch.allclose(threat.project(x, inside), inside, atol=1e-6)


@pytest.mark.parametrize("threat", THREATS, ids=lambda t: t.slug)
def test_projection_is_to_the_nearest_point_of_the_ball(threat: ThreatModel) -> None:
    # p is nearest to q in a convex set exactly if (q - p) . (z - p) <= 0 for every z in it.
    x = torch.full((20, 3, 5, 5), 0.5, dtype=torch.float64)
    wide = ThreatModel(threat.norm, threat.eps, box=(-10.0, 10.0))
    q = x + 4 * pictures(2).double() - 2
    p = wide.project(x, q)
    assert torch.allclose(wide.distance(x, p), torch.tensor(threat.eps).double())
    for seed in range(20):
        z = x + torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        z = x + (z - x) * (threat.eps / wide.distance(x, z)).view(-1, 1, 1, 1)
        assert (((q - p) * (z - p)).flatten(1).sum(1) <= 1e-9).all()
    corner = x.clone()
    corner[:, 0, 0, 0] += threat.eps
    assert (((q - p) * (corner - p)).flatten(1).sum(1) <= 1e-9).all()


def test_distance_is_the_norm() -> None:
    x, other = pictures(0), pictures(1)
    delta = (other - x).flatten(1).double()
    assert torch.equal(ThreatModel("linf", 1).distance(x, other), delta.abs().max(1).values)
    assert torch.allclose(ThreatModel("l2", 1).distance(x, other), (delta**2).sum(1).sqrt())
    assert torch.allclose(ThreatModel("l1", 1).distance(x, other), delta.abs().sum(1))


@pytest.mark.parametrize("side", [8, 32, 224])
@pytest.mark.parametrize(("norm", "power"), [("linf", 0.0), ("l2", 0.5), ("l1", 1.0)])
def test_what_was_projected_in_float32_counts_as_inside_at_any_size(
    norm: Norm, power: float, side: int
) -> None:
    generator = torch.Generator().manual_seed(side)
    x = 0.3 + 0.4 * torch.rand(8, 3, side, side, generator=generator)  # the box cuts nothing off
    threat = ThreatModel(norm, 0.004 * x[0].numel() ** power)
    for scale in (0.01, 0.1):
        far = x + scale * torch.randn(x.shape, generator=generator)
        assert not threat.contains(x, far).any()
        near = threat.project(x, far)
        assert threat.contains(x, near).all()
        assert not threat.contains(x.double(), x.double() + 1.001 * (near.double() - x.double())).any()


def test_only_rounding_is_forgiven() -> None:
    threat = ThreatModel("linf", 0.1)
    x = torch.full((1, 1, 2, 2), 0.5, dtype=torch.float64)
    assert threat.contains(x, x + 0.1 + SLACK / 2)
    assert not threat.contains(x, x + 0.1 + 2 * SLACK)
    high = torch.ones(1, 1, 2, 2, dtype=torch.float64)
    assert threat.contains(high, high + SLACK / 2)
    assert not threat.contains(high, high + 2 * SLACK), "outside the box, inside the ball"
    assert not threat.contains(x, x * torch.nan)


@pytest.mark.parametrize(
    ("norm", "eps", "slug"),
    [("linf", 8 / 255, "linf-8-255"), ("linf", 0.15, "linf-0.15"), ("linf", 0.3, "linf-0.3"),
     ("linf", 0.0375, "linf-0.0375"), ("l2", 0.5, "l2-0.5"), ("l1", 12.0, "l1-12"), ("l2", 1.2, "l2-1.2"),
     ("linf", 1e-12, "linf-1e-12")],
)  # fmt: skip
def test_slugs(norm: str, eps: float, slug: str) -> None:
    assert ThreatModel(norm, eps).slug == slug  # type: ignore[arg-type]


def test_nonsense_is_refused() -> None:
    for norm, eps in (("linf", 0.0), ("linf", -1.0), ("linf", float("nan")), ("l3", 1.0)):
        with pytest.raises(UserError):
            ThreatModel(norm, eps)  # type: ignore[arg-type]
