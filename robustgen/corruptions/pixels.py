"""Noise and colour: corruptions that look at one pixel, or at the mean of a picture.

As everywhere in this package: x float64 (batch, channels, height, width) in [0, 1], the constant of a
severity, and the samples' draws; the result may leave [0, 1].
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from robustgen.draws import Draws


def gaussian_noise(x: Tensor, sigma: float, draws: Draws) -> Tensor:
    """Plus normal noise of one sigma."""
    return x + sigma * draws.normal(*x.shape[1:]).double()


def shot_noise(x: Tensor, photons: float, draws: Draws) -> Tensor:
    """Poisson(photons x) / photons, by the inverse distribution function of one uniform draw a pixel."""
    from scipy.stats import poisson

    # Draws lie on a grid of 2^-24 that holds 0, whose quantile would be -1: half a step up.
    u = draws.uniform(*x.shape[1:]).double().numpy() + 2.0**-25
    counts: np.ndarray = poisson.ppf(u, x.numpy() * photons)
    return torch.from_numpy(counts) / photons


def impulse_noise(x: Tensor, amount: float, draws: Draws) -> Tensor:
    """Salt and pepper: this share of the values, channel by channel, becomes 0 or 1."""
    hit, salt = draws.uniform(*x.shape[1:]) < amount, draws.uniform(*x.shape[1:]) < 0.5
    return torch.where(hit, salt.double(), x)


def speckle_noise(x: Tensor, sigma: float, draws: Draws) -> Tensor:
    """Plus normal noise whose sigma is a share of the value."""
    return x + x * sigma * draws.normal(*x.shape[1:]).double()


def contrast(x: Tensor, factor: float, draws: Draws) -> Tensor:
    """Towards the mean of each channel."""
    mean = x.mean((2, 3), keepdim=True)
    return (x - mean) * factor + mean


def brightness(x: Tensor, shift: float, draws: Draws) -> Tensor:
    """V + shift in HSV, hue and saturation kept: every channel times the ratio of the two V.

    A grey picture has no hue, and its value is V. Black is grey, so it takes the new value.
    """
    value = x.amax(1, keepdim=True)
    shifted = (value + shift).clamp(0, 1)
    return torch.where(value > 0, x * (shifted / value.clamp_min(1e-12)), shifted)


def saturate(x: Tensor, constants: tuple[float, float], draws: Draws) -> Tensor:
    """S times and plus a constant in HSV, hue and value kept.

    A channel is V (1 - S f), where the hue alone decides f. The hue of grey is 0 by convention, so
    that grey turns red where the constant that is added is not 0, as it does in the original.
    """
    factor, shift = constants
    value, low = x.amax(1, keepdim=True), x.amin(1, keepdim=True)
    spread = value - low
    red = torch.tensor([0.0, 1.0, 1.0], dtype=x.dtype).view(1, 3, 1, 1)
    f = torch.where(spread > 0, (value - x) / spread.clamp_min(1e-12), red)
    saturation = spread / value.clamp_min(1e-12) * factor + shift
    return value * (1 - saturation.clamp(0, 1) * f)
