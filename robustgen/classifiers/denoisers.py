"""Stand-alone denoisers: EDM networks, one of which is the reference, and the Wiener filter as a baseline."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustgen.classifiers.base import Denoiser
from robustgen.classifiers.noise_levels import check_noise_level, per_sample, trained_levels
from robustgen.classifiers.noisy_networks import EMBEDDING, DataScale, NoiseEmbedding, Stage
from robustgen.errors import UnsupportedError, UserError
from robustgen.types import ConditionalNoise


class Wiener(Denoiser):
    """The posterior mean under a Gaussian with the mean and full covariance of ``images``.

    E[x | y] = m + C (C + sigma^2 I)^-1 (y - m), the best affine denoiser at any sigma >= 0; computed in
    float64 in the eigenbasis of C, the maximum-likelihood covariance (divided by n, not n - 1).
    ``images``: (n, channels, height, width) in [0, 1].
    """

    mean: Tensor
    basis: Tensor
    variances: Tensor

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.input_shape = tuple(images.shape[1:])  # type: ignore[assignment]
        self.levels = ConditionalNoise(0.0, math.inf)
        flat = images.flatten(1).double()
        mean = flat.mean(0)
        centred = flat - mean
        variances, basis = torch.linalg.eigh(centred.T @ centred / len(flat))
        self.register_buffer("mean", mean)
        self.register_buffer("basis", basis)
        self.register_buffer("variances", variances.clamp_min(0))

    def denoise(self, x: Tensor, sigma: float | Tensor, y: Tensor | None = None) -> Tensor:
        if y is not None:
            raise UnsupportedError(
                "a Wiener filter takes no labels", expected="y=None", remedy="fit one filter per class"
            )
        noise = per_sample(sigma, x.double())[:, None].square()
        coordinates = (x.flatten(1).double() - self.mean) @ self.basis
        gains = self.variances / (self.variances + noise).clamp_min(torch.finfo(torch.float64).tiny)
        return (self.mean + (coordinates * gains) @ self.basis.T).view_as(x).to(x.dtype)


class EDMDenoiser(DataScale, Denoiser):
    """A small U-Net with the preconditioning of EDM (Karras et al. 2022, equation 7 and table 1).

    D(y; sigma, c) = m + c_skip (y - m) + c_out F(c_in (y - m), sigma, c) for images y in [0, 1]
    plus noise, with total = sigma^2 + sigma_data^2, c_skip = sigma_data^2 / total, c_out = sigma
    sigma_data / sqrt(total), c_in = 1 / sqrt(total). The label ``num_classes`` is the null label, for the
    unconditional mean.

    ``widths``, ``blocks``, ``patch``: see UNet. ``low`` and ``high``: the noise levels of the training. m and
    sigma_data: see DataScale.
    """

    def __init__(
        self,
        num_classes: int,
        input_shape: tuple[int, int, int],
        *,
        widths: tuple[int, ...] = (32, 64),
        blocks: int = 2,
        patch: int = 1,
        low: float = 0.01,
        high: float = 1.0,
    ) -> None:
        super().__init__()
        if patch < 1 or any(side % patch for side in input_shape[1:]):
            raise UserError(
                "pictures cannot be cut into patches of this size",
                expected=f"a patch of 1 or more that divides {input_shape[1]} and {input_shape[2]}",
                got=patch,
                remedy="another patch in the options of the denoiser",
            )  # fmt: skip
        self.num_classes = num_classes
        self.input_shape = input_shape
        self.levels = trained_levels(low, high)
        self.register_scale(input_shape)
        self.net = UNet(input_shape[0], num_classes + 1, widths, blocks, patch)

    def denoise(self, x: Tensor, sigma: float | Tensor, y: Tensor | None = None) -> Tensor:
        check_noise_level(sigma, self.levels)
        levels = per_sample(sigma, x)
        labels = self.no_label(x) if y is None else y
        linear, c_out, u = self.precondition(x, levels)
        return linear + c_out * self.net(u, levels, labels)

    def no_label(self, x: Tensor) -> Tensor:
        """The null label for each image, (batch,)."""
        return torch.full((len(x),), self.num_classes, device=x.device)

    def precondition(self, x: Tensor, levels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """m + c_skip (y - m), c_out, and c_in (y - m), the input of the network F."""
        s = levels[:, None, None, None]
        total = s**2 + self.sigma_data**2
        c_skip, c_out, c_in = self.sigma_data**2 / total, s * self.sigma_data * total.rsqrt(), total.rsqrt()
        centred = x - self.mean
        return self.mean + c_skip * centred, c_out, c_in * centred


class SharedDenoiser(EDMDenoiser):
    """An EDM denoiser whose network does not see the label: one forward pass denoises under every class.

    F_c = F + H_c, where H_c is linear in the last features, which all classes share; F alone is for the null
    label. A diffusion classifier then needs one pass per noisy image instead of one per class, and can be
    trained by cross-entropy over all classes at once.

    The label embeddings exist but are unused, so that the weights of an EDMDenoiser fit: with H at 0 this
    is its unconditional denoiser.
    """

    shares_classes = True

    def __init__(
        self, num_classes: int, input_shape: tuple[int, int, int], *, widths: tuple[int, ...] = (32, 64),
        patch: int = 1, **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(num_classes, input_shape, widths=widths, patch=patch, **options)
        self.heads = nn.Conv2d(widths[0], num_classes * input_shape[0] * patch**2, 3, padding=1)
        nn.init.zeros_(self.heads.weight)
        nn.init.zeros_(self.heads.bias)  # type: ignore[arg-type]

    def denoise(self, x: Tensor, sigma: float | Tensor, y: Tensor | None = None) -> Tensor:
        rows = torch.arange(len(x), device=x.device)
        return self.denoise_pairs(x, sigma, rows, self.no_label(x) if y is None else y)

    def denoise_pairs(self, x: Tensor, sigma: float | Tensor, rows: Tensor, labels: Tensor) -> Tensor:
        return self.denoise_each(x, sigma)[rows, labels]

    def denoise_each(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """The posterior means under every label, the null label last: (batch, classes + 1, *image)."""
        check_noise_level(sigma, self.levels)
        levels = per_sample(sigma, x)
        linear, c_out, u = self.precondition(x, levels)
        h = self.net.features(u, levels, self.no_label(x))
        alone = self.net.out(h)[:, None]
        classes = alone + self.heads(h).unflatten(1, (self.num_classes, -1))
        network = F.pixel_shuffle(torch.cat([classes, alone], 1), self.net.patch)
        return linear[:, None] + c_out[:, None] * network


class UNet(nn.Module):
    """A U-Net with additive skips; the label embedding is added to the noise embedding.

    (batch, channels, height, width) to the same shape. ``widths``: channels at each resolution, from full
    size on, each half of the one before; ``blocks``: residual blocks at each; ``labels``: the number of
    labels, including the null label. ``patch``: side of the squares whose pixels become channels at the
    input and pixels again at the output (pixel unshuffle): at 2 the network never computes at full
    resolution, which telling classes apart does not need.
    """

    def __init__(
        self, channels: int, labels: int, widths: tuple[int, ...], blocks: int, patch: int = 1
    ) -> None:
        super().__init__()
        self.patch = patch
        channels *= patch**2
        self.embed = NoiseEmbedding()
        self.label = nn.Embedding(labels, EMBEDDING)
        nn.init.normal_(self.label.weight, std=0.1)  # small, so as not to drown the noise level
        inputs = (channels, *widths[:-1])
        self.down = nn.ModuleList(Stage(a, b, blocks) for a, b in zip(inputs, widths, strict=True))
        self.up = nn.ModuleList(Stage(b, a, blocks) for a, b in pairwise(widths))
        self.out = nn.Conv2d(widths[0], channels, 3, padding=1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, u: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        return F.pixel_shuffle(self.out(self.features(u, sigma, labels)), self.patch)

    def features(self, u: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        """The features before the last convolution: (batch, widths[0], height / patch, width / patch)."""
        embedding = self.embed(sigma) + self.label(labels)
        h = self.down[0](F.pixel_unshuffle(u, self.patch), embedding)
        skips = [h]
        for stage in list(self.down)[1:]:
            h = stage(F.avg_pool2d(h, 2), embedding)
            skips.append(h)
        skips.pop()
        for stage in reversed(self.up):
            skip = skips.pop()
            h = skip + stage(F.interpolate(h, skip.shape[2:]), embedding)
        return F.silu(h)
