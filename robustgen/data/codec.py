"""The codec of a data set, and what a set of pictures gives away by it.

A foreign set that never saw the codec of the familiar one can be told from it without a look at what
the pictures show. So foreign pictures go through the same codec first.
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
"""Pillow's numbers for how coarsely a JPEG stores its chroma."""


@dataclass(frozen=True)
class Jpeg:
    """JPEG at a ``quality`` of the standard's tables, 1 to 100, and a chroma ``sampling``; grey has none."""

    quality: int
    sampling: str = "4:2:0"

    def __str__(self) -> str:
        return f"JPEG (quality {self.quality}, {self.sampling})"

    def __call__(self, images: Tensor) -> Tensor:
        """Pictures (n, 1 or 3, height, width) in [0, 1] as they come back from the file, 8 bits a value."""
        from PIL import Image

        found = []
        for pixels in as_bytes(images):
            file = io.BytesIO()
            picture = Image.fromarray(pixels)
            colour = {"subsampling": self.sampling} if picture.mode == "RGB" else {}
            picture.save(file, "JPEG", quality=self.quality, **colour)
            found.append(np.asarray(Image.open(file)).reshape(*pixels.shape[:2], -1))
        stacked = np.stack(found).transpose(0, 3, 1, 2)
        return torch.from_numpy(np.ascontiguousarray(stacked)).float() / 255


def codec_of(picture: Any) -> Jpeg | None:
    """The codec that a picture of Pillow was read from, None where it is lossless; where its tables are not
    the standard's, the nearest quality."""
    from PIL.JpegImagePlugin import get_sampling

    if picture.format not in ("JPEG", "MPO"):  # the latter: several JPEGs in a file, as phones write them
        return None
    scale = picture.quantization[0][0] * 100 / 16  # 16 is that entry in the standard's table
    guess = round(100 - scale / 2 if scale <= 100 else 5000 / scale)
    # one entry, rounded, leaves a few candidates
    near = range(max(1, guess - 4), min(100, guess + 4) + 1)
    quality = next((q for q in near if _table(q) == list(picture.quantization[0])), guess)
    return Jpeg(quality, SAMPLINGS.get(get_sampling(picture), "4:4:4"))


@cache
def _table(quality: int) -> list[int]:
    """The quantisation of luma at a quality, as Pillow writes it."""
    from PIL import Image

    file = io.BytesIO()
    Image.new("L", (8, 8)).save(file, "JPEG", quality=quality)
    return list(Image.open(file).quantization[0])  # type: ignore[attr-defined]


def as_bytes(images: Tensor) -> list[np.ndarray]:
    """Pictures (n, channels, height, width) in [0, 1] as Pillow takes them: uint8, grey without a channel."""
    pixels = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return list(pixels[..., 0] if pixels.shape[3] == 1 else pixels)


def png_bits(images: Tensor) -> Tensor:
    """Bits of each picture (n, ...) as a PNG of 8 bits a value, float64 (n,): its complexity.

    A lossless compressor's length bounds Kolmogorov's from above (Serra et al. 2020, arXiv:1909.11480).
    The same header of some 60 bytes is in all of them.
    """
    from PIL import Image

    found = []
    for pixels in as_bytes(images):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG", optimize=True)
        found.append(8 * file.tell())
    return torch.tensor(found, dtype=torch.float64)


def chroma_detail(images: Tensor) -> Tensor:
    """The share of a colour picture's chroma that lies within its 2x2 blocks, (n,) in [0, 1]; no model asked.

    sqrt(E |c - block mean|^2 / E |c - mean|^2) for the chroma c = (Cb, Cr) of ITU-R BT.601: what 4:2:0
    throws away. 0 for a picture without chroma. ``images``: (n, 3, height, width), an odd last row or
    column left out.
    """
    red, green, blue = images.double()[:, :, : images.shape[2] // 2 * 2, : images.shape[3] // 2 * 2].unbind(1)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    chroma = torch.stack([(blue - luma) / 1.772, (red - luma) / 1.402], 1)
    blocks = functional.avg_pool2d(chroma, 2).repeat_interleave(2, 2).repeat_interleave(2, 3)
    fine = (chroma - blocks).square().mean((1, 2, 3))
    whole = (chroma - chroma.mean((2, 3), keepdim=True)).square().mean((1, 2, 3))
    # rounding alone makes some 1e-33 of a grey picture
    return torch.where(whole > 1e-12, (fine / whole.clamp_min(1e-12)).sqrt(), 0.0)
