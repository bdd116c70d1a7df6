"""EGC: a map of class energies whose gradient denoises and whose pooling classifies (Guo et al. 2023)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustgen.classifiers.cdn import NoisyClassifier
from robustgen.classifiers.noisy_networks import EMBEDDING
from robustgen.types import Density


class EGC(NoisyClassifier):
    """A class map M (batch, classes, height, width) of a noisy picture y = x + sigma eps, read in two ways.

    - The energy branch is a scaled log-density, sigma log p_sigma(y) = -sigma |y - m|^2 / (2 total) +
      sigma_data sum_hw LSE_k M, with total = sigma^2 + sigma_data^2: its gradient is -eps up to the
      error of training, whatever sigma is. ``log_prob`` divides by sigma and so is in nats.
    - The class branch pools M over places, each weighted by its likeness to the mean place (attention
      without parameters), to the logits of p(y | x).

    The network also takes a label, or none; with a label the energy is that of pictures of the class,
    up to a constant of the class, which serves ``denoise`` and samples and can classify nothing. The
    logits never see a label. They are trained as CDN's and the twin's are, at every noise level alike,
    where the paper weighs the cross-entropy down as the noise grows.

    What differs from CDN, on the same backbone: the sum over classes is taken at every place, before
    pooling, so that the two branches belong to no one joint density, and the logits' gradient is not
    bound to be a difference of denoisers; the class-conditional denoiser comes from the label that is
    given, not from the logits. ``log_joint`` is log p(x) + log p(y | x), a branch each.

    M_k = g_k(h) + sum_s <q_sk(h_s), u_s>: at every scale s an inner product over channels of features
    with the scaled picture u, as in CDN's energy but a class each (noisy_networks.py), brought to the
    picture's size; g_k is linear in the last features. With ``normalised`` g's logsumexp over classes is
    taken off at every place: the classes' odds there stay those of g, and the energy begins flat where g
    comes from a classifier, whose own logsumexp has a gradient thousands of times a score's.
    """

    density: Density = "unnormalised"
    has_energy = False  # the backbone's own head, which knows no classes

    def __init__(
        self,
        num_classes: int,
        input_shape: tuple[int, int, int],
        *,
        widths: tuple[int, ...] = (32, 64),
        blocks: int = 2,
        low: float = 0.01,
        high: float = 1.0,
        normalised: bool = False,
    ) -> None:
        super().__init__(num_classes, input_shape, widths=widths, blocks=blocks, low=low, high=high)
        channels = input_shape[0]
        self.normalised = normalised
        self.label = nn.Embedding(num_classes + 1, EMBEDDING, padding_idx=num_classes)
        nn.init.normal_(self.label.weight[:num_classes], std=0.1)
        self.to_maps = nn.ModuleList(nn.Conv2d(w, num_classes * channels, 3, padding=1) for w in widths)

    def logits(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        return pool(self.class_map(x, self._levels(x, sigma)))

    def log_prob(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        levels = self._levels(x, sigma)
        return self.log_density(x, levels, self.class_map(x, levels))

    def log_joint(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        levels = self._levels(x, sigma)
        maps = self.class_map(x, levels)
        return self.log_density(x, levels, maps)[:, None] + pool(maps).log_softmax(1)

    def denoise(self, x: Tensor, sigma: float | Tensor, y: Tensor | None = None) -> Tensor:
        """E[x0 | x] or E[x0 | x, y] by Tweedie's formula; with ``y`` the network is given the label."""
        self.check_sigma(sigma)
        levels = self._levels(x, sigma)
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            energy = self.log_density(leaf, levels, self.class_map(leaf, levels, y)).sum()
            score = torch.autograd.grad(energy, leaf)[0]
        return x + (levels**2)[:, None, None, None] * score

    def class_energies(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        """The energy branch's own log p(x, y) (batch, classes) in nats: every place is of the class y."""
        levels = self._levels(x, sigma)
        maps = self.class_map(x, levels)
        return torch.stack([self.log_density(x, levels, one) for one in maps.split(1, 1)], 1)

    def log_density(self, x: Tensor, sigma: Tensor, maps: Tensor) -> Tensor:
        """log p_sigma(x) (batch,) in nats, up to a constant at each sigma (batch,), of the class map."""
        return self._with_energy(x, sigma, maps.logsumexp(1).sum((1, 2)))

    def class_map(self, x: Tensor, sigma: Tensor, y: Tensor | None = None) -> Tensor:
        """M (batch, classes, height, width) at sigma (batch,); ``y``: labels, ``num_classes`` for none."""
        embedding = self.backbone.embed(sigma)
        if y is not None:
            embedding = embedding + self.label(y)
        scales = self.backbone.scales(self._scaled(x, sigma), embedding)
        size = x.shape[2:]
        places = self._places(F.silu(scales[-1][0]))
        maps = F.interpolate(places.log_softmax(1) if self.normalised else places, size)
        for head, (h, u) in zip(self.to_maps, scales, strict=True):
            features = head(F.silu(h)).unflatten(1, (self.num_classes, -1))
            maps = maps + F.interpolate((features * u[:, None]).sum(2), size)
        return maps

    def _places(self, h: Tensor) -> Tensor:
        """The backbone's linear head at every place."""
        return F.conv2d(h, self.backbone.head.weight[:, :, None, None], self.backbone.head.bias)


def pool(maps: Tensor) -> Tensor:
    """Places (batch, classes, height, width) to (batch, classes): attention without parameters.

    The mean place asks, every place answers with softmax(<mean, place> / sqrt(classes)).
    """
    places = maps.flatten(2)
    query = places.mean(2, keepdim=True)
    weights = ((query * places).sum(1) / math.sqrt(maps.shape[1])).softmax(1)
    return (places * weights[:, None]).sum(2)
