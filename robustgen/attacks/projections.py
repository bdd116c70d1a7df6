"""Euclidean projections onto the intersection of an L1 ball and the pixel box.

``ThreatModel.project`` clips to the box after it has projected onto the ball, which is not the nearest point.
"""

from __future__ import annotations

import torch
from torch import Tensor

NEWTON_STEPS = 10


def project_l1_box(x: Tensor, point: Tensor, eps: Tensor, box: tuple[float, float]) -> Tensor:
    """The point nearest to ``point`` (batch, ...) in the box and the L1 ball of radius eps (batch,) around x.

    It moves coordinate i by sign(d_i) clip(|d_i| - lambda, 0, room_i), where room is the distance to the
    side of the box, for the lambda >= 0 at which the moves sum to eps (0 where their sum is smaller). The
    sum is piecewise linear in lambda, with breakpoints at |d_i| - room_i and |d_i| (cf. Croce and Hein
    2021, arXiv:2103.01208, proposition 2.1), so sorting these finds it exactly.
    """
    delta = (point - x).flatten(1).double()
    flat, length = x.flatten(1).double(), delta.abs()
    room = torch.where(delta > 0, box[1] - flat, flat - box[0]).clamp_min(0)
    breakpoints = torch.cat([length - room, length], 1)
    ordered, order = breakpoints.sort(1)
    slopes = torch.where(order < length.shape[1], -1.0, 1.0).double().cumsum(1)
    drops = slopes[:, :-1] * ordered.diff(dim=1)
    sums = room.sum(1, keepdim=True) + torch.cat([torch.zeros_like(drops[:, :1]), drops.cumsum(1)], 1)
    radius = eps.double()[:, None]
    # lambda lies in the piece after the last breakpoint at which the sum still exceeds eps
    piece = ((sums > radius).sum(1, keepdim=True) - 1).clamp(0, slopes.shape[1] - 2)
    slope = slopes.gather(1, piece).clamp_max(-1.0)
    lambda_ = ordered.gather(1, piece) + (radius - sums.gather(1, piece)) / slope
    move = (length - lambda_.clamp_min(0)).clamp_min(0).minimum(room)
    return x + (delta.sign() * move).to(x.dtype).view_as(x)


def shrink_to_l1_box(x: Tensor, delta: Tensor, eps: float, box: tuple[float, float]) -> Tensor:
    """The perturbation nearest to ``delta`` (batch, ...) of L1 norm at most eps for which x + it is in the
    box.

    The same projection as ``project_l1_box``, up to float32: many times faster, since Newton's method, kept
    between bounds, takes the place of the sort. What exceeds eps after the last step is scaled away.
    """
    length = delta.abs()
    room = torch.where(delta > 0, box[1] - x, x - box[0]).clamp_min(0)
    # clip(|d| - c, 0, room) is the difference of (|d| - c)+ and (|d| - room - c)+
    both = torch.stack([length, length - room], 1).flatten(2)
    low, high = torch.zeros_like(both[:, 0, 0]), both[:, 0].amax(1)
    c = low
    for _ in range(NEWTON_STEPS):
        above = (both - c[:, None, None]).clamp_min_(0)
        total, falling = above.sum(2), above.sign_().sum(2)
        excess = total[:, 0] - total[:, 1] - eps
        over = excess > 0
        low, high = torch.where(over, c, low), torch.where(over, high, c)
        c = c + excess / (falling[:, 0] - falling[:, 1]).clamp_min(1)
        c = torch.where(torch.where(over, c < high, c > low), c, (low + high) / 2)
    move = (length - c.view(-1, 1, 1, 1)).clamp_min_(0).minimum(room)
    fits = (eps / move.flatten(1).sum(1).clamp_min(eps)).view(-1, 1, 1, 1)
    return (move * fits).copysign(delta)
