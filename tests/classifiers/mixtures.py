"""An exact denoiser: each class is a mixture of round Gaussians, whose densities are closed forms."""

import math

import torch

from robustgen.classifiers.base import Denoiser
from robustgen.types import ConditionalNoise

SHAPE = (1, 2, 3)
D = 6


class Mixture(Denoiser):
    """p(x | c) = mean over m of N(x; means[c, m], spread^2 I); ``asked`` counts the pictures denoised."""

    def __init__(self, means, spread, low=0.01, high=100.0):
        super().__init__()
        self.num_classes = len(means)
        self.input_shape = SHAPE
        self.levels = ConditionalNoise(low, high)
        self.register_buffer("means", means.double())
        self.spread = spread
        self.register_buffer("mean", means.double().mean((0, 1)).view(SHAPE))
        self.register_buffer("sigma_data", torch.tensor(spread, dtype=torch.float64))
        self.asked = 0

    def _logs(self, x, sigma, y):
        """log of each Gaussian's share of p_sigma(x | y) (batch, m), its centres, its variance."""
        centres = self.means[y]
        variance = self.spread**2 + torch.as_tensor(sigma, dtype=x.dtype).expand(len(x))[:, None] ** 2
        squares = (x.flatten(1)[:, None] - centres).square().sum(2)
        return -squares / (2 * variance) - D / 2 * (2 * math.pi * variance).log(), centres, variance

    def denoise(self, x, sigma, y=None):
        self.asked += len(x)
        logs, centres, variance = self._logs(x, sigma, y)
        shrink = (self.spread**2 / variance)[:, :, None]
        each = centres + shrink * (x.flatten(1)[:, None] - centres)
        return (logs.softmax(1)[:, :, None] * each).sum(1).view_as(x)

    def log_density(self, x, sigma, y):
        """log p_sigma(x | y), (batch,)."""
        logs = self._logs(x, sigma, y)[0]
        return logs.logsumexp(1) - math.log(logs.shape[1])

    def log_joint(self, x, sigma):
        """log p_sigma(x, y), (batch, classes)."""
        every = [
            self.log_density(x, sigma, torch.full((len(x),), c, dtype=torch.int64))
            for c in range(self.num_classes)
        ]
        return torch.stack(every, 1) - math.log(self.num_classes)


def mixture(classes=3, centres=2, spread=0.2, seed=0, **levels):
    generator = torch.Generator().manual_seed(seed)
    return Mixture(
        torch.rand(classes, centres, D, generator=generator, dtype=torch.float64), spread, **levels
    )


def pictures(n, seed=1):
    return torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
