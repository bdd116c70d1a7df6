"""Projection of an image onto a hyperplane within the pixel box, in Linf, L2 and L1.

In every norm each coordinate moves towards the plane, at most to the side of the box. How far each of them
moves depends on the norm: see ``_move_evenly`` and ``_move_greedily``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from robustgen.types import Norm

STEPS = 16  # see _move_evenly
SMALL, LARGE = 1e-20, 1e20  # in place of 0 in a divisor, and of infinity


def to_hyperplane(
    points: Tensor, normal: Tensor, gap: Tensor, norm: Norm, box: tuple[float, float]
) -> Tensor:
    """The moves (..., rows, pixels) of least ``norm`` from ``points`` (..., rows, pixels) to the plane
    gap + normal . move = 0 within the box, for ``normal`` (rows, pixels) and ``gap`` (..., rows).

    Where the plane does not meet the box, the move to the point of the box nearest to the plane. Pixels where
    the normal is 0 stay. Ties in L1 (pixels of equal weight) have several solutions, of which this is one.
    """
    low, high = box
    size = normal.abs()
    largest = size.amax(-1, keepdim=True).clamp_min(SMALL)
    size, need = size / largest, gap.abs()[..., None] / largest
    way = -normal.sign() * gap.sign()[..., None]
    side = low + (high - low) * way.clamp_min(0)
    room = ((side - points) * way).clamp_min(0)
    length = _move_greedily(room, size, need) if norm == "l1" else _move_evenly(room, size, need, norm)
    return way * length


def _move_evenly(room: Tensor, size: Tensor, need: Tensor, norm: Norm) -> Tensor:
    """How far each pixel moves in Linf and L2: all move until the plane is reached.

    By the Lagrangian they move at the same speed in Linf, in L2 at one proportional to their weight
    ``size``, each until its room is used up. The gain, sum of size * min(reach * speed, room), is concave
    and piecewise linear in the reach, so Newton's method from 0 approaches the reach that gains ``need``
    from below, and the product of remaining gain and slope falls at least to a quarter in every step (cf.
    Radzik 1998 on Newton's method for fractional problems): after 16 steps to 2^-32, which float32 does not
    resolve. Usually 3 to 6 steps are enough. Sorting the breakpoints would take one pass, but on a CPU that
    is slower than all steps.
    """
    speed = size if norm == "l2" else size.sign()
    rate = size * speed
    reach = torch.zeros_like(need)
    for _ in range(STEPS):
        length = torch.minimum(reach * speed, room)
        left = need - (size * length).sum(-1, keepdim=True)
        slope = (rate * (room - length).sign()).sum(-1, keepdim=True)
        reach = (reach + left.clamp_min(0) / slope.clamp_min(SMALL)).clamp_max(LARGE)
    return torch.minimum(reach * speed, room)


def _move_greedily(room: Tensor, size: Tensor, need: Tensor) -> Tensor:
    """How far each pixel moves in L1: the pixels of largest weight use up their room one after another
    until the plane is reached (a linear program with one constraint and bounds)."""
    size, order = size.sort(-1, descending=True)  # one sort for all points of a row
    order = order.expand_as(room)
    room = room.gather(-1, order)
    gained = torch.nn.functional.pad((size * room).cumsum(-1)[..., :-1], (1, 0))  # by the pixels before
    length = ((need - gained).clamp_min(0) / size.clamp_min(SMALL)).minimum(room)
    return torch.zeros_like(room).scatter(-1, order, length)
