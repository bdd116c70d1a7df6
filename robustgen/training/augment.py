"""Random augmentation of training images, drawn independently for each image."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from robustgen.training.recipe import Augment


def augment(x: Tensor, spec: Augment, generator: torch.Generator) -> Tensor:
    """Augment images (batch, channels, height, width) in [0, 1] as ``spec`` says; same shape and range."""
    before = x
    if spec.flip:
        mirrored = torch.rand(len(x), generator=generator, device=x.device) < 0.5
        x = torch.where(mirrored.view(-1, 1, 1, 1), x.flip(3), x)
    if spec.rotate or spec.scale or spec.subpixel:
        x = _affine(x, spec, generator)
    if spec.shift:
        x = _shift(x, spec, generator)
    if spec.cutout:
        x = _cutout(x, spec.cutout, generator)
    if spec.share < 1:
        changed = torch.rand(len(x), generator=generator, device=x.device) < spec.share
        x = torch.where(changed.view(-1, 1, 1, 1), x, before)
    return x


def _shift(x: Tensor, spec: Augment, generator: torch.Generator) -> Tensor:
    size = 2 * spec.shift + 1
    mode = "reflect" if spec.fill == "reflect" else "constant"
    padded = functional.pad(x, [spec.shift] * 4, mode=mode)
    top, left = torch.randint(size, (2, len(x), 1), generator=generator, device=x.device)
    batch, channels, height, width = x.shape
    rows = (top + torch.arange(height, device=x.device)).view(batch, 1, height, 1)
    columns = (left + torch.arange(width, device=x.device)).view(batch, 1, 1, width)
    which = torch.arange(batch, device=x.device).view(batch, 1, 1, 1)
    return padded[which, torch.arange(channels, device=x.device).view(1, -1, 1, 1), rows, columns]


def _cutout(x: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """Cutout: a grey square around a random pixel of each image, cropped at the border."""
    batch, _, height, width = x.shape
    draw = torch.rand(2, batch, 1, generator=generator, device=x.device)
    rows = torch.arange(height, device=x.device) - (draw[0] * height).long()
    columns = torch.arange(width, device=x.device) - (draw[1] * width).long()
    before, after = -(side // 2), side - side // 2  # offsets from the drawn pixel; the second is exclusive
    rows, columns = ((line >= before) & (line < after) for line in (rows, columns))
    return torch.where((rows[:, :, None] & columns[:, None, :])[:, None], 0.5, x)


def _affine(x: Tensor, spec: Augment, generator: torch.Generator) -> Tensor:
    """Rotation, scale and sub-pixel shift in one bilinear resampling, with 0 beyond the border."""
    draw = torch.rand(4, len(x), generator=generator, device=x.device) * 2 - 1
    angle, size = draw[0] * math.radians(spec.rotate), 1 + draw[1] * spec.scale
    # grid_sample's coordinates run from -1 to 1 across the image
    right, down = draw[2] * spec.subpixel * 2 / x.shape[3], draw[3] * spec.subpixel * 2 / x.shape[2]
    aspect = x.shape[2] / x.shape[3]  # in these coordinates pixels are square only if the image is
    turn, side = angle.cos() / size, angle.sin() / size
    rows = [turn, -side * aspect, right, side / aspect, turn, down]
    grid = functional.affine_grid(torch.stack(rows, 1).view(-1, 2, 3), list(x.shape), align_corners=False)
    return functional.grid_sample(x, grid, padding_mode="zeros", align_corners=False)
