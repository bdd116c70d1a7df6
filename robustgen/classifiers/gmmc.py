"""GMMC: a generative classifier whose classes have fixed centres in feature space (Yang et al. 2021)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from robustgen.classifiers.base import Classifier
from robustgen.classifiers.networks import ResNet
from robustgen.classifiers.noise_levels import trained_noise
from robustgen.errors import UserError


def max_mahalanobis_centres(classes: int, dims: int, radius: float) -> Tensor:
    """Centres mu (classes, dims), float64, as far from each other as their norm allows (Pang et al. 2018).

    |mu_k|^2 = radius^2 and mu_i . mu_j = -radius^2 / (K - 1): the vertices of a regular simplex in the first
    K - 1 dimensions. UserError for fewer dimensions or fewer than two classes.
    """
    if classes < 2 or dims < classes - 1:
        raise UserError(
            "a regular simplex does not fit into the features",
            expected=f"at least 2 classes, and at least as many features as classes less one "
            f"({max(classes - 1, 1)})",
            got=f"{classes} classes in {dims} features",
            remedy="more features",
        )
    # The rows of Helmert's matrix are orthonormal, and orthogonal to (1, ..., 1). In this basis the unit
    # vectors minus their mean, which span K - 1 dimensions, have the inner products 1[i = j] - 1 / K.
    k = torch.arange(1, classes, dtype=torch.float64)[:, None]
    columns = torch.arange(classes, dtype=torch.float64)
    helmert = ((columns < k).double() - k * (columns == k)) / (k * (k + 1)).sqrt()
    centres = torch.zeros(classes, dims, dtype=torch.float64)
    centres[:, : classes - 1] = radius * math.sqrt(classes / (classes - 1)) * helmert.T
    return centres


class GMMC(Classifier):
    """log p(x, y) = -|phi(x) - mu_y|^2 / 2 - log Z: a mixture of Gaussians over the features phi(x).

    phi is a residual network without norm layers with ``features`` outputs; the centres mu_y are those
    of ``max_mahalanobis_centres`` and are not trained. The variance is 1, since another one would be the
    same as another ``radius``. The logsumexp is log p(x) up to the unknown Z, so it can rank images but not
    give bits per dimension. Unlike JEM's it is bounded: it is largest where the features are a centre. It is
    the density of images with Gaussian noise of one level, ``sigma`` in pixel units of [0, 1], so there is
    no denoiser. Deterministic: no noise is added at test time.
    """

    density = "unnormalised"
    centres: Tensor

    def __init__(
        self,
        num_classes: int,
        input_shape: tuple[int, int, int],
        *,
        sigma: float,
        features: int = 64,
        radius: float = 10.0,
        **options: Any,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.input_shape = input_shape
        self.noise = trained_noise(sigma)
        self.net = ResNet(features, input_shape, **options)
        centres = max_mahalanobis_centres(num_classes, features, radius)
        self.register_buffer("centres", centres.float(), persistent=False)

    def log_joint(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        # not expanded into |phi|^2 - 2 phi . mu + |mu|^2, whose terms cancel near a centre
        return -(self.net(x)[:, None] - self.centres).square().sum(2) / 2
