"""JEM: a classifier whose logits are read as an unnormalised log-density (Grathwohl et al. 2020)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from robustgen.classifiers.base import Classifier
from robustgen.classifiers.networks import ResNet
from robustgen.types import FixedNoise


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
    """Stochastic gradient Langevin dynamics (Welling and Teh 2011), from ``x`` on; returns x's shape.

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


class JEM(Classifier):
    """p(x, y) = exp f(x)[y] / Z (equation 5 of the paper), so p(y | x) = softmax f(x).

    f is a residual network without norm layers, (batch, channels, height, width) -> (batch, classes)
    in nats; log p(x) = logsumexp f(x) - log Z with Z unknown: it ranks pictures and has no bits per
    dimension. It is a density of pictures with the noise of its training, ``sigma`` in pixel units
    of [0, 1]; there are no other levels, hence no denoiser. Deterministic: no noise is added at test.
    """

    density = "unnormalised"

    def __init__(
        self, num_classes: int, input_shape: tuple[int, int, int], *, sigma: float, **options: Any
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.input_shape = input_shape
        self.noise = FixedNoise(sigma)
        self.net = ResNet(num_classes, input_shape, **options)

    def log_joint(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        return self.net(x)

    def sample(
        self, n: int, *, generator: torch.Generator, steps: int, step_size: float, noise: float
    ) -> Tensor:
        """Pictures (n, channels, height, width) in [0, 1]: SGLD on log p(x) from uniform noise.

        Give it the steps of the training's whole chains (about its steps / reinit), not of one visit.
        """
        x = torch.rand(n, *self.input_shape, generator=generator, device=generator.device)
        return sgld(
            self.log_prob,
            x,
            steps=steps,
            step_size=step_size,
            noise=noise,
            generator=generator,
            box=(0.0, 1.0),
        )
