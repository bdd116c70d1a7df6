"""Pixelation, JPEG compression and elastic warps."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from robustgen.corruptions.blur import smooth
from robustgen.draws import Draws

if TYPE_CHECKING:
    from PIL.Image import Image


def pixelate(x: Tensor, scale: float, draws: Draws) -> Tensor:
    """Downscale by ``scale`` and upscale again with Pillow's BOX filter (area means).

    As in Pillow, rows come before columns, and each pass is rounded to 8 bits.
    """
    height, width = x.shape[2:]
    across, down = _boxes(width, int(width * scale)), _boxes(height, int(height * scale))
    levels = (x.float() * 255).add_(0.5).int().numpy()
    small = _box_means(_transposed(_box_means(_transposed(levels), across)), down).astype(np.float32)
    small /= 255
    # upscaling copies pixels of the small image
    rows, columns = small.shape[2:]
    places = down.up[:, None] * columns + across.up
    return torch.from_numpy(small.reshape(*x.shape[:2], rows * columns).take(places, axis=2))


def _transposed(pictures: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(pictures.swapaxes(2, 3))


class Boxes(NamedTuple):
    """Pillow's BOX filter along one axis, downscaling to ``boxes`` pixels, and the way back.

    ``pixels`` (most, boxes): the pixels of each box; ``weights`` (most, boxes): their weights in units of
    2^-22, padded with 0; ``up`` (side,): the box that each pixel is copied from in upscaling.
    """

    pixels: np.ndarray
    weights: np.ndarray
    up: np.ndarray


@lru_cache(maxsize=64)
def _boxes(side: int, small: int) -> Boxes:
    from PIL.Image import Resampling, fromarray

    rows = fromarray(np.eye(side, dtype=np.float32))
    down = np.asarray(rows.resize((small, side), Resampling.BOX)).T.astype(np.float64)
    numbers = fromarray(np.arange(small, dtype=np.float32)[None])
    up = np.asarray(numbers.resize((side, 1), Resampling.BOX))[0]
    most = int((down > 0).sum(1).max())
    pixels = (down > 0).argmax(1) + np.arange(most)[:, None]
    padded = np.pad(down, ((0, 0), (0, most)))
    weights = np.rint(np.take_along_axis(padded, pixels.T, 1).T * 2**22).astype(np.int32)
    return Boxes(pixels.clip(max=side - 1), weights, up.astype(np.intp))


def _box_means(levels: np.ndarray, boxes: Boxes) -> np.ndarray:
    """Means of boxes along the rows (axis 2) of int32 levels, rounded in Pillow's fixed-point arithmetic."""
    sums = np.full(1, 2**21, np.int32)
    for pixels, weights in zip(boxes.pixels, boxes.weights, strict=True):
        terms = levels.take(pixels, axis=2)
        terms *= weights[:, None]
        terms += sums
        sums = terms
    sums >>= 22
    return sums


def jpeg_compression(x: Tensor, quality: int, draws: Draws) -> Tensor:
    """Compression by Pillow's JPEG, with 4:2:0 chroma subsampling."""
    from PIL.Image import open as read

    def compress(picture: Image) -> Image:
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=quality)
        return read(file)

    return _with_pillow(x, compress)


def elastic_transform(x: Tensor, constants: tuple[float, float, float], draws: Draws) -> Tensor:
    """A random affine map, then a smooth random displacement; constants are shares of the shorter side.

    The affine map is given by the random displacement of three points, a third of the side from the centre.
    """
    strength, sigma, move = (share * min(x.shape[2:]) for share in constants)
    height, width = x.shape[2:]
    if move:
        x = torch.from_numpy(affine(x.numpy(), (2 * draws.uniform(3, 2).double().numpy() - 1) * move))
    if not strength:
        return x
    noise = 2 * draws.uniform(2, height, width).double().numpy() - 1
    shifts = torch.from_numpy(smooth(noise, sigma, mode="reflect", truncate=3) * strength)
    rows, columns = torch.arange(height)[:, None] + shifts[:, 1], torch.arange(width) + shifts[:, 0]
    return bilinear(x, rows, columns, beyond_reflected)


def affine(x: np.ndarray, moves: np.ndarray) -> np.ndarray:
    """x (batch, channels, height, width) under affine maps that displace three points by ``moves``
    (batch, points, 2), in pixels to the right and down; bilinear, mirrored at the border."""
    height, width = x.shape[2:]
    across, down, third = width // 2, height // 2, min(height, width) // 3
    before = np.array(
        [[across + third, down + third], [across + third, down - third], [across - third, down - third]]
    )
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    places = np.stack([columns, rows, np.ones_like(rows)]).reshape(3, -1)
    corners = _homogeneous(before)
    forward = np.linalg.solve(corners, _homogeneous(before + moves))
    # where each pixel of the result comes from
    sources = np.linalg.solve(forward.swapaxes(1, 2), places).reshape(-1, 3, height, width)
    from_column, from_row, _ = torch.from_numpy(sources).unbind(1)
    return bilinear(torch.from_numpy(x), from_row, from_column, beyond_mirrored).numpy()


def bilinear(x: Tensor, rows: Tensor, columns: Tensor, beyond: Callable[[Tensor, int], Tensor]) -> Tensor:
    """x (batch, channels, height, width) sampled at ``rows`` and ``columns`` (batch, height, width).

    ``beyond(index, side)`` maps indices beyond the border to pixels.
    """
    height, width = x.shape[2:]
    top, left = rows.floor(), columns.floor()
    low, beside = (rows - top)[:, None], (columns - left)[:, None]
    above, below = (beyond((top + i).int(), height).long() * width for i in (0, 1))
    before, after = (beyond((left + i).int(), width).long() for i in (0, 1))
    flat = x.flatten(2)

    def at(row: Tensor, column: Tensor) -> Tensor:
        return flat.gather(2, (row + column).flatten(1)[:, None].expand(-1, x.shape[1], -1)).view_as(x)

    upper = at(above, before) * (1 - beside) + at(above, after) * beside
    lower = at(below, before) * (1 - beside) + at(below, after) * beside
    return upper * (1 - low) + lower * low


def beyond_mirrored(index: Tensor, side: int) -> Tensor:
    """... 2 1 [0 1 2 ... n] n-1 ...: mirrored without repeating the border pixel."""
    index = index.abs() % (2 * side - 2)
    return index.minimum(2 * side - 2 - index)


def beyond_reflected(index: Tensor, side: int) -> Tensor:
    """... 1 0 [0 1 ... n] n n-1 ...: mirrored with the border pixel repeated."""
    index = index % (2 * side)
    return index.minimum(2 * side - 1 - index)


def _homogeneous(points: np.ndarray) -> np.ndarray:
    """Points (..., 3, 2) in homogeneous coordinates, (..., 3, 3)."""
    return np.concatenate([points, np.ones((*points.shape[:-1], 1))], -1)


def _with_pillow(x: Tensor, change: Callable[[Image], Image]) -> Tensor:
    """Apply ``change`` to each image as an 8-bit Pillow image."""
    from PIL.Image import fromarray

    levels = (x * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    grey = x.shape[1] == 1
    changed = [np.asarray(change(fromarray(one[..., 0] if grey else one))) for one in levels]
    return (
        torch.from_numpy(np.array(changed) / 255.0)
        .reshape(len(x), *x.shape[2:], x.shape[1])
        .permute(0, 3, 1, 2)
    )
