"""Noise and colour: corruptions of each pixel by itself, or relative to the mean of the image.

As for all formulas of this package, x is float64 (batch, channels, height, width) in [0, 1], and the result
may leave [0, 1].
"""

from __future__ import annotations

import math
from functools import cache, lru_cache

import numpy as np
import torch
from torch import Tensor

from robustgen.corruptions.blur import FLOAT32_ERROR
from robustgen.draws import Draws


def gaussian_noise(x: Tensor, sigma: float, draws: Draws) -> Tensor:
    """Additive Gaussian noise."""
    return _noisy(x, torch.tensor(sigma, dtype=x.dtype), draws)


def speckle_noise(x: Tensor, sigma: float, draws: Draws) -> Tensor:
    """Additive Gaussian noise with a standard deviation of ``sigma`` times the pixel value."""
    return _noisy(x, x * sigma, draws)


def _noisy(x: Tensor, scale: Tensor, draws: Draws) -> Tensor:
    """x + scale n with standard normal n, truncated to 8-bit levels.

    For 49 of 50 values, the first 16 bits of the uniform draw determine the level: it is the same at both
    ends of the interval of n that they leave. Only for the others n is computed as by ``Draws.normal``,
    which takes three times as long as all the rest.
    """
    from scipy.special import ndtri

    u = draws.uniform64(tuple(x.shape[1:]))
    part = (u * PARTS).astype(np.intp)
    pixels, size = x.numpy(), scale.numpy()
    base, size255 = (pixels * 255).astype(np.float32), (size * 255).astype(np.float32)
    low, high = np.take(_ends(), part), np.take(_ends()[1:], part)
    for level, slack in ((low, -ROUNDED), (high, ROUNDED)):
        level *= size255
        level += base
        level += np.float32(FLOAT32_ERROR + slack)
        np.floor(level, out=level)
    open_ = np.flatnonzero(low != high)
    n = ndtri(u.ravel()[open_] + 2.0**-54).astype(np.float32)
    wide = np.broadcast_to(size, pixels.shape)
    low.ravel()[open_] = np.floor((pixels.ravel()[open_] + wide.reshape(-1)[open_] * n) * 255 + FLOAT32_ERROR)
    low /= 255
    return torch.from_numpy(low)


@cache
def _ends() -> np.ndarray:
    """Normal quantiles of 0, 1 / PARTS, ..., 1, float32 (PARTS + 1,), with 100 for infinity."""
    from scipy.special import ndtri

    return ndtri(np.arange(PARTS + 1) / PARTS).clip(-100, 100).astype(np.float32)


PARTS = 2**16
ROUNDED = 1e-3
"""In levels, more than the error of float32 arithmetic at up to 2,000 levels."""


def shot_noise(x: Tensor, photons: float, draws: Draws) -> Tensor:
    """Poisson(photons x) / photons, by inverse transform sampling with one uniform draw per value."""
    from scipy.stats import poisson

    # Draws are multiples of 2^-24, including 0, whose quantile would be -1: shift by half a step.
    u = draws.uniform(*x.shape[1:]).double().numpy().ravel() + 2.0**-25
    pixels = x.numpy().ravel()
    level = np.rint(pixels * 255).astype(np.intp)
    values = (np.arange(256, dtype=np.float32) / np.float32(255)).astype(np.float64)
    values[level] = pixels
    if (np.take(values, level) == pixels).all():
        counts = _quantiles(level, u, *_poisson(photons, values.tobytes()))
    else:  # more than 8 bits
        counts = poisson.ppf(u, pixels * photons)
    return torch.from_numpy(counts).view_as(x) / photons


def _quantiles(level: np.ndarray, u: np.ndarray, reached: np.ndarray, least: np.ndarray) -> np.ndarray:
    """The least count whose distribution function reaches ``u``; ``reached`` and ``least``: see _poisson."""
    place = (u * GUIDES).astype(np.intp)
    place += level * (GUIDES + 1)
    counts = np.take(least, place)
    open_ = np.flatnonzero(counts != np.take(least, place + 1))
    counts = counts.astype(np.float64)
    place, u = level[open_] * reached.shape[1] + counts[open_].astype(np.intp), u[open_]
    short = np.flatnonzero(np.take(reached, place) < u)
    while len(short):
        counts[open_[short]] += 1
        place[short] += 1
        short = short[np.take(reached, place[short]) < u[short]]
    return counts


@lru_cache(maxsize=16)
def _poisson(photons: float, values: bytes) -> tuple[np.ndarray, np.ndarray]:
    """For 256 float64 values: the distribution functions of Poisson(photons value), (256, counts), and the
    quantiles of 0, 1 / GUIDES, ..., 1, (256, GUIDES + 1), at which a search starts."""
    from scipy.special import pdtr

    means = np.frombuffer(values)[:, None] * photons
    most = math.ceil(means.max() + 10 * math.sqrt(means.max()) + 30)  # more is rarer than 2^-25
    reached = pdtr(np.arange(most), means)
    ends = np.arange(GUIDES + 1) / GUIDES
    return reached, np.stack([np.searchsorted(row, ends) for row in reached]).astype(np.uint16)


GUIDES = 1024
"""Number of equal parts of [0, 1) in the guide table of the Poisson quantiles."""


def impulse_noise(x: Tensor, amount: float, draws: Draws) -> Tensor:
    """Salt and pepper: the share ``amount`` of the values, per channel, becomes 0 or 1."""
    hit, salt = draws.uniform(*x.shape[1:]) < amount, draws.uniform(*x.shape[1:]) < 0.5
    return torch.where(hit, salt.double(), x)


def contrast(x: Tensor, factor: float, draws: Draws) -> Tensor:
    """Contraction towards the mean of each channel."""
    mean = x.mean((2, 3), keepdim=True)
    return (x - mean) * factor + mean


def brightness(x: Tensor, shift: float, draws: Draws) -> Tensor:
    """V + shift in HSV at constant hue and saturation: all channels are scaled by the ratio of the two V.

    For a grey image, V is the value itself. Black becomes grey.
    """
    value = x.amax(1, keepdim=True)
    shifted = (value + shift).clamp(0, 1)
    return torch.where(value > 0, x * (shifted / value.clamp_min(1e-12)), shifted)


def saturate(x: Tensor, constants: tuple[float, float], draws: Draws) -> Tensor:
    """S * factor + shift in HSV at constant hue and value.

    A channel is V (1 - S f), where f depends on the hue alone. The hue of grey is 0, which is red, by
    convention, so grey turns reddish if shift is not 0, as in the original.
    """
    factor, shift = constants
    value, low = x.amax(1, keepdim=True), x.amin(1, keepdim=True)
    spread = value - low
    red = torch.tensor([0.0, 1.0, 1.0], dtype=x.dtype).view(1, 3, 1, 1)
    f = torch.where(spread > 0, (value - x) / spread.clamp_min(1e-12), red)
    saturation = spread / value.clamp_min(1e-12) * factor + shift
    return value * (1 - saturation.clamp(0, 1) * f)
