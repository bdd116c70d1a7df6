"""The discriminative baseline: a network trained for p(y | x) alone."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from robustgen.classifiers.base import Classifier
from robustgen.classifiers.networks import ResNet


class Softmax(Classifier):
    """p(y | x) = softmax(f(x))[y] for a residual network f.

    f maps (batch, channels, height, width) to (batch, classes). There is no density, so no log_joint,
    log_prob or denoise. ``options``: those of ``networks.ResNet``.
    """

    def __init__(self, num_classes: int, input_shape: tuple[int, int, int], **options: Any) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.input_shape = input_shape
        self.net = ResNet(num_classes, input_shape, **options)

    def logits(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        return self.net(x)


class Mirrored(Classifier):
    """Mixin: the mean logits of an image and its mirror image (test-time augmentation).

    In training mode only the image itself is used: a recipe's ``augment.flip`` mirrors half of them.
    """

    calls_per_image = 2

    def logits(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        if self.training:
            return super().logits(x, sigma)
        return (super().logits(x, sigma) + super().logits(x.flip(-1), sigma)) / 2


class MirroredSoftmax(Mirrored, Softmax):
    """Softmax with the mean logits of an image and its mirror image."""
