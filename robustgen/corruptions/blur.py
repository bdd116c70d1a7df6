"""Blurs; kernels and shifts are in pixels whatever the size of the image, as in the original."""

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
    """Convolution with a Gaussian kernel of ``sigma`` pixels."""
    return torch.from_numpy(smooth(x.numpy(), sigma))


def defocus_blur(x: Tensor, constants: tuple[float, float], draws: Draws) -> Tensor:
    """Convolution with a disk of a radius, its edge smoothed by a Gaussian; mirrored at the border."""
    from scipy.fft import irfft2, next_fast_len, rfft2

    kernel = disk(*constants)
    used = int(np.abs(np.argwhere(kernel > 1e-12) - len(kernel) // 2).max())
    middle = slice(len(kernel) // 2 - used, len(kernel) // 2 + used + 1)
    height, width = x.shape[2:]
    edge = (used, used)
    padded = np.pad(x.numpy().astype(np.float32), ((0, 0), (0, 0), edge, edge), mode="reflect")
    size = [next_fast_len(side, real=True) for side in padded.shape[2:]]
    # the kernel is symmetric, so convolution equals correlation
    product = rfft2(padded, size) * rfft2(kernel[middle, middle].astype(np.float32), size)
    blurred = irfft2(product, size)[:, :, 2 * used : 2 * used + height, 2 * used : 2 * used + width]
    return torch.from_numpy(blurred.astype(np.float64) + FFT_ERROR / 255)


def glass_blur(x: Tensor, constants: tuple[float, int, int], draws: Draws) -> Tensor:
    """Blur, replace every pixel away from the border by a nearby one ``passes`` times, and blur again.

    The nearby pixel is up to ``reach`` pixels up or left, or less than that down or right. The original
    intends to swap the two pixels, but numpy's views turn the swap into a copy in colour images. It
    processes pixels from last to first, so a pixel copied from further on, except at the border, has
    been replaced already: ``source`` follows such chains of copies to their origin.
    """
    sigma, reach, passes = constants
    pixels = torch.from_numpy(truncate_to_8_bits(smooth(x.numpy(), sigma)))
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
    """Blur along a line of a random angle from -45 to 45 degrees."""
    radius, sigma = constants
    return directional_blur(x, radius, sigma, angles(draws, -45, 45))


def zoom_blur(x: Tensor, constants: tuple[float, float], draws: Draws) -> Tensor:
    """The mean of the image and its zooms by 1, 1 + step, 1 + 2 step, ... up to a largest factor."""
    height, width = x.shape[2:]
    mean = _mean_of_zooms(height, width, *constants)
    flat = np.ascontiguousarray(x.numpy().reshape(-1, height * width).T)
    return torch.from_numpy(np.ascontiguousarray((mean @ flat).T)).view_as(x)


@lru_cache(maxsize=16)
def _mean_of_zooms(height: int, width: int, largest: float, step: float) -> csr_array:
    """Zoom blur, which is linear, as a sparse matrix (height * width, height * width)."""
    from scipy.sparse import csr_array, eye_array, kron

    factors = np.arange(1, largest, step)  # may include ``largest`` by rounding, as the original does
    total = eye_array(height * width, format="csr")
    for factor in factors:
        down, across = (csr_array(_zoomed(side, float(factor))) for side in (height, width))
        total = total + kron(down, across, format="csr")
    return csr_array(total / (len(factors) + 1))


def smooth(x: np.ndarray, sigma: float, mode: str = "nearest", truncate: float = 4.0) -> np.ndarray:
    """x (..., height, width) filtered by a Gaussian of ``sigma`` pixels, truncated at ``truncate`` sigma."""
    down, across = (_smoothing(side, sigma, mode, truncate) for side in x.shape[-2:])
    return down @ x @ across.T  # a matrix product per image, whose bits do not depend on the batch


@lru_cache(maxsize=64)
def _smoothing(side: int, sigma: float, mode: str, truncate: float) -> np.ndarray:
    """The filter along one axis as a matrix (side, side)."""
    from scipy.ndimage import gaussian_filter1d

    return gaussian_filter1d(np.eye(side), sigma, axis=0, mode=mode, truncate=truncate)


def disk(radius: float, alias: float) -> np.ndarray:
    """A disk-shaped kernel of sum 1, smoothed by a Gaussian of 3x3 pixels, or 5x5 for radii above 8."""
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


def directional_blur(x: Tensor, radius: int, sigma: float, degrees: Tensor) -> Tensor:
    """ImageMagick's motion blur, rounded to 8 bits.

    The mean over 2 radius + 1 pixels, starting at each pixel, with the weights of half a Gaussian, in the
    direction ``degrees`` (batch,), clockwise from the right. Border pixels are replicated.
    """
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-0.5 * (steps / sigma) ** 2)
    weights = (weights / weights.sum()).astype(np.float32)
    turned = np.deg2rad(degrees.numpy())
    down, right = (np.ceil(np.outer(f(turned), steps) - 0.5).astype(int) for f in (np.sin, np.cos))
    height, width = x.shape[2:]
    most = [max(0, -int(way.min(initial=0))) for way in (down, right)]
    edges = [(least, max(0, int(way.max(initial=0)))) for least, way in zip(most, (down, right), strict=True)]
    # channels last, for contiguous reads
    padded = np.pad(x.permute(0, 2, 3, 1).float().numpy(), ((0, 0), *edges, (0, 0)), mode="edge")
    total = np.zeros((len(x), height, width, x.shape[1]), np.float32)
    shifted = np.empty(total.shape[1:], np.float32)
    for out, picture, below, beside in zip(total, padded, down + most[0], right + most[1], strict=True):
        for weight, top, left in zip(weights, below.tolist(), beside.tolist(), strict=True):
            np.multiply(picture[top : top + height, left : left + width], weight, out=shifted)
            out += shifted
    return torch.from_numpy(total.transpose(0, 3, 1, 2)).double().mul(255).round() / 255


def zoom(x: np.ndarray, factor: float) -> np.ndarray:
    """The centre of x (batch, channels, side, side), enlarged to x's size by linear interpolation."""
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


def truncate_to_8_bits(x: np.ndarray) -> np.ndarray:
    """x rounded down to 8-bit levels, in [0, 1]."""
    return np.floor(np.clip(x, 0, 1) * 255 + FLOAT32_ERROR) / 255


FFT_ERROR = 1e-3
"""In levels, more than the error of a float32 FFT, by which truncation would darken flat areas by a level."""

FLOAT32_ERROR = 1e-4
"""In levels, more than the 2e-5 by which a float32 pixel may lie below its level; added before truncation."""
