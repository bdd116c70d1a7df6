"""Noise and colour: corruptions that look at one pixel, or at the mean of a picture.

As everywhere in this package: x float64 (batch, channels, height, width) in [0, 1], the constant of a
severity, and the samples' draws; the result may leave [0, 1].
"""

from __future__ import annotations

import math
from functools import cache, lru_cache

import numpy as np
import torch
from torch import Tensor

from robustgen.corruptions.blur import ROUNDING as CUT
from robustgen.draws import Draws


def gaussian_noise(x: Tensor, sigma: float, draws: Draws) -> Tensor:
    """Plus normal noise of one sigma."""
    return _noisy(x, torch.tensor(sigma, dtype=x.dtype), draws)


def speckle_noise(x: Tensor, sigma: float, draws: Draws) -> Tensor:
    """Plus normal noise whose sigma is a share of the value."""
    return _noisy(x, x * sigma, draws)


def _noisy(x: Tensor, scale: Tensor, draws: Draws) -> Tensor:
    """x + scale n with normal n, to the 8-bit level that it is cut down to.

    The level needs no more than the first 16 bits of a uniform draw, but for one in fifty: it is the
    same at both ends of the interval of n that these bits leave. Only where it is not, n is computed
    as ``Draws.normal`` does, which takes three times as long as all the rest.
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
        level += np.float32(CUT + slack)
        np.floor(level, out=level)
    open_ = np.flatnonzero(low != high)
    n = ndtri(u.ravel()[open_] + 2.0**-54).astype(np.float32)
    wide = np.broadcast_to(size, pixels.shape)
    low.ravel()[open_] = np.floor((pixels.ravel()[open_] + wide.reshape(-1)[open_] * n) * 255 + CUT)
    low /= 255
    return torch.from_numpy(low)


@cache
def _ends() -> np.ndarray:
    """The n between neighbouring parts of (0, 1), float32 (PARTS + 1,); 100 stands for infinity."""
    from scipy.special import ndtri

    return ndtri(np.arange(PARTS + 1) / PARTS).clip(-100, 100).astype(np.float32)


PARTS = 2**16
ROUNDED = 1e-3
"""Levels: more than float32 numbers and arithmetic are off by, at up to 2,000 levels."""


def shot_noise(x: Tensor, photons: float, draws: Draws) -> Tensor:
    """Poisson(photons x) / photons, by the inverse distribution function of one uniform draw a pixel."""
    from scipy.stats import poisson

    # Draws lie on a grid of 2^-24 that holds 0, whose quantile would be -1: half a step up.
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
    """The first count whose distribution function reaches ``u``; tables as ``_poisson`` makes them."""
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
    """The distribution functions of Poisson(photons value), (256, counts), and the quantiles of 0,
    1 / GUIDES, 2 / GUIDES, ..., 1, (256, GUIDES + 1), for 256 float64 values."""
    from scipy.special import pdtr

    means = np.frombuffer(values)[:, None] * photons
    most = math.ceil(means.max() + 10 * math.sqrt(means.max()) + 30)  # more is rarer than 2^-25
    reached = pdtr(np.arange(most), means)
    ends = np.arange(GUIDES + 1) / GUIDES
    return reached, np.stack([np.searchsorted(row, ends) for row in reached]).astype(np.uint16)


GUIDES = 1024
"""How many parts of [0, 1) a search for a quantile begins in."""


def impulse_noise(x: Tensor, amount: float, draws: Draws) -> Tensor:
    """Salt and pepper: this share of the values, channel by channel, becomes 0 or 1."""
    hit, salt = draws.uniform(*x.shape[1:]) < amount, draws.uniform(*x.shape[1:]) < 0.5
    return torch.where(hit, salt.double(), x)


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
