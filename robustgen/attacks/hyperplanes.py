"""The shortest way from a picture to a hyperplane without leaving the pixel box, in Linf, L2 and L1.

In all three each coordinate moves towards the plane, by no more than its room to the box's side.
How far they move is what the norms decide: see ``_even`` and ``_greedy``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from robustgen.types import Norm

STEPS = 16  # see _even
SMALL, LARGE = 1e-20, 1e20  # stand in for 0 in a divisor, and for no bound


def to_hyperplane(
    points: Tensor, normal: Tensor, gap: Tensor, norm: Norm, box: tuple[float, float]
) -> Tensor:
    """The moves (..., rows, pixels) of least ``norm`` that take ``points`` (..., rows, pixels) to
    gap + normal * move = 0, for ``normal`` (rows, pixels) and ``gap`` (..., rows), within the box.

    Where the box does not reach the plane: the move to its point nearest to the plane. Pixels that the
    normal does not depend on stay. On ties in L1 (pixels of equal weight) one answer of several.
    """
    low, high = box
    size = normal.abs()
    largest = size.amax(-1, keepdim=True).clamp_min(SMALL)
    size, need = size / largest, gap.abs()[..., None] / largest
    way = -normal.sign() * gap.sign()[..., None]
    side = low + (high - low) * way.clamp_min(0)
    room = ((side - points) * way).clamp_min(0)
    length = _greedy(room, size, need) if norm == "l1" else _even(room, size, need, norm)
    return way * length


def _even(room: Tensor, size: Tensor, need: Tensor, norm: Norm) -> Tensor:
    """Lengths of the pixels' moves in Linf and L2: all pixels move until the plane is reached.

    They move at the same speed in Linf, at one proportional to their weight ``size`` in L2 (both from
    the Lagrangian), each until its room is used up. What is gained, sum of size * min(reach * speed,
    room), is concave in the reach and made of straight pieces. So Newton's method from 0 nears the
    reach that gives ``need`` from below, and the product of what is left to gain and of the slope falls
    to a quarter in every step at least (cf. Radzik 1998 on Newton's method for fractional problems):
    2^-32 of the first after 16 steps, which is beyond float32. Usual are 3 to 6 steps. Sorting where the
    pieces end would take one pass, but costs more on a CPU than all the steps.
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


def _greedy(room: Tensor, size: Tensor, need: Tensor) -> Tensor:
    """Lengths of the pixels' moves in L1: the pixels of largest weight use up their room, one after
    another, until the plane is reached (a linear program with one constraint and bounds)."""
    size, order = size.sort(-1, descending=True)  # one sort for all points of a row
    order = order.expand_as(room)
    room = room.gather(-1, order)
    gained = torch.nn.functional.pad((size * room).cumsum(-1)[..., :-1], (1, 0))  # by the pixels before
    length = ((need - gained).clamp_min(0) / size.clamp_min(SMALL)).minimum(room)
    return torch.zeros_like(room).scatter(-1, order, length)
