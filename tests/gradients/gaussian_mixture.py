"""A Gaussian mixture, whose posterior, denoisers and gains are known exactly, and models that bend it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from robustgen.classifiers.base import Classifier, Denoiser
from robustgen.types import ConditionalNoise

SHAPE = (1, 2, 3)
D, K = 6, 3


class Mixture(Classifier):
    """x ~ sum_k w_k N(m_k, C_k): noisy pictures are a mixture with C_k + sigma^2 I, in closed form."""

    density = "exact"
    num_classes, input_shape = K, SHAPE
    noise = ConditionalNoise(0.05, 1.0)
    test_sigma = 0.05

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.means = torch.rand(K, D, generator=generator, dtype=torch.float64)
        mixing = 0.15 * torch.randn(K, D, D, generator=generator, dtype=torch.float64)
        self.covariances = mixing @ mixing.mT
        self.weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)

    def log_joint(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        level = float(self.test_sigma if sigma is None else sigma)
        noisy = self.covariances + level**2 * torch.eye(D, dtype=torch.float64)
        gap = x.double().flatten(1)[:, None] - self.means
        squares = torch.einsum("nki,kij,nkj->nk", gap, noisy.inverse(), gap)
        return self.weights.log() - 0.5 * (squares + noisy.logdet() + D * math.log(2 * math.pi))

    def exact(self, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """E[x0 | x, k] (batch, classes, pixels) by Gaussian conditioning, and E[x0 | x], no gradient used."""
        noisy = self.covariances + sigma**2 * torch.eye(D, dtype=torch.float64)
        gain = self.covariances @ noisy.inverse()
        gap = x.double().flatten(1)[:, None] - self.means
        each = self.means + torch.einsum("kij,nkj->nki", gain, gap)
        return each, (self.log_joint(x, sigma).softmax(1)[:, :, None] * each).sum(1)

    def sample(self, n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        y = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        z = torch.randn(n, D, generator=generator, dtype=torch.float64)
        root = torch.linalg.cholesky(self.covariances + 1e-12 * torch.eye(D))
        return (self.means[y] + torch.einsum("nij,nj->ni", root[y], z)).view(n, *SHAPE), y


class Round(Mixture):
    """Three classes of one round covariance near the middle of the box: all margins are linear."""

    spread = 0.05

    def __init__(self) -> None:
        super().__init__()
        self.means = 0.4 + 0.2 * self.means
        self.covariances = self.spread**2 * torch.eye(D, dtype=torch.float64).expand(K, D, D)


class Exact(Denoiser):
    """The mixture's posterior mean."""

    def __init__(self, mixture: Mixture) -> None:
        super().__init__()
        self.mixture, self.levels, self.input_shape = mixture, ConditionalNoise(0, 10), SHAPE

    def denoise(self, x: Tensor, sigma: float | Tensor, y: Tensor | None = None) -> Tensor:
        each, mean = self.mixture.exact(x, float(sigma))
        found = mean if y is None else each[torch.arange(len(x)), y]
        return found.view_as(x).to(x.dtype)


class Bent(Classifier):
    """A mixture whose class gradient is scaled, or that of another label."""

    num_classes, input_shape, noise = K, SHAPE, ConditionalNoise(0.05, 1.0)

    def __init__(self, mixture: Mixture, scale: float = 1.0, roll: int = 0) -> None:
        super().__init__()
        self.mixture, self.scale, self.roll = mixture, scale, roll

    def logits(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        # grad log_softmax scales with the log-probabilities only where they are not normalised again
        log_p = self.mixture.logits(x, sigma).log_softmax(1).roll(self.roll, 1)
        return Scaled.apply(log_p, self.scale)


class Scaled(torch.autograd.Function):
    """The identity, with its gradient scaled."""

    @staticmethod
    def forward(ctx, x, scale):
        ctx.scale = scale
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return ctx.scale * gradient, None


def right_ones(mixture, n=60):
    """Samples that the mixture gets right."""
    x, y = mixture.sample(n)
    keep = mixture.logits(x).argmax(1) == y
    return x[keep].float(), y[keep]
