"""Warps and compression."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from robustgen.corruptions.blur import smooth
from robustgen.draws import Draws

if TYPE_CHECKING:
    from PIL.Image import Image


def pixelate(x: Tensor, scale: float, draws: Draws) -> Tensor:
    """Scaled down and up again, by means over the area of a pixel."""
    from PIL.Image import Resampling

    def change(picture: Image) -> Image:
        width, height = picture.size
        small = picture.resize((int(width * scale), int(height * scale)), Resampling.BOX)
        return small.resize((width, height), Resampling.BOX)

    return _each(x, change)


def jpeg_compression(x: Tensor, quality: int, draws: Draws) -> Tensor:
    """Through Pillow's JPEG, which halves the resolution of colour."""
    from PIL.Image import open as read

    def change(picture: Image) -> Image:
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=quality)
        return read(file)

    return _each(x, change)


def elastic_transform(x: Tensor, constants: tuple[float, float, float], draws: Draws) -> Tensor:
    """A random affine map, then a smooth random shift of pixels; constants are shares of the shorter side.

    The affine map moves three corners of a square, a third of the side from the middle.
    """
    from scipy.ndimage import map_coordinates

    strength, sigma, move = (share * min(x.shape[2:]) for share in constants)
    height, width = x.shape[2:]
    pixels = affine(x.numpy(), (2 * draws.uniform(3, 2).double().numpy() - 1) * move)
    shifts = 2 * draws.uniform(2, height, width).double().numpy() - 1
    shifts = smooth(shifts, sigma, mode="reflect", truncate=3) * strength
    grid = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij"))
    warped = [
        [map_coordinates(channel, grid + shift, order=1, mode="reflect") for channel in picture]
        for picture, shift in zip(pixels, shifts[:, ::-1], strict=True)
    ]
    return torch.from_numpy(np.array(warped)).view_as(x)


def affine(x: np.ndarray, moves: np.ndarray) -> np.ndarray:
    """x (batch, channels, height, width) under the affine maps that move three points by ``moves``
    (batch, points, 2), right and down in pixels; mirrored at the border, linear between pixels."""
    from scipy.ndimage import map_coordinates

    height, width = x.shape[2:]
    across, down, third = width // 2, height // 2, min(height, width) // 3
    before = np.array(
        [[across + third, down + third], [across + third, down - third], [across - third, down - third]]
    )
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    places = np.stack([columns, rows, np.ones_like(rows)]).reshape(3, -1)
    out = []
    for picture, move in zip(x, moves, strict=True):
        forward = np.linalg.solve(_homogeneous(before), _homogeneous(before + move))
        source = np.linalg.solve(forward.T, places)  # where each pixel of the result comes from
        coordinates = source[1::-1].reshape(2, height, width)
        out.append([map_coordinates(channel, coordinates, order=1, mode="mirror") for channel in picture])
    return np.array(out).reshape(x.shape)


def _homogeneous(points: np.ndarray) -> np.ndarray:
    """Points (3, 2) with a 1 each."""
    return np.concatenate([points, np.ones((3, 1))], 1)


def _each(x: Tensor, change: Callable[[Image], Image]) -> Tensor:
    """Pictures through a function of Pillow's, at 8 bits."""
    from PIL.Image import fromarray

    levels = (x * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    grey = x.shape[1] == 1
    changed = [np.asarray(change(fromarray(one[..., 0] if grey else one))) for one in levels]
    return (
        torch.from_numpy(np.array(changed) / 255.0)
        .reshape(len(x), *x.shape[2:], x.shape[1])
        .permute(0, 3, 1, 2)
    )
