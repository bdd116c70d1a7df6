"""Models that the tests of the contract and of its wrapper share."""

import torch

from robustgen.classifiers.base import Classifier
from robustgen.types import ConditionalNoise

MEANS = torch.tensor([0.2, 0.8])


class TwoGaussians(Classifier):
    """Two classes of equal share, N(mean, 0.1^2 I) each, seen through noise of sigma."""

    num_classes, input_shape, density, noise = 2, (1, 2, 2), "exact", ConditionalNoise(0.01, 1.0)

    def log_joint(self, x, sigma=None):
        sigma = torch.as_tensor(0.01 if sigma is None else sigma).expand(len(x))[:, None]
        squares = (x.flatten(1)[:, None] - MEANS[:, None]).square().sum(2)
        variance = 0.1**2 + sigma**2
        return -squares / (2 * variance) - 2 * (2 * torch.pi * variance).log() - torch.tensor(2.0).log()


class InPlace(torch.nn.Module):
    """Normalises in place, rolls a die of its own, and answers in float64."""

    stochastic = True

    def __init__(self):
        super().__init__()
        self.generator = torch.Generator()

    def reseed(self, seed):
        self.generator.manual_seed(seed)

    def forward(self, x):
        x -= 0.5
        return x.flatten(1).double() + torch.rand(4, generator=self.generator)
