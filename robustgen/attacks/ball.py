"""Ways about the ball of a threat: its norm and the dual one, noise; in Linf and L2 a random point of it, and
the steepest step."""

from __future__ import annotations

import torch
from torch import Tensor

from robustgen.draws import Draws
from robustgen.threat import ThreatModel
from robustgen.types import Norm

ORDER = {"linf": torch.inf, "l2": 2, "l1": 1}
DUAL = {"linf": 1, "l2": 2, "l1": torch.inf}
"""The norm of a gradient that says how far a loss rises within a ball of the norm."""


def direction(x: Tensor, norm: Norm, draws: Draws) -> Tensor:
    """Noise of x's shape, on the CPU: uniform in [-1, 1] in Linf, normal in L2 and L1."""
    shape = x.shape[1:]
    return draws.uniform(*shape) * 2 - 1 if norm == "linf" else draws.normal(*shape)


def random_point(threat: ThreatModel, x: Tensor, draws: Draws) -> Tensor:
    """A point around each picture of x (batch, ...): uniform in the Linf ball, on the L2 sphere, and then
    clipped to the box."""
    noise = direction(x, threat.norm, draws)
    delta = noise if threat.norm == "linf" else unit(noise, "l2")
    return threat.project(x, x + threat.eps * delta.to(x))


def steepest(gradient: Tensor, norm: Norm) -> Tensor:
    """The direction of norm 1 in which a loss with this gradient (batch, ...), however small, rises most."""
    if norm == "linf":
        return gradient.sign()
    largest = gradient.flatten(1).abs().amax(1).clamp_min(torch.finfo(gradient.dtype).tiny)
    return unit(gradient / wide(largest), "l2")


def wide(per_row: Tensor) -> Tensor:
    """(rows,) to (rows, 1, 1, 1)."""
    return per_row.view(-1, 1, 1, 1)


def unit(x: Tensor, norm: Norm) -> Tensor:
    """x (batch, ...) scaled to norm 1."""
    length = x.flatten(1).norm(p=torch.inf if norm == "linf" else 2, dim=1)
    return x / (wide(length) + 1e-12)
