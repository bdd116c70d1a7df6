"""JEM: a classifier whose logits are read as an unnormalised log-density (Grathwohl et al. 2020)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from robustgen.classifiers.base import Classifier
from robustgen.classifiers.networks import ResNet
from robustgen.classifiers.noise_levels import trained_noise


class JEM(Classifier):
    """p(x, y) = exp f(x)[y] / Z (equation 5 of the paper), so p(y | x) = softmax f(x).

    f is a residual network without norm layers, (batch, channels, height, width) -> (batch, classes)
    in nats. log p(x) = logsumexp f(x) - log Z with Z unknown, so it can rank images but not give bits per
    dimension. It is the density of images with Gaussian noise of one level, ``sigma`` in pixel units of
    [0, 1], so there is no denoiser. Deterministic: no noise is added at test time.
    """

    density = "unnormalised"

    def __init__(
        self, num_classes: int, input_shape: tuple[int, int, int], *, sigma: float, **options: Any
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.input_shape = input_shape
        self.noise = trained_noise(sigma)
        self.net = ResNet(num_classes, input_shape, **options)

    def log_joint(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        return self.net(x)
