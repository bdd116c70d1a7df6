"""Blurs: kernels and shifts in pixels, whatever the picture's size, as in the original."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from robustgen.draws import Draws

if TYPE_CHECKING:
    from scipy.sparse import csr_array


def gaussian_blur(x: Tensor, sigma: float, draws: Draws) -> Tensor:
    """By a normal kernel of ``sigma`` pixels."""
    return torch.from_numpy(smooth(x.numpy(), sigma))


def defocus_blur(x: Tensor, constants: tuple[float, float], draws: Draws) -> Tensor:
    """A disk of a radius, its edge smoothed by a normal kernel; mirrored at the border."""
    from scipy.fft import irfft2, next_fast_len, rfft2

    kernel = disk(*constants)
    used = int(np.abs(np.argwhere(kernel > 1e-12) - len(kernel) // 2).max())
    middle = slice(len(kernel) // 2 - used, len(kernel) // 2 + used + 1)
    height, width = x.shape[2:]
    edge = (used, used)
    padded = np.pad(x.numpy().astype(np.float32), ((0, 0), (0, 0), edge, edge), mode="reflect")
    size = [next_fast_len(side, real=True) for side in padded.shape[2:]]
    # the kernel is symmetric, so that a convolution is what a correlation would be
    product = rfft2(padded, size) * rfft2(kernel[middle, middle].astype(np.float32), size)
    blurred = irfft2(product, size)[:, :, 2 * used : 2 * used + height, 2 * used : 2 * used + width]
    return torch.from_numpy(blurred.astype(np.float64) + FLOAT32 / 255)


def glass_blur(x: Tensor, constants: tuple[float, int, int], draws: Draws) -> Tensor:
    """Blurred, then every pixel but those near the border replaced by one that is up to ``reach`` pixels
    up or left of it, or less than that down or right, ``passes`` times, and blurred again.

    The original means to swap the two pixels, but numpy's views make a copy of it in colour pictures.
    It goes through them from the last to the first, so that what it copies from further on, but for
    the border, was replaced already: ``source`` follows such copies to where they came from.
    """
    sigma, reach, passes = constants
    pixels = torch.from_numpy(cut(smooth(x.numpy(), sigma)))
    height, width = x.shape[2:]
    rows = torch.arange(reach + 1, height - reach + 1)
    columns = torch.arange(reach + 1, width - reach + 1)
    itself = torch.arange(height * width).view(height, width)
    replaced = torch.zeros(height * width, dtype=torch.bool)
    replaced[itself[rows[:, None], columns].flatten()] = True
    for _ in range(passes):
        moves = (draws.uniform(2, len(rows), len(columns)) * 2 * reach).long() - reach
        source = itself.expand(len(x), height, width).clone()
        source[:, rows[:, None], columns] = (rows[:, None] + moves[:, 0]) * width + columns + moves[:, 1]
        source = source.flatten(1)
        later = (source > itself.flatten()) & replaced[source]
        last = torch.where(later, source, itself.flatten())
        while not torch.equal(further := last.gather(1, last), last):
            last = further
        final = source.gather(1, last)[:, None].expand(-1, x.shape[1], -1)
        pixels = pixels.flatten(2).gather(2, final).view_as(x)
    return torch.from_numpy(smooth(pixels.numpy(), sigma))


def motion_blur(x: Tensor, constants: tuple[int, float], draws: Draws) -> Tensor:
    """Along a line that is up to 45 degrees steep."""
    radius, sigma = constants
    return along_a_line(x, radius, sigma, angles(draws, -45, 45))


def zoom_blur(x: Tensor, constants: tuple[float, float], draws: Draws) -> Tensor:
    """The mean of the picture and of its zooms by 1, 1 + step, 1 + 2 step, ... up to ``largest``."""
    height, width = x.shape[2:]
    mean = _mean_of_zooms(height, width, *constants)
    flat = np.ascontiguousarray(x.numpy().reshape(-1, height * width).T)
    return torch.from_numpy(np.ascontiguousarray((mean @ flat).T)).view_as(x)


@lru_cache(maxsize=16)
def _mean_of_zooms(height: int, width: int, largest: float, step: float) -> csr_array:
    """Zoom blur as a matrix (height width, height width): all of it is linear, and most of it 0."""
    from scipy.sparse import csr_array, eye_array, kron

    factors = np.arange(1, largest, step)  # rounding lets the largest itself in for some, as in the original
    total = eye_array(height * width, format="csr")
    for factor in factors:
        down, across = (csr_array(_zoomed(side, float(factor))) for side in (height, width))
        total = total + kron(down, across, format="csr")
    return csr_array(total / (len(factors) + 1))


def smooth(x: np.ndarray, sigma: float, mode: str = "nearest", truncate: float = 4.0) -> np.ndarray:
    """x (..., height, width) filtered by a normal kernel of ``sigma`` pixels, cut at ``truncate`` sigma."""
    down, across = (_smoothing(side, sigma, mode, truncate) for side in x.shape[-2:])
    return down @ x @ across.T  # a product a picture, so its bits do not depend on the batch


@lru_cache(maxsize=64)
def _smoothing(side: int, sigma: float, mode: str, truncate: float) -> np.ndarray:
    """The filter along one axis as a matrix (side, side)."""
    from scipy.ndimage import gaussian_filter1d

    return gaussian_filter1d(np.eye(side), sigma, axis=0, mode=mode, truncate=truncate)


def disk(radius: float, alias: float) -> np.ndarray:
    """The kernel of an aperture: a disk of sum 1, smoothed by a normal kernel of 3x3, or of 5x5 from a
    radius of 8 on."""
    from scipy.ndimage import correlate1d

    side = np.arange(-max(radius, 8), max(radius, 8) + 1)
    aperture = (side[:, None] ** 2 + side**2 <= radius**2).astype(np.float64)
    reach = 1 if radius <= 8 else 2
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / alias) ** 2)
    for axis in (0, 1):
        aperture = correlate1d(aperture, weights / weights.sum(), axis=axis, mode="mirror")
    return aperture / (side[:, None] ** 2 + side**2 <= radius**2).sum()


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
    weights = (weights / weights.sum()).astype(np.float32)
    turned = np.deg2rad(degrees.numpy())
    down, right = (np.ceil(np.outer(f(turned), steps) - 0.5).astype(int) for f in (np.sin, np.cos))
    height, width = x.shape[2:]
    most = [max(0, -int(way.min(initial=0))) for way in (down, right)]
    edges = [(least, max(0, int(way.max(initial=0)))) for least, way in zip(most, (down, right), strict=True)]
    # channels last, so that what is read at a time lies together
    padded = np.pad(x.permute(0, 2, 3, 1).float().numpy(), ((0, 0), *edges, (0, 0)), mode="edge")
    total = np.zeros((len(x), height, width, x.shape[1]), np.float32)
    shifted = np.empty(total.shape[1:], np.float32)
    for out, picture, below, beside in zip(total, padded, down + most[0], right + most[1], strict=True):
        for weight, top, left in zip(weights, below.tolist(), beside.tolist(), strict=True):
            np.multiply(picture[top : top + height, left : left + width], weight, out=shifted)
            out += shifted
    return torch.from_numpy(total.transpose(0, 3, 1, 2)).double().mul(255).round() / 255


def zoom(x: np.ndarray, factor: float) -> np.ndarray:
    """The middle of x (batch, channels, side, side), enlarged to x's size by linear interpolation."""
    down, across = (_zoomed(side, factor) for side in x.shape[2:])
    return down @ x @ across.T


@lru_cache(maxsize=256)
def _zoomed(side: int, factor: float) -> np.ndarray:
    """The zoom along one axis as a matrix (side, side)."""
    from scipy.ndimage import zoom as enlarge

    middle = math.ceil(side / factor)
    first = (side - middle) // 2
    large = enlarge(np.eye(side)[first : first + middle], (factor, 1), order=1)
    first = (len(large) - side) // 2
    return large[first : first + side]


def cut(x: np.ndarray) -> np.ndarray:
    """x cut down to 8-bit levels, which stay in [0, 1]."""
    return np.floor(np.clip(x, 0, 1) * 255 + ROUNDING) / 255


FLOAT32 = 1e-3
"""Levels: more than a transform in float32 is off by; without it, flat areas would be cut a level down."""

ROUNDING = 1e-4
"""A float32 pixel is off its 8-bit level by up to 2e-5 levels; cutting would take it to the level below."""
