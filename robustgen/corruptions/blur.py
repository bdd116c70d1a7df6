"""Blurs: kernels and shifts in pixels, whatever the picture's size, as in the original."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from robustgen.draws import Draws


def gaussian_blur(x: Tensor, sigma: float, draws: Draws) -> Tensor:
    """By a normal kernel of ``sigma`` pixels."""
    return torch.from_numpy(smooth(x.numpy(), sigma))


def defocus_blur(x: Tensor, constants: tuple[float, float], draws: Draws) -> Tensor:
    """A disk of a radius, its edge smoothed by a 3x3 normal kernel."""
    from scipy.ndimage import correlate

    kernel = disk(*constants)
    return torch.from_numpy(correlate(x.numpy(), kernel[None, None], mode="mirror"))


def glass_blur(x: Tensor, constants: tuple[float, int], draws: Draws) -> Tensor:
    """Blurred, then every pixel but those near the border replaced by itself or by its neighbour to the
    left, above or both, ``passes`` times, and blurred again.

    The original means to swap the two pixels, but numpy's views make a copy of it in colour pictures.
    It goes through them from the last to the first, so that it copies what was not yet replaced.
    """
    sigma, passes = constants
    pixels = torch.from_numpy(cut(smooth(x.numpy(), sigma)))
    height, width = x.shape[2:]
    rows, columns = torch.arange(2, height), torch.arange(2, width)
    batch = torch.arange(len(x))[:, None, None]
    for _ in range(passes):
        back = (draws.uniform(2, height - 2, width - 2) * 2).long() - 1  # -1 or 0
        source = pixels[batch, :, rows[:, None] + back[:, 0], columns + back[:, 1]]
        pixels = pixels.clone()
        pixels[:, :, 2:, 2:] = source.permute(0, 3, 1, 2)
    return torch.from_numpy(smooth(pixels.numpy(), sigma))


def motion_blur(x: Tensor, constants: tuple[int, float], draws: Draws) -> Tensor:
    """Along a line that is up to 45 degrees steep."""
    radius, sigma = constants
    return along_a_line(x, radius, sigma, angles(draws, -45, 45))


def zoom_blur(x: Tensor, largest: float, draws: Draws) -> Tensor:
    """The mean of the picture and of its zooms by 1, 1.01, 1.02, ..."""
    factors = np.arange(1, largest, 0.01)  # rounding lets the largest itself in for some, as in the original
    pixels = x.numpy()
    total = pixels.copy()
    for factor in factors:
        total = total + zoom(pixels, float(factor))
    return torch.from_numpy(total / (len(factors) + 1))


def smooth(x: np.ndarray, sigma: float, mode: str = "nearest", truncate: float = 4.0) -> np.ndarray:
    """x (..., height, width) filtered by a normal kernel of ``sigma`` pixels, cut at ``truncate`` sigma."""
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(x, sigma, mode=mode, truncate=truncate, axes=(-2, -1))


def disk(radius: float, alias: float) -> np.ndarray:
    """The kernel of an aperture: a disk of sum 1, smoothed by a normal kernel of 3x3."""
    from scipy.ndimage import correlate1d

    side = np.arange(-8, 9)
    aperture = (side[:, None] ** 2 + side**2 <= radius**2).astype(np.float64)
    weights = np.exp(-0.5 * (np.arange(-1, 2) / alias) ** 2)
    for axis in (0, 1):
        aperture = correlate1d(aperture, weights / weights.sum(), axis=axis)
    return aperture / aperture.sum()


def angles(draws: Draws, low: float, high: float) -> Tensor:
    """An angle for each sample, (batch,), in degrees."""
    return low + (high - low) * draws.uniform(1)[:, 0].double()


def along_a_line(x: Tensor, radius: int, sigma: float, degrees: Tensor) -> Tensor:
    """ImageMagick's motion blur: the mean, with the weights of half a normal kernel, over 2 radius + 1
    pixels from each pixel on, in a direction of its sample's; ``degrees`` (batch,), clockwise from the
    right. Beyond the border the last pixel goes on. Rounded to 8 bits, as it does.
    """
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-0.5 * (steps / sigma) ** 2)
    weights /= weights.sum()
    height, width = x.shape[2:]
    batch = torch.arange(len(x))[:, None, None]
    total = torch.zeros_like(x)
    for step, weight in zip(steps.tolist(), weights.tolist(), strict=True):
        down = (step * torch.sin(torch.deg2rad(degrees)) - 0.5).ceil().long()
        right = (step * torch.cos(torch.deg2rad(degrees)) - 0.5).ceil().long()
        rows = (torch.arange(height) + down[:, None]).clamp(0, height - 1)
        columns = (torch.arange(width) + right[:, None]).clamp(0, width - 1)
        shifted = x[batch, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
        total = total + weight * shifted
    return (total * 255).round() / 255


def zoom(x: np.ndarray, factor: float) -> np.ndarray:
    """The middle of x (batch, channels, side, side), enlarged to x's size by linear interpolation."""
    from scipy.ndimage import zoom as enlarge

    height, width = x.shape[2:]
    rows, columns = (math.ceil(side / factor) for side in (height, width))
    top, left = (height - rows) // 2, (width - columns) // 2
    middle = x[:, :, top : top + rows, left : left + columns]
    large = enlarge(middle, (1, 1, factor, factor), order=1)
    top, left = (large.shape[2] - height) // 2, (large.shape[3] - width) // 2
    return large[:, :, top : top + height, left : left + width]


def cut(x: np.ndarray) -> np.ndarray:
    """x cut down to 8-bit levels, which stay in [0, 1]."""
    return np.floor(np.clip(x, 0, 1) * 255 + ROUNDING) / 255


ROUNDING = 1e-4
"""A float32 pixel is off its 8-bit level by up to 2e-5 levels; cutting would take it to the level below."""
