"""A linear net: its exact robust accuracy is known."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robustgen.classifiers.base import PlainClassifier
from robustgen.classifiers.fixed_batch import FixedBatch

DUAL = {"linf": 1.0, "l2": 2.0, "l1": torch.inf}


class Linear(nn.Module):
    """z = scale * W (x - 0.5): the exact robust accuracy follows from W."""

    def __init__(self, classes: int, scale: float = 1.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(classes)
        self.weight = torch.randn(classes, 64, generator=generator)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * (x.flatten(1) - 0.5) @ self.weight.T

    def distances(self, x: Tensor, y: Tensor, dual: float) -> Tensor:
        """The least norm of a perturbation that makes each x wrong, away from the box: the nearest of
        the half-spaces z_j > z_y, at distance (z_y - z_j) / |w_y - w_j| in the dual norm."""
        logits = (x.flatten(1).double() - 0.5) @ self.weight.double().T
        gaps = logits.gather(1, y[:, None]) - logits
        norms = torch.linalg.vector_norm((self.weight[y][:, None] - self.weight).double(), ord=dual, dim=2)
        return (gaps / norms.clamp_min(1e-9)).scatter(1, y[:, None], torch.inf).amin(1)


def away_from_the_box(n: int) -> Tensor:
    return 0.4 + 0.2 * torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def model_and_pictures(classes: int, scale: float = 1.0) -> tuple[Linear, FixedBatch, Tensor, Tensor]:
    """The net, the same as a classifier, 64 pictures away from the box, and what it predicts for them."""
    net = Linear(classes, scale)
    model = FixedBatch(PlainClassifier(net, classes, (1, 8, 8)), 64)
    x = away_from_the_box(64)
    return net, model, x, model(x).argmax(1)
