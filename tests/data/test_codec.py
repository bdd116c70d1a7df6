"""What a JPEG does to pictures, what a picture's file says of it, and how fine its chroma is."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.fft import dctn, idctn
from torch import Tensor

from robustgen.data import codec
from robustgen.data.codec import Jpeg


def photo(channels: int = 3, side: int = 32) -> Tensor:
    """Two smooth pictures with some noise, in [0, 1]."""
    generator = torch.Generator().manual_seed(0)
    rough = torch.rand(2, channels, 4, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(rough, (side, side), mode="bicubic", align_corners=False)
    return (smooth + 0.05 * torch.randn(smooth.shape, generator=generator)).clamp(0, 1)


@pytest.mark.parametrize("quality", [30, 75, 95])
@pytest.mark.parametrize("sampling", ["4:4:4", "4:2:2", "4:2:0"])
def test_a_pictures_file_says_its_codec(quality: int, sampling: str) -> None:
    file = io.BytesIO()
    Image.fromarray(codec.to_uint8(photo())[0]).save(file, "JPEG", quality=quality, subsampling=sampling)
    with Image.open(file) as picture:
        assert codec.codec_of(picture) == Jpeg(quality, sampling)
    file = io.BytesIO()
    Image.fromarray(codec.to_uint8(photo())[0]).save(file, "PNG")
    with Image.open(file) as picture:
        assert codec.codec_of(picture) is None


def test_several_jpegs_in_one_file_are_no_lossless_picture() -> None:
    file, pictures = io.BytesIO(), [Image.fromarray(one) for one in codec.to_uint8(photo())]
    pictures[0].save(file, "MPO", save_all=True, append_images=pictures[1:], quality=80, subsampling="4:2:0")
    with Image.open(file) as picture:
        assert picture.format == "MPO"
        assert codec.codec_of(picture) == Jpeg(80, "4:2:0")


def test_grey_comes_back_as_its_rounded_cosines() -> None:
    x = photo(channels=1)
    file = io.BytesIO()
    Image.new("L", (8, 8)).save(file, "JPEG", quality=75)
    table = np.array(Image.open(file).quantization[0]).reshape(8, 8)  # type: ignore[attr-defined]
    blocks = (x[:, 0].numpy() * 255).round().reshape(2, 4, 8, 4, 8).transpose(0, 1, 3, 2, 4) - 128
    kept = np.round(dctn(blocks, axes=(3, 4), norm="ortho") / table) * table
    back = idctn(kept, axes=(3, 4), norm="ortho").transpose(0, 1, 3, 2, 4).reshape(2, 32, 32) + 128
    ours = (Jpeg(75)(x) * 255).round()[:, 0].numpy()
    # its cosines are of integers: now and then one is rounded to the other side, for a whole block
    assert (np.abs(ours - back.clip(0, 255)) <= 1).mean() > 0.8
    assert np.abs(ours - 255 * x[:, 0].numpy()).mean() > 2


def test_grey_stays_grey_and_finer_quality_loses_less() -> None:
    x = photo(channels=1)
    errors = [float((Jpeg(quality)(x) - x).abs().mean()) for quality in (20, 75, 98)]
    assert Jpeg(75)(x).shape == x.shape
    assert errors == sorted(errors, reverse=True)


def test_bits_of_noise_and_of_nothing() -> None:
    noise = torch.randint(0, 256, (3, 3, 32, 32), generator=torch.Generator().manual_seed(0)) / 255
    random = 8 * noise[0].numel()  # the entropy of such noise: no lossless code is shorter
    found = codec.png_bits(noise)
    assert found.dtype == torch.float64
    assert ((found >= random) & (found < 1.05 * random)).all()
    assert (codec.png_bits(torch.full((2, 3, 32, 32), 0.5)) < 0.05 * random).all()


def colours(chroma: Tensor) -> Tensor:
    """Pictures of luma 0.5 and the given Cb = Cr, (n, height, width)."""
    red, blue = 0.5 + 1.402 * chroma, 0.5 + 1.772 * chroma
    return torch.stack([red, (0.5 - 0.299 * red - 0.114 * blue) / 0.587, blue], 1)


def test_fine_chroma_is_the_share_within_blocks() -> None:
    i, j = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    fine, coarse = 1.0 - 2 * ((i + j) % 2), 1.0 - 2 * (i // 2 % 2)
    cases = {0.0: coarse, 1.0: fine, 0.6: 0.8 * coarse + 0.6 * fine}
    for share, pattern in cases.items():
        assert float(codec.chroma_detail(colours(0.05 * pattern[None]))) == pytest.approx(share, abs=1e-5)
    assert float(codec.chroma_detail(photo(1).expand(-1, 3, -1, -1)).max()) == 0
    odd = colours(0.05 * torch.nn.functional.pad(fine, (0, 1, 0, 1), value=9.0)[None])
    assert float(codec.chroma_detail(odd)) == pytest.approx(1, abs=1e-5)


def test_halved_chroma_has_less_of_it() -> None:
    x = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    before, after = (codec.chroma_detail(p) for p in (x, Jpeg(95)(x)))
    assert (after < 0.75 * before).all()
    assert np.isclose(codec.chroma_detail(Jpeg(95, "4:4:4")(x)), before, rtol=0.1).all()
