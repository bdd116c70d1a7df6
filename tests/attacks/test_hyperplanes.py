from __future__ import annotations

import numpy as np
import pytest
import torch
from pyautoattack import fab_projections
from scipy.optimize import linprog
from torch import Tensor

from robustgen.attacks.hyperplanes import to_hyperplane
from robustgen.types import Norm

BOX = (-0.5, 1.5)
ORDER = {"linf": torch.inf, "l2": 2, "l1": 1}


def planes(rows: int, pixels: int, spread: float = 0.0, box: tuple[float, float] = BOX) -> tuple[Tensor, ...]:
    """Points, normals and gaps in float64; the box reaches the planes of about three rows in four.

    ``spread``: how many orders of magnitude (base e) the weights of a normal differ by, about.
    """
    generator = torch.Generator().manual_seed(rows + pixels)
    uniform = torch.rand(2, rows, pixels, generator=generator, dtype=torch.float64)
    points = box[0] + (box[1] - box[0]) * uniform[0]
    points[:, :2] = torch.tensor(box)  # some pixels lie on the sides of the box
    normal = torch.randn(rows, pixels, generator=generator, dtype=torch.float64)
    normal *= torch.exp(spread * torch.randn(rows, pixels, generator=generator, dtype=torch.float64))
    normal[:, 2] = 0
    sign = torch.where(torch.arange(rows) % 2 == 0, 1.0, -1.0)
    share = torch.linspace(0.01, 1.3, rows, dtype=torch.float64)
    return points, normal, -sign * share * reachable(points, normal, sign, box)


def reachable(points: Tensor, normal: Tensor, sign: Tensor, box: tuple[float, float]) -> Tensor:
    """The most that normal * move can be (the least, where the sign is negative), absolute, (rows,)."""
    best = torch.where(normal * sign[:, None] > 0, box[1], box[0])
    return (normal * (best - points)).sum(1).abs()


def solved(norm: Norm, x: np.ndarray, w: np.ndarray, gap: float) -> float:
    """The least norm of a move to the plane, by linear programming (inf: the box does not reach it)."""
    down, up = x - BOX[0], BOX[1] - x
    if norm == "linf":  # variables: the move, and a bound on all its pixels
        eye, ones = np.eye(len(x)), np.ones((len(x), 1))
        limits = np.block([[eye, -ones], [-eye, -ones]])
        result = linprog(
            [0] * len(x) + [1], limits, np.zeros(2 * len(x)), [[*w, 0]], [-gap],
            [*zip(-down, up, strict=True), (0, None)],
        )  # fmt: skip
    else:  # variables: the move's positive and its negative part
        result = linprog(
            np.ones(2 * len(x)), None, None, [[*w, *-w]], [-gap],
            [(0, room) for room in [*up, *down]],
        )  # fmt: skip
    return result.fun if result.status == 0 else np.inf


def by_bisection(norm: Norm, x: Tensor, w: Tensor, gap: Tensor, box: tuple[float, float]) -> Tensor:
    """The moves in Linf and L2: clip(multiplier * direction) to the box, the multiplier by bisection."""
    direction = w if norm == "l2" else w.sign()
    near, far = torch.zeros_like(gap), -gap.sign() * 1e12
    for _ in range(300):
        middle = (near + far) / 2
        move = (x + middle[:, None] * direction).clamp(*box) - x
        short = ((w * move).sum(1) + gap) * gap > 0
        near, far = torch.where(short, middle, near), torch.where(short, far, middle)
    return (x + far[:, None] * direction).clamp(*box) - x


@pytest.mark.parametrize("norm", ["linf", "l1"])
def test_is_as_short_as_a_linear_program_finds(norm: Norm) -> None:
    points, normal, gap = planes(40, 10)
    moves = to_hyperplane(points, normal, gap, norm, BOX)
    lengths = torch.linalg.vector_norm(moves, ord=ORDER[norm], dim=1)
    rows = zip(points.numpy(), normal.numpy(), gap.tolist(), strict=True)
    exact = torch.tensor([solved(norm, *row) for row in rows], dtype=torch.float64)
    reached = exact.isfinite()
    assert 25 <= reached.sum() <= 35
    assert torch.allclose(lengths[reached], exact[reached], rtol=1e-9, atol=1e-12)
    left = (normal * moves).sum(1) + gap
    assert left[reached].abs().max() < 1e-9
    assert (points + moves >= BOX[0] - 1e-12).all()
    assert (points + moves <= BOX[1] + 1e-12).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("spread", [0.0, 3.0])
def test_is_the_move_of_the_right_multiplier(norm: Norm, spread: float) -> None:
    points, normal, gap = planes(40, 300, spread)
    moves = to_hyperplane(points, normal, gap, norm, BOX)
    assert torch.allclose(moves, by_bisection(norm, points, normal, gap, BOX), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_goes_to_the_nearest_point_of_a_box_that_does_not_reach_the_plane(norm: Norm) -> None:
    points, normal, gap = planes(40, 10)
    furthest = reachable(points, normal, -gap.sign(), BOX)
    beyond = gap.abs() > furthest
    assert beyond.sum() >= 5
    moves = to_hyperplane(points, normal, gap, norm, BOX)
    assert torch.allclose((normal * moves).sum(1).abs()[beyond], furthest[beyond])
    assert (moves[:, 2] == 0).all(), "a pixel without weight moved"


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("spread", [0.0, 3.0])
def test_float32_ends_on_the_plane(norm: Norm, spread: float) -> None:
    points, normal, gap = (t.float() for t in planes(40, 3072, spread))
    moves = to_hyperplane(points, normal, gap, norm, BOX)
    reached = gap.abs() < 0.99 * reachable(points, normal, -gap.sign(), BOX)
    assert reached.sum() >= 28
    left = (normal.double() * moves.double()).sum(1) + gap
    assert (left / gap).abs()[reached].max() < 2e-6


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_agrees_with_the_reference(norm: Norm) -> None:
    points, normal, gap = planes(40, 64, box=(0.0, 1.0))
    project = getattr(fab_projections, f"projection_{norm}")
    reference = project(points.float(), normal.float(), ((normal * points).sum(1) - gap).float())
    moves = to_hyperplane(points, normal, gap, norm, (0.0, 1.0))
    assert torch.allclose(moves, reference.double(), atol=1e-4)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_points_of_one_row_are_projected_as_if_they_were_alone(norm: Norm) -> None:
    points, normal, gap = planes(12, 30)
    others = points.flip(0)
    both = to_hyperplane(torch.stack([points, others]), normal, torch.stack([gap, 2 * gap]), norm, BOX)
    assert torch.equal(both[0], to_hyperplane(points, normal, gap, norm, BOX))
    assert torch.equal(both[1], to_hyperplane(others, normal, 2 * gap, norm, BOX))


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_stays_where_there_is_no_gap_or_no_slope(norm: Norm) -> None:
    points, normal, gap = planes(6, 10)
    assert (to_hyperplane(points, normal, 0 * gap, norm, BOX) == 0).all()
    assert (to_hyperplane(points, 0 * normal, gap, norm, BOX) == 0).all()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("scale", [1e-15, 1e15])
def test_units_of_the_model_do_not_matter(norm: Norm, scale: float) -> None:
    points, normal, gap = (t.float() for t in planes(40, 30))
    moves = to_hyperplane(points, normal, gap, norm, BOX)
    scaled = to_hyperplane(points, normal * scale, gap * scale, norm, BOX)
    assert torch.allclose(moves, scaled, atol=1e-5)
