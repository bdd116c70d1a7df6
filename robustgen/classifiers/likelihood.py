"""log p by the probability-flow ODE of a denoiser (Song et al. 2021, arXiv 2011.13456).

For noise that is added without scaling the image (Karras et al. 2022), the flow in log sigma and, by the
instantaneous change of variables (Chen et al. 2018), the log-density along it are

    d x / d log sigma = x - D(x; sigma),   d log p / d log sigma = -(d - tr dD/dx),

so that log p_sigma(x) = log p_high(x_high) + int_sigma^high (d - tr dD/dx) d log sigma. Up to the errors of
the solver and of the estimated trace, it is the exact log-density of the flow's push-forward of the prior at
``high``; whether that prior is the data's density there is another question.
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
"""Images (batch, channels, height, width) and noise levels (batch,) to posterior means."""


def log_gaussian(x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """log N(x; mean, variance I) in nats, (batch,)."""
    squares = (x - mean).square().flatten(1).sum(1)
    return -0.5 * (squares / variance + x.shape[1:].numel() * torch.log(2 * math.pi * variance))


def log_density(
    denoise: Denoise, x: Tensor, sigma: Tensor, high: float, prior: Callable[[Tensor], Tensor], probes: Tensor
) -> Tensor:
    """log p_sigma(x) in nats, (batch,), by Heun's method with steps of equal length in log sigma.

    ``sigma`` (batch,): the level of each image; ``prior``: log p_high. ``probes`` (steps, 2, n, channels,
    height, width): random signs, n for each of the two slopes of a step, shared by all images; the trace is
    the mean of v . (dD/dx) v over them (Hutchinson; Skilling). Once differentiable in x: the gradient is
    that of the discretised sum, not of the ODE (a continuous adjoint).
    """
    length = (math.log(high) - sigma.log()) / len(probes)
    total = x.new_zeros(len(x))
    for step, step_probes in enumerate(probes):
        # clamped: rounding must not lead beyond the levels
        start, end = ((sigma.log() + length * k).exp().clamp_max(high) for k in (step, step + 1))
        x, change = Checkpointed.apply(partial(_heun_step, denoise, start, end, length, step_probes), x)
        total = total + change
    return total + prior(x)


class Checkpointed(torch.autograd.Function):
    """Gradient checkpointing: function(x), recomputed in the backward pass, to hold one graph at a time.

    torch.utils.checkpoint does not support a function that itself calls autograd.
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
            # some outputs may not depend on x: the trace of a linear denoiser does not
            outputs, grad_outputs = zip(*(pair for pair in pairs if pair[0].requires_grad), strict=True)
            return None, torch.autograd.grad(outputs, x, grad_outputs)[0]


def _heun_step(
    denoise: Denoise, start: Tensor, end: Tensor, length: Tensor, probes: Tensor, x: Tensor
) -> tuple[Tensor, Tensor]:
    """One step from level ``start`` to ``end``: the new x, and the step's part of the integral."""
    h = length.view(-1, 1, 1, 1)
    first, first_divergence = flow(denoise, x, start, probes[0])
    second, second_divergence = flow(denoise, x + h * first, end, probes[1])
    return x + h * (first + second) / 2, length * (first_divergence + second_divergence) / 2


def flow(denoise: Denoise, x: Tensor, sigma: Tensor, probes: Tensor) -> tuple[Tensor, Tensor]:
    """The slope x - D and its divergence d - tr dD/dx (batch,), estimated with ``probes`` (n, *image).

    Both are differentiable in x if x requires a gradient.
    """
    differentiable = x.requires_grad and torch.is_grad_enabled()
    trace = x.new_zeros(len(x))
    with torch.enable_grad():
        x = x if differentiable else x.detach().requires_grad_()
        estimate = denoise(x, sigma)
        for left, probe in zip(range(len(probes))[::-1], probes, strict=True):
            (pulled,) = torch.autograd.grad(
                (estimate * probe).sum(), x,
                create_graph=differentiable, retain_graph=differentiable or left > 0,
            )  # fmt: skip
            trace = trace + (probe * pulled).flatten(1).sum(1)
        slope = x - estimate
    return slope if differentiable else slope.detach(), x.shape[1:].numel() - trace / len(probes)


def exact_probes(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Probes that make the trace exact: the d unit vectors times sqrt(d), (d, *shape)."""
    d = math.prod(shape)
    return math.sqrt(d) * torch.eye(d, dtype=like.dtype, device=like.device).view(d, *shape)


@torch.no_grad()
def reference_log_density(
    denoise: Denoise, x: Tensor, sigma: float, high: float, prior: Callable[[Tensor], Tensor],
    *, probes: Tensor, tolerance: float = 1e-5,
) -> Tensor:  # fmt: skip
    """As ``log_density`` by torchdiffeq's adaptive fifth-order solver, for tests; not differentiable.

    One set of ``probes`` (n, ...) serves all steps; with ``exact_probes`` only ``tolerance`` remains.
    """
    from torchdiffeq import odeint

    def slope(u: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        level = u.exp().clamp(sigma, high).to(x).expand(len(x))
        return flow(denoise, state[0], level, probes)

    ends = torch.tensor([math.log(sigma), math.log(high)], dtype=torch.float64, device=x.device)
    path, change = odeint(slope, (x, x.new_zeros(len(x))), ends, rtol=tolerance, atol=tolerance)
    return prior(path[-1]) + change[-1]
