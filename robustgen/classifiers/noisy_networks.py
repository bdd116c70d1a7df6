"""Building blocks of noise-conditional networks, and a backbone with an energy whose gradient denoises.

The input is centred and scaled to unit variance, u = (y - m) / sqrt(sigma^2 + sigma_data^2). The energy is
a sum over scales of inner products <q(h_s), u_s> of features with the downsampled image, so its gradient
in u is q(h_s) itself plus what is backpropagated through the network: a U-Net whose decoder is the backward
pass. Class logits of pooled features have no such path; alone they never learn a score (E|sigma grad +
eps|^2 / d stayed at 1.00, the loss of a zero gradient).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EMBEDDING = 64
FREQUENCIES = 8


class DataScale(nn.Module):
    """Mixin: the mean image m and sigma_data, the standard deviation of pixels around it.

    They are measured on the training images by ``fit_scale`` and stored with the weights.
    """

    mean: Tensor
    sigma_data: Tensor

    def register_scale(self, input_shape: tuple[int, int, int]) -> None:
        """Create the buffers, with default values."""
        self.register_buffer("mean", torch.full(input_shape, 0.5))
        self.register_buffer("sigma_data", torch.tensor(0.25))

    def fit_scale(self, images: Tensor) -> None:
        """Measure m and sigma_data on images (n, channels, height, width)."""
        mean, deviation = scale_of(images)
        self.mean.copy_(mean)
        self.sigma_data.copy_(deviation)


def scale_of(images: Tensor) -> tuple[Tensor, Tensor]:
    """The mean image, and sigma_data, the standard deviation of pixels around it."""
    mean = images.mean(0)
    return mean, (images - mean).square().mean().sqrt()


class NoiseEmbedding(nn.Module):
    """Fourier features of log sigma, then an MLP: (batch,) to (batch, EMBEDDING)."""

    rates: Tensor

    def __init__(self) -> None:
        super().__init__()
        # over sigma in [0.01, 1] the lowest frequency covers a third of a turn, the highest three turns
        self.register_buffer("rates", torch.logspace(-1, 2, FREQUENCIES, base=2.0), persistent=False)
        first, second = nn.Linear(2 * FREQUENCIES, EMBEDDING), nn.Linear(EMBEDDING, EMBEDDING)
        self.net = nn.Sequential(first, nn.SiLU(), second, nn.SiLU())

    def forward(self, sigma: Tensor) -> Tensor:
        angles = sigma.log()[:, None] * self.rates
        return self.net(torch.cat([angles.cos(), angles.sin()], 1))


class NoiseBlock(nn.Module):
    """A residual block modulated by the noise level: h + conv(silu((1 + a) * conv(silu(h)) + b)).

    SiLU, since the gradient of the network is trained and so must be differentiable. No norm layers: group
    norm gained nothing here and cost half as much time again.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.modulation = nn.Linear(EMBEDDING, 2 * channels)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    @property
    def last(self) -> nn.Module:
        """The last convolution; the block is the identity if it is 0."""
        return self.second

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, 1)
        return h + self.second(F.silu(self.first(F.silu(h)) * (1 + scale) + shift))


class Stage(nn.Module):
    """The residual blocks at one resolution, after a convolution that sets the number of channels."""

    def __init__(self, inputs: int, outputs: int, blocks: int) -> None:
        super().__init__()
        self.widen = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.blocks = nn.ModuleList(NoiseBlock(outputs) for _ in range(blocks))

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        h = self.widen(h)
        for block in self.blocks:
            h = block(h, embedding)
        return h


class NoisyBackbone(nn.Module):
    """Scaled images u (batch, channels, height, width) and sigma (batch,) to class logits and an energy.

    ``widths``: channels at each resolution, from full size on, each half of the one before; ``blocks``:
    residual blocks at each; ``energy``: whether the heads of the energy exist.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        num_classes: int,
        widths: tuple[int, ...],
        blocks: int,
        energy: bool,
    ) -> None:
        super().__init__()
        channels = input_shape[0]
        self.embed = NoiseEmbedding()
        inputs = (channels, *widths[:-1])
        self.stages = nn.ModuleList(Stage(a, b, blocks) for a, b in zip(inputs, widths, strict=True))
        self.head = nn.Linear(widths[-1], num_classes)
        self.to_score = nn.ModuleList(nn.Conv2d(w, channels, 3, padding=1) for w in widths if energy)

    def forward(self, u: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (batch, classes) and the energy (batch,), which is 0 without heads."""
        energy = torch.zeros_like(sigma)
        scales = self.scales(u, self.embed(sigma))
        for level, (h, u) in enumerate(scales):
            if len(self.to_score):
                # a pixel at this level stands for 4^level pixels of the image
                energy = energy + 4**level * (self.to_score[level](F.silu(h)) * u).sum((1, 2, 3))
        return self.head(F.silu(scales[-1][0]).mean((2, 3))), energy

    def scales(self, u: Tensor, embedding: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Features and the downsampled image at each resolution, from full size on."""
        outputs = []
        h = u
        for level, stage in enumerate(self.stages):
            if level:  # average pooling: the gradient of max pooling is discontinuous
                h, u = F.avg_pool2d(h, 2), F.avg_pool2d(u, 2)
            h = stage(h, embedding)
            outputs.append((h, u))
        return outputs
