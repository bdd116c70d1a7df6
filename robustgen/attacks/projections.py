"""Euclidean projections that attacks need and a threat's own projection does not give."""

from __future__ import annotations

import torch
from torch import Tensor


def project_l1_box(x: Tensor, point: Tensor, eps: Tensor, box: tuple[float, float]) -> Tensor:
    """The nearest point to ``point`` (batch, ...) in the L1 ball of radius eps (batch,) around x and the box.

    The answer moves coordinate i by sign(d_i) clip(|d_i| - lambda, 0, room_i), with room to the box's
    side, for the lambda >= 0 at which the moves add up to eps (0 where they are shorter anyway). Their
    sum falls with lambda in straight pieces, which bend at |d_i| - room_i and |d_i| (cf. Croce and
    Hein 2021, arXiv:2103.01208, proposition 2.1).
    """
    delta = (point - x).flatten(1).double()
    flat, length = x.flatten(1).double(), delta.abs()
    room = torch.where(delta > 0, box[1] - flat, flat - box[0]).clamp_min(0)
    bends = torch.cat([length - room, length], 1)
    ordered, order = bends.sort(1)
    slopes = torch.where(order < length.shape[1], -1.0, 1.0).double().cumsum(1)
    drops = slopes[:, :-1] * ordered.diff(dim=1)
    sums = room.sum(1, keepdim=True) + torch.cat([torch.zeros_like(drops[:, :1]), drops.cumsum(1)], 1)
    radius = eps.double()[:, None]
    # the last bend at which the moves still add up to more than eps: lambda lies in the piece after it
    piece = ((sums > radius).sum(1, keepdim=True) - 1).clamp(0, slopes.shape[1] - 2)
    slope = slopes.gather(1, piece).clamp_max(-1.0)
    multiplier = ordered.gather(1, piece) + (radius - sums.gather(1, piece)) / slope
    move = (length - multiplier.clamp_min(0)).clamp_min(0).minimum(room)
    return x + (delta.sign() * move).to(x.dtype).view_as(x)
