"""The projection on the L1 ball inside the box, beside a general solver and the reference's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pyautoattack.autopgd_base import L1_projection
from scipy.optimize import LinearConstraint, minimize
from torch import Tensor

from robustgen.attacks.projections import project_l1_box, shrink_to_l1_box


def pictures(n: int, *, black: bool = False) -> Tensor:
    x = torch.rand(n, 2, 4, 3, dtype=torch.float64)
    return x.round() if black else x


def projected(x: Tensor, point: Tensor, eps: float, box: tuple[float, float] = (0.0, 1.0)) -> Tensor:
    return project_l1_box(x, point, torch.full((len(x),), eps, dtype=x.dtype), box)


def by_solver(x: np.ndarray, point: np.ndarray, eps: float) -> np.ndarray:
    """The nearest point by a solver that knows nothing of the problem: with d = up - down, both >= 0, a
    quadratic program of linear constraints."""
    n, wanted = len(x), point - x

    def half_square(z: np.ndarray) -> tuple[float, np.ndarray]:
        left = z[:n] - z[n:] - wanted
        return 0.5 * float(left @ left), np.concatenate([left, -left])

    result = minimize(
        half_square, np.zeros(2 * n), jac=True, method="SLSQP",
        bounds=[*((0, 1 - v) for v in x), *((0, v) for v in x)],
        constraints=LinearConstraint(np.ones((1, 2 * n)), -np.inf, eps),
        options={"ftol": 1e-15, "maxiter": 500},
    )  # fmt: skip
    return x + result.x[:n] - result.x[n:]


@pytest.mark.parametrize("black", [False, True])
@pytest.mark.parametrize("eps", [0.3, 1.0, 4.0])
def test_is_what_a_solver_finds(eps: float, black: bool) -> None:
    x = pictures(4, black=black)
    point = x + 0.5 * torch.randn_like(x)
    ours = projected(x, point, eps)
    for row in range(len(x)):
        exact = by_solver(x[row].flatten().numpy(), point[row].flatten().numpy(), eps)
        np.testing.assert_allclose(ours[row].flatten().numpy(), exact, rtol=0, atol=1e-6)
        distance = float((ours[row] - point[row]).norm())
        assert distance <= float(np.linalg.norm(exact - point[row].flatten().numpy())) + 1e-9


@pytest.mark.parametrize("scale", [0.01, 0.3, 3.0, 100.0])
def test_satisfies_the_conditions_of_an_optimum(scale: float) -> None:
    """Moves are sign(d) clip(|d| - c, 0, room) for one c >= 0, which is 0 where eps is not spent."""
    x = torch.cat([pictures(30), pictures(10, black=True)])
    wanted = scale * torch.randn_like(x)
    move = (projected(x, x + wanted, 2.0) - x).flatten(1)
    wanted, flat = wanted.flatten(1), x.flatten(1)
    assert ((flat + move >= -1e-12) & (flat + move <= 1 + 1e-12)).all()
    assert (move.abs().sum(1) <= 2 + 1e-9).all()
    assert (move * wanted >= 0).all()
    room = torch.where(wanted > 0, 1 - flat, flat)
    given = wanted.abs() - move.abs()
    free = (move.abs() > 1e-9) & (move.abs() < room - 1e-9)
    for row in range(len(x)):
        c = given[row][free[row]]
        spent = abs(float(move[row].abs().sum()) - 2) < 1e-9
        level = float(c.mean()) if len(c) else 0.0
        assert torch.allclose(c, torch.full_like(c, level), rtol=0, atol=1e-9)
        if len(c):
            assert level >= -1e-9
            assert spent or abs(level) < 1e-9
            unmoved = (move[row].abs() <= 1e-9) & (room[row] > 1e-9)
            assert (wanted[row].abs()[unmoved] <= level + 1e-9).all()
            full = (move[row].abs() >= room[row] - 1e-9) & (room[row] > 1e-9)
            assert (given[row][full] >= level - 1e-9).all()


@pytest.mark.parametrize("scale", [0.05, 0.5, 5.0])
@pytest.mark.parametrize("eps", [0.5, 3.0])
def test_is_the_references(eps: float, scale: float) -> None:
    """The reference computes in float32, with sums over all pixels: hence the tolerance."""
    x = torch.cat([pictures(30), pictures(10, black=True)]).float()
    delta = scale * torch.randn_like(x)
    theirs = x + delta + L1_projection(x, delta, eps)
    torch.testing.assert_close(projected(x, x + delta, eps), theirs, rtol=0, atol=2e-5 * max(1, scale))


def test_every_row_has_its_own_radius_and_none_depends_on_others() -> None:
    x = pictures(6)
    point = x + torch.randn_like(x)
    eps = torch.tensor([0.1, 0.5, 1.0, 2.0, 4.0, 100.0], dtype=torch.float64)
    whole = project_l1_box(x, point, eps, (0.0, 1.0))
    lengths = (whole - x).abs().flatten(1).sum(1)
    torch.testing.assert_close(lengths[:3], eps[:3])
    torch.testing.assert_close(whole[5], point[5].clamp(0, 1))
    for row in range(6):
        alone = project_l1_box(x[row : row + 1], point[row : row + 1], eps[row : row + 1], (0.0, 1.0))
        assert torch.equal(alone[0], whole[row])


def test_leaves_what_lies_inside_and_is_its_own_fixed_point() -> None:
    x = 0.3 + 0.4 * pictures(5)
    inside = x + 0.01 * torch.randn_like(x).clamp(-3, 3)
    torch.testing.assert_close(projected(x, inside, 1.0), inside, rtol=0, atol=1e-15)
    assert torch.equal(projected(x, x, 1.0), x)
    once = projected(x, x + torch.randn_like(x), 1.0)
    torch.testing.assert_close(projected(x, once, 1.0), once, rtol=0, atol=1e-12)


def test_in_another_box_and_in_float32() -> None:
    x = (2 * pictures(8) - 1).float()
    found = projected(x, x + 3 * torch.randn_like(x), 2.0, (-1.0, 1.0))
    assert found.dtype == torch.float32
    assert float(found.abs().max()) <= 1 + 1e-7
    assert float(found.min()) < -0.5
    assert float((found.double() - x.double()).abs().flatten(1).sum(1).max()) <= 2 + 1e-6


@pytest.mark.parametrize("scale", [1e-30, 1e10])
def test_extreme_points_stay_finite(scale: float) -> None:
    x = pictures(4)
    found = projected(x, x + scale * torch.randn_like(x), 1.0)
    assert torch.isfinite(found).all()
    assert float((found - x).abs().flatten(1).sum(1).max()) <= 1 + 1e-6


def test_shrinking_is_the_projection() -> None:
    x = torch.rand(40, 3, 16, 16, dtype=torch.float64)
    x[::2] = x[::2].round()  # black and white
    delta = torch.randn_like(x) ** 3 * 10 ** torch.linspace(-3, -1, 40).view(-1, 1, 1, 1)
    ours = shrink_to_l1_box(x, delta, 6.0, (0.0, 1.0))
    exact = project_l1_box(x, x + delta, torch.full((40,), 6.0), (0.0, 1.0)) - x
    inside = delta.abs().flatten(1).sum(1) < 6
    assert 0 < int(inside.sum()) < 40
    assert torch.allclose(ours, exact, rtol=0, atol=1e-12)
    # in float32, and where the steps do not suffice: within ball and box all the same
    far = shrink_to_l1_box(x.float(), 1000 * delta.float(), 6.0, (0.0, 1.0))
    assert float(far.double().abs().flatten(1).sum(1).max()) <= 6 * (1 + 1e-6)
    assert (x.float() + far).aminmax() == (0, 1)
