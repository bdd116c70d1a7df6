"""Samples from a model: Langevin dynamics on a density, or a denoiser along decreasing noise levels."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from robustgen.classifiers.base import Classifier, Denoiser
from robustgen.types import ConditionalNoise

LANGEVIN_STEP = 0.3  # as a share of sigma^2


def sgld(
    log_prob: Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    steps: int,
    step_size: float,
    noise: float,
    generator: torch.Generator,
    box: tuple[float, float] | None = None,
) -> Tensor:
    """Stochastic gradient Langevin dynamics (Welling and Teh 2011), started at ``x``; same shape as ``x``.

    x <- x + step_size * grad log p(x) + noise * n, with n standard normal. It samples p exactly in
    the limit of small steps where noise = sqrt(2 step_size); JEM's noise is far smaller, so its
    samples are those of a sharpened density. ``log_prob`` maps x to (batch,) in nats; ``box`` clips
    after each step (projected Langevin, Bubeck et al. 2018).
    """
    for _ in range(steps):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            grad = torch.autograd.grad(log_prob(x).sum(), x)[0]
        x = x.detach() + step_size * grad
        x = x + noise * torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        if box is not None:
            x = x.clamp(*box)
    return x.detach()


def sample_joint(
    model: Classifier,
    y: Tensor,
    *,
    generator: torch.Generator,
    steps: int,
    step_size: float,
    noise: float,
) -> Tensor:
    """Samples (batch, channels, height, width) in [0, 1] of the classes ``y`` (batch,).

    SGLD on log p(x, y), which is log p(x | y) up to a constant, started at uniform noise. ``steps`` should be
    the length of a whole chain of the training, about its steps / reinit, since chains persist.
    """
    x = torch.rand(len(y), *model.input_shape, generator=generator, device=generator.device)
    return sgld(
        lambda x: model.log_joint(x).gather(1, y[:, None]).squeeze(1),
        x,
        steps=steps,
        step_size=step_size,
        noise=noise,
        generator=generator,
        box=(0.0, 1.0),
    )


def classifier_free_guided(
    model: Classifier | Denoiser, y: Tensor, weight: float = 1.0
) -> Callable[[Tensor, float], Tensor]:
    """The denoiser of the classes ``y`` with classifier-free guidance, as a function of (x, sigma).

    D(x) + weight (D(x, y) - D(x)) (Ho and Salimans 2022, arXiv 2207.12598): by Tweedie's formula the gradient
    of the class is multiplied by ``weight``. Weight 1 samples the model itself; above 1, samples are more
    typical of their class and less diverse.
    """
    if weight == 1:
        return lambda x, sigma: model.denoise(x, sigma, y)

    def denoise(x: Tensor, sigma: float) -> Tensor:
        unconditional = model.denoise(x, sigma)
        return unconditional + weight * (model.denoise(x, sigma, y) - unconditional)

    return denoise


def classifier_guided(model: Classifier, y: Tensor, weight: float = 1.0) -> Callable[[Tensor, float], Tensor]:
    """The denoiser of the classes ``y`` guided by the model's own posterior, as a function of (x, sigma).

    D(x) + weight sigma^2 grad log p(y | x), with D the denoiser of p(x): classifier guidance (Dhariwal and
    Nichol 2021, arXiv 2105.05233) by the model's own classifier of noisy images; weight 1 samples
    ``log_joint``. For CDN this equals ``classifier_free_guided``; for EGC, whose denoiser also takes a
    label, the two differ.
    """

    def denoise(x: Tensor, sigma: float) -> Tensor:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            joint = model.log_joint(leaf, sigma)
            posterior = joint.log_softmax(1).gather(1, y[:, None]).squeeze(1)
            target = joint.logsumexp(1) + weight * posterior
            score = torch.autograd.grad(target.sum(), leaf)[0]
        return x + sigma**2 * score

    return denoise


@torch.no_grad()
def sample_denoiser(
    denoise: Callable[[Tensor, float], Tensor],
    x: Tensor,
    levels: ConditionalNoise,
    *,
    generator: torch.Generator,
    steps: int = 16,
    burn_in: int = 20,
) -> Tensor:
    """Samples of x's shape from a denoiser E[x0 | x], from the highest to the lowest of ``levels``.

    ``denoise`` maps noisy images and their sigma to clean ones; by Tweedie's formula the score is
    (denoise(x, sigma) - x) / sigma^2. First, ``burn_in`` Langevin steps at the highest level, started at any
    images ``x``: the density is smooth there, but is not yet pure noise, so starting at noise would not do.
    Then Heun's method on the probability-flow ODE dx = (x - denoise(x, sigma)) / sigma dsigma (Karras
    et al. 2022, algorithm 1) over ``steps`` levels in geometric progression. Returns the denoised images of
    the last level, not clipped. Takes burn_in + 2 steps - 1 calls of ``denoise``.
    """
    ratio, share = levels.low / levels.high, torch.linspace(0, 1, steps, dtype=torch.float64)
    sigmas = (levels.high * ratio**share).clamp(levels.low, levels.high).tolist()
    x = x + levels.high * _normal(x, generator)
    for _ in range(burn_in):
        x = x + LANGEVIN_STEP * (denoise(x, levels.high) - x)
        # the amount of noise that leaves N(0, sigma^2) invariant; the usual sqrt(2 step) would widen it
        x = x + levels.high * (1 - (1 - LANGEVIN_STEP) ** 2) ** 0.5 * _normal(x, generator)
    for sigma, lower in pairwise(sigmas):
        slope = (x - denoise(x, sigma)) / sigma
        guess = x + (lower - sigma) * slope
        x = x + (lower - sigma) / 2 * (slope + (guess - denoise(guess, lower)) / lower)
    return denoise(x, sigmas[-1])


def _normal(x: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
