"""EGC (Guo et al. 2023): a map of class energies; its gradient denoises, and pooling it classifies."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustgen.classifiers.cdn import NoisyClassifier
from robustgen.classifiers.noisy_networks import EMBEDDING
from robustgen.types import Density


class EGC(NoisyClassifier):
    """A class map M (batch, classes, height, width) of a noisy image y = x + sigma eps, with two readouts.

    - Energy branch: a scaled log-density, sigma log p_sigma(y) = -sigma |y - m|^2 / (2 total) + sigma_data
      sum_hw LSE_k M, with total = sigma^2 + sigma_data^2. Its gradient is trained to be -eps at every sigma.
      ``log_prob`` divides by sigma, to be in nats.
    - Class branch: the logits of p(y | x) are M pooled over positions by parameter-free attention, each
      position weighted by its similarity to the mean position.

    The network optionally takes a label. The energy is then that of images of the class, up to a constant
    per class; it serves ``denoise`` and sampling but cannot classify. The logits never see a label. They
    are trained as CDN's and the control's are, with equal weight at every noise level, whereas the paper
    reduces the weight of the cross-entropy as the noise grows.

    Differences from CDN on the same backbone: the logsumexp over classes is taken at every position, before
    pooling, so the two branches are not parts of one joint density, and the gradient of the logits is not
    necessarily a difference of denoisers; the class-conditional denoiser uses the label input, not the
    logits. ``log_joint`` is log p(x) + log p(y | x), one branch each.

    M_k = g_k(h) + sum_s <q_sk(h_s), u_s>: at every scale s an inner product over channels of features with
    the scaled image u, as in CDN's energy but per class (noisy_networks.py), upsampled to full size; g_k is
    linear in the last features. ``normalised`` subtracts the logsumexp over classes from g at every position:
    the class odds there remain those of g, and the energy starts flat if g comes from a trained classifier,
    whose logsumexp has a gradient thousands of times that of a score.
    """

    density: Density = "unnormalised"
    has_energy = False  # the backbone's heads, which are not per class

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
        return attention_pool(self.class_map(x, self._levels(x, sigma)))

    def log_prob(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        levels = self._levels(x, sigma)
        return self.log_density(x, levels, self.class_map(x, levels))

    def log_joint(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        levels = self._levels(x, sigma)
        maps = self.class_map(x, levels)
        return self.log_density(x, levels, maps)[:, None] + attention_pool(maps).log_softmax(1)

    def denoise(self, x: Tensor, sigma: float | Tensor, y: Tensor | None = None) -> Tensor:
        """E[x0 | x], or E[x0 | x, y] with the label as an input of the network, by Tweedie's formula."""
        self.check_sigma(sigma)
        levels = self._levels(x, sigma)
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            energy = self.log_density(leaf, levels, self.class_map(leaf, levels, y)).sum()
            score = torch.autograd.grad(energy, leaf)[0]
        return x + (levels**2)[:, None, None, None] * score

    def class_energies(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        """log p(x, y) (batch, classes) in nats by the energy branch alone: M_y at every position."""
        levels = self._levels(x, sigma)
        maps = self.class_map(x, levels)
        return torch.stack([self.log_density(x, levels, one) for one in maps.split(1, 1)], 1)

    def log_density(self, x: Tensor, sigma: Tensor, maps: Tensor) -> Tensor:
        """log p_sigma(x) (batch,) in nats, up to a constant per sigma (batch,), from the class map."""
        return self._with_energy(x, sigma, maps.logsumexp(1).sum((1, 2)))

    def class_map(self, x: Tensor, sigma: Tensor, y: Tensor | None = None) -> Tensor:
        """M (batch, classes, height, width) at sigma (batch,); ``y``: labels, ``num_classes`` for none."""
        embedding = self.backbone.embed(sigma)
        if y is not None:
            embedding = embedding + self.label(y)
        scales = self.backbone.scales(self._scaled(x, sigma), embedding)
        size = x.shape[2:]
        logits = self._class_logits(F.silu(scales[-1][0]))
        maps = F.interpolate(logits.log_softmax(1) if self.normalised else logits, size)
        for head, (h, u) in zip(self.to_maps, scales, strict=True):
            features = head(F.silu(h)).unflatten(1, (self.num_classes, -1))
            maps = maps + F.interpolate((features * u[:, None]).sum(2), size)
        return maps

    def _class_logits(self, h: Tensor) -> Tensor:
        """The backbone's linear head at every position."""
        return F.conv2d(h, self.backbone.head.weight[:, :, None, None], self.backbone.head.bias)


def attention_pool(maps: Tensor) -> Tensor:
    """Parameter-free attention over positions: (batch, classes, height, width) to (batch, classes).

    The query is the mean over positions; the weights are softmax(<query, position> / sqrt(classes)).
    """
    positions = maps.flatten(2)
    query = positions.mean(2, keepdim=True)
    weights = ((query * positions).sum(1) / math.sqrt(maps.shape[1])).softmax(1)
    return (positions * weights[:, None]).sum(2)
