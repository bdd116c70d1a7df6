"""Geometry of the norm balls: dual norms, random directions and points, directions of steepest ascent."""

from __future__ import annotations

import torch
from torch import Tensor

from robustgen.draws import Draws
from robustgen.threat import ThreatModel
from robustgen.types import Norm

ORDER = {"linf": torch.inf, "l2": 2, "l1": 1}
DUAL = {"linf": 1, "l2": 2, "l1": torch.inf}
"""The dual norm of a gradient: how much a loss rises, to first order, within a ball of radius 1."""


def random_direction(x: Tensor, norm: Norm, draws: Draws) -> Tensor:
    """Noise of the shape of x, on the CPU: uniform in [-1, 1] for Linf, standard normal for L2 and L1."""
    shape = x.shape[1:]
    return draws.uniform(*shape) * 2 - 1 if norm == "linf" else draws.normal(*shape)


def random_point(threat: ThreatModel, x: Tensor, draws: Draws) -> Tensor:
    """A random point for each image of x (batch, ...): uniform in the Linf ball or on the L2 sphere, then
    clipped to the box."""
    noise = random_direction(x, threat.norm, draws)
    delta = noise if threat.norm == "linf" else normalise(noise, "l2")
    return threat.project(x, x + threat.eps * delta.to(x))


def steepest(gradient: Tensor, norm: Norm) -> Tensor:
    """The direction of steepest ascent, of norm 1, for a gradient (batch, ...) of any magnitude; Linf or
    L2."""
    if norm == "linf":
        return gradient.sign()
    largest = gradient.flatten(1).abs().amax(1).clamp_min(torch.finfo(gradient.dtype).tiny)
    return normalise(gradient / to_4d(largest), "l2")


def to_4d(per_row: Tensor) -> Tensor:
    """(rows,) to (rows, 1, 1, 1), to broadcast over images."""
    return per_row.view(-1, 1, 1, 1)


def normalise(x: Tensor, norm: Norm) -> Tensor:
    """x (batch, ...) scaled to norm 1, in Linf or L2."""
    length = x.flatten(1).norm(p=torch.inf if norm == "linf" else 2, dim=1)
    return x / (to_4d(length) + 1e-12)
