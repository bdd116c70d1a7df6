"""log p by the probability-flow ODE of a denoiser (Song et al. 2021, arXiv 2011.13456).

In log sigma, for noise that is added without shrinking the picture (Karras et al. 2022), the flow and,
by the instantaneous change of variables (Chen et al. 2018), the log-density along it change by

    d x / d log sigma = x - D(x; sigma),   d log p / d log sigma = -(d - tr dD/dx),

so that log p_sigma(x) = log p_high(x_high) + int_sigma^high (d - tr dD/dx) d log sigma. It is the exact
log-density of what the flow makes of the prior at ``high``, up to the solver's error and that of the
estimated trace; whether the prior is the data's density there is another question.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Denoise = Callable[[Tensor, Tensor], Tensor]
"""Pictures (batch, channels, height, width) and noise levels (batch,) to posterior means."""


def log_gaussian(x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """log N(x; mean, variance I) in nats, (batch,)."""
    squares = (x - mean).square().flatten(1).sum(1)
    return -0.5 * (squares / variance + x.shape[1:].numel() * torch.log(2 * math.pi * variance))


def log_density(
    denoise: Denoise, x: Tensor, sigma: Tensor, high: float, prior: Callable[[Tensor], Tensor], probes: Tensor
) -> Tensor:
    """log p_sigma(x) in nats, (batch,), by Heun's method with steps of equal length in log sigma.

    ``sigma`` (batch,): the level of each picture; ``prior``: log p_high. ``probes`` (steps, 2, n,
    channels, height, width): random signs, n for each of a step's two slopes; the trace is the mean of
    v . (dD/dx) v over them (Hutchinson; Skilling), the same for every picture. Differentiable in x,
    once: the gradient is that of the discretised sum itself, and not of the ODE (a continuous adjoint
    would be another number).
    """
    length = (math.log(high) - sigma.log()) / len(probes)
    total = x.new_zeros(len(x))
    for step, own in enumerate(probes):
        # clamped: rounding must not lead beyond the levels
        start, end = ((sigma.log() + length * k).exp().clamp_max(high) for k in (step, step + 1))
        x, change = Checkpointed.apply(partial(_heun, denoise, start, end, length, own), x)
        total = total + change
    return total + prior(x)


class Checkpointed(torch.autograd.Function):
    """function(x), whose graph is built when its gradient is asked for: a sum keeps one term's at a time.

    torch's own checkpoint does not serve a function that differentiates within itself.
    """

    @staticmethod
    def forward(ctx: Any, function: Callable[[Tensor], tuple[Tensor, ...]], x: Tensor) -> tuple[Tensor, ...]:
        ctx.function = function
        ctx.save_for_backward(x)
        return function(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            values = ctx.function(x)
            pairs = zip((values,) if isinstance(values, Tensor) else values, gradients, strict=True)
            # the trace of a denoiser that is linear in x does not depend on it
            known, wanted = zip(*(pair for pair in pairs if pair[0].requires_grad), strict=True)
            return None, torch.autograd.grad(known, x, wanted)[0]


def _heun(
    denoise: Denoise, start: Tensor, end: Tensor, length: Tensor, probes: Tensor, x: Tensor
) -> tuple[Tensor, Tensor]:
    """One step from level ``start`` to ``end``: the picture there, and the share of the integral."""
    long = length.view(-1, 1, 1, 1)
    first, contraction = flow(denoise, x, start, probes[0])
    second, later = flow(denoise, x + long * first, end, probes[1])
    return x + long * (first + second) / 2, length * (contraction + later) / 2


def flow(denoise: Denoise, x: Tensor, sigma: Tensor, probes: Tensor) -> tuple[Tensor, Tensor]:
    """x - D, and its divergence d - tr dD/dx (batch,), estimated with ``probes`` (n, *picture).

    Both are differentiable in x where x requires a gradient.
    """
    onward = x.requires_grad and torch.is_grad_enabled()
    trace = x.new_zeros(len(x))
    with torch.enable_grad():
        x = x if onward else x.detach().requires_grad_()
        estimate = denoise(x, sigma)
        for left, probe in zip(range(len(probes))[::-1], probes, strict=True):
            (pulled,) = torch.autograd.grad(
                (estimate * probe).sum(), x, create_graph=onward, retain_graph=onward or left > 0
            )
            trace = trace + (probe * pulled).flatten(1).sum(1)
        slope = x - estimate
    return slope if onward else slope.detach(), x.shape[1:].numel() - trace / len(probes)


def every_axis(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Probes that make the trace exact: all d axes, (d, *shape), each of length sqrt(d)."""
    d = math.prod(shape)
    return math.sqrt(d) * torch.eye(d, dtype=like.dtype, device=like.device).view(d, *shape)


@torch.no_grad()
def reference_log_density(
    denoise: Denoise, x: Tensor, sigma: float, high: float, prior: Callable[[Tensor], Tensor],
    *, probes: Tensor, tolerance: float = 1e-5,
) -> Tensor:  # fmt: skip
    """As ``log_density``, by torchdiffeq's adaptive fifth-order solver, with one set of ``probes`` (n, ...)
    for all steps; ``every_axis`` makes it exact but for ``tolerance``. Without a gradient."""
    from torchdiffeq import odeint

    def slope(u: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        level = u.exp().clamp(sigma, high).to(x).expand(len(x))
        return flow(denoise, state[0], level, probes)

    ends = torch.tensor([math.log(sigma), math.log(high)], dtype=torch.float64, device=x.device)
    path, change = odeint(slope, (x, x.new_zeros(len(x))), ends, rtol=tolerance, atol=tolerance)
    return prior(path[-1]) + change[-1]
