"""The lossy codec of a data set, and what of it can be measured in the images.

A foreign set that did not pass through the familiar set's codec can be told apart by compression artefacts
alone, whatever the images show. So foreign images are passed through the same codec first.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

SAMPLINGS = {0: "4:4:4", 1: "4:2:2", 2: "4:2:0"}
"""Pillow's numbers for the chroma subsampling of a JPEG."""


@dataclass(frozen=True)
class Jpeg:
    """JPEG with the standard's tables: ``quality`` from 1 to 100, chroma ``sampling`` for colour images."""

    quality: int
    sampling: str = "4:2:0"

    def __str__(self) -> str:
        return f"JPEG (quality {self.quality}, {self.sampling})"

    def __call__(self, images: Tensor) -> Tensor:
        """Encode and decode images (n, 1 or 3, height, width) in [0, 1]; the result has 8 bits per value."""
        from PIL import Image

        found = []
        for pixels in to_uint8(images):
            file = io.BytesIO()
            picture = Image.fromarray(pixels)
            colour = {"subsampling": self.sampling} if picture.mode == "RGB" else {}
            picture.save(file, "JPEG", quality=self.quality, **colour)
            found.append(np.asarray(Image.open(file)).reshape(*pixels.shape[:2], -1))
        stacked = np.stack(found).transpose(0, 3, 1, 2)
        return torch.from_numpy(np.ascontiguousarray(stacked)).float() / 255


def codec_of(picture: Any) -> Jpeg | None:
    """The codec of an opened Pillow image, None if lossless; the nearest quality for non-standard tables."""
    from PIL.JpegImagePlugin import get_sampling

    if picture.format not in ("JPEG", "MPO"):  # MPO: several JPEGs in one file, as phones write them
        return None
    scale = picture.quantization[0][0] * 100 / 16  # 16 is this entry of the standard's table
    guess = round(100 - scale / 2 if scale <= 100 else 5000 / scale)
    # one rounded entry leaves a few candidates
    near = range(max(1, guess - 4), min(100, guess + 4) + 1)
    quality = next((q for q in near if _table(q) == list(picture.quantization[0])), guess)
    return Jpeg(quality, SAMPLINGS.get(get_sampling(picture), "4:4:4"))


@cache
def _table(quality: int) -> list[int]:
    """Pillow's luma quantisation table at a quality."""
    from PIL import Image

    file = io.BytesIO()
    Image.new("L", (8, 8)).save(file, "JPEG", quality=quality)
    return list(Image.open(file).quantization[0])  # type: ignore[attr-defined]


def to_uint8(images: Tensor) -> list[np.ndarray]:
    """Images (n, channels, height, width) in [0, 1] as Pillow's uint8 arrays, grey without a channel axis."""
    pixels = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return list(pixels[..., 0] if pixels.shape[3] == 1 else pixels)


def png_bits(images: Tensor) -> Tensor:
    """Size of each image (n, ...) as an 8-bit PNG, in bits, float64 (n,): its complexity.

    The length of a lossless compression bounds Kolmogorov complexity from above (Serra et al. 2020,
    arXiv:1909.11480). It includes a constant header of about 60 bytes.
    """
    from PIL import Image

    found = []
    for pixels in to_uint8(images):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG", optimize=True)
        found.append(8 * file.tell())
    return torch.tensor(found, dtype=torch.float64)


def chroma_detail(images: Tensor) -> Tensor:
    """The share of an image's chroma variation that lies within 2x2 blocks, (n,) in [0, 1].

    sqrt(E |c - block mean|^2 / E |c - mean|^2) for the chroma c = (Cb, Cr) of ITU-R BT.601, which 4:2:0
    subsampling discards. 0 for an image without chroma. ``images``: (n, 3, height, width); an odd last row or
    column is ignored.
    """
    red, green, blue = images.double()[:, :, : images.shape[2] // 2 * 2, : images.shape[3] // 2 * 2].unbind(1)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    chroma = torch.stack([(blue - luma) / 1.772, (red - luma) / 1.402], 1)
    blocks = functional.avg_pool2d(chroma, 2).repeat_interleave(2, 2).repeat_interleave(2, 3)
    fine = (chroma - blocks).square().mean((1, 2, 3))
    whole = (chroma - chroma.mean((2, 3), keepdim=True)).square().mean((1, 2, 3))
    # for a grey image, rounding leaves about 1e-33
    return torch.where(whole > 1e-12, (fine / whole.clamp_min(1e-12)).sqrt(), 0.0)
