from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.color import hsv2rgb, rgb2hsv
from torch import Tensor

from robustgen.classifiers.base import Classifier
from robustgen.corruptions import CORRUPTIONS, Corruption, refusal
from robustgen.draws import Draws
from robustgen.errors import UnsupportedError, UserError

BUILT = [name for name, kind in CORRUPTIONS.items() if kind.formula]
ANY_SIZE = ["gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise", "brightness", "contrast"]
# 8-bit pictures, as the original takes them
COLOUR = torch.randint(0, 256, (12, 3, 32, 32), generator=torch.Generator().manual_seed(0)).float() / 255
GREY = torch.randint(0, 17, (12, 1, 8, 8), generator=torch.Generator().manual_seed(1)).float() / 16


def corrupt(name: str, severity: int, x: Tensor, ids: Tensor | None = None) -> Tensor:
    ids = torch.arange(len(x)) if ids is None else ids
    y = torch.zeros(len(x), dtype=torch.int64)
    return Corruption(name, severity)(Classifier(), x, y, Draws(0, f"{name}-{severity}", ids)).images


def levels(x: Tensor) -> np.ndarray:
    """8-bit levels, channels last, as the original's pictures."""
    return (x * 255).round().numpy().astype(np.uint8).transpose(0, 2, 3, 1)


def cut(x: np.ndarray) -> np.ndarray:
    """The original's last step."""
    return np.uint8(np.clip(x, 0, 1) * 255 + 1e-7)


def test_constants_are_those_of_make_cifar_c() -> None:
    assert {name: CORRUPTIONS[name].constants for name in BUILT} == {
        "gaussian_noise": (0.04, 0.06, 0.08, 0.09, 0.10),
        "shot_noise": (500, 250, 100, 75, 50),
        "impulse_noise": (0.01, 0.02, 0.03, 0.05, 0.07),
        "speckle_noise": (0.06, 0.1, 0.12, 0.16, 0.2),
        "brightness": (0.05, 0.1, 0.15, 0.2, 0.3),
        "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),
        "saturate": ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),
    }
    assert len(CORRUPTIONS) == 19


@pytest.mark.parametrize("name", BUILT)
def test_a_sample_is_the_same_bits_in_any_batch(name: str) -> None:
    x = COLOUR if name == "saturate" else GREY
    whole = corrupt(name, 3, x)
    for rows in (torch.tensor([11, 0, 4]), torch.tensor([5]), torch.arange(12).flip(0)):
        assert torch.equal(corrupt(name, 3, x[rows], rows), whole[rows])


@pytest.mark.parametrize("name", BUILT)
@pytest.mark.parametrize("severity", [1, 5])
def test_what_comes_out_is_an_8_bit_picture(name: str, severity: int) -> None:
    for x in (COLOUR,) if name == "saturate" else (COLOUR, GREY):
        out = corrupt(name, severity, x)
        assert out.dtype == torch.float32
        assert out.shape == x.shape
        assert torch.equal(out, (out * 255).round() / 255)
        assert float(out.min()) >= 0
        assert float(out.max()) <= 1
        assert not torch.equal(out, x)


@pytest.mark.parametrize("name", ANY_SIZE)
def test_severity_is_monotone(name: str) -> None:
    x = 0.2 + 0.6 * COLOUR
    change = [float((corrupt(name, severity, x) - x).pow(2).mean()) for severity in (1, 2, 3, 4, 5)]
    assert change == sorted(change)
    assert change[0] < change[-1] / 4


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_moments_of_the_noises(severity: int) -> None:
    """Of a flat grey picture, within 5 standard errors; cutting takes half a level on average."""
    level, n = 0.4, 12 * 3 * 32 * 32
    x = torch.full((12, 3, 32, 32), level)
    sigmas = {
        "gaussian_noise": CORRUPTIONS["gaussian_noise"].constants[severity - 1],
        "shot_noise": (level / CORRUPTIONS["shot_noise"].constants[severity - 1]) ** 0.5,
        "speckle_noise": level * CORRUPTIONS["speckle_noise"].constants[severity - 1],
    }
    for name, sigma in sigmas.items():
        noise = corrupt(name, severity, x).double() - level + 0.5 / 255
        # Counts of photons are not spread evenly between levels: the half level is only about half.
        slack = 0.1 / 255
        assert abs(float(noise.mean())) < 5 * sigma / n**0.5 + slack, name
        cutting = 1 / 255 / 12**0.5
        expected = (sigma**2 + cutting**2) ** 0.5
        assert abs(float(noise.std()) - expected) < 5 * sigma / (2 * n) ** 0.5 + 0.02 * sigma, name
    amount = CORRUPTIONS["impulse_noise"].constants[severity - 1]
    out = corrupt("impulse_noise", severity, x)
    for value in (0.0, 1.0):
        share = float((out == value).double().mean())
        assert abs(share - amount / 2) < 5 * (amount / 2 / n) ** 0.5


def test_shot_noise_has_the_poisson_distribution() -> None:
    from scipy import stats

    photons = CORRUPTIONS["shot_noise"].constants[4]
    x = torch.full((40, 1, 32, 32), 51 / 255)  # a mean of 10 photons
    out = corrupt("shot_noise", 5, x)
    assert len(torch.unique(out)) > 15
    counts = np.ceil(out.flatten().double().numpy() * photons - 1e-3)  # from the level back to the count
    for k in range(2, 20):
        expected = stats.poisson.cdf(k, 10)
        error = (expected * (1 - expected) / counts.size) ** 0.5
        assert abs((counts <= k).mean() - expected) < 5 * error


@pytest.mark.parametrize("severity", [1, 3, 5])
def test_brightness_and_saturate_are_scikit_images_hsv(severity: int) -> None:
    x = COLOUR.clone()
    x[0] = x[0, :1]  # a grey picture
    x[1, :, :4] = 0.0  # black rows
    pixels = levels(x) / 255.0
    shift = CORRUPTIONS["brightness"].constants[severity - 1]
    factor, more = CORRUPTIONS["saturate"].constants[severity - 1]
    for name in ("brightness", "saturate"):
        hsv = rgb2hsv(pixels)
        if name == "brightness":
            hsv[..., 2] = np.clip(hsv[..., 2] + shift, 0, 1)
        else:
            hsv[..., 1] = np.clip(hsv[..., 1] * factor + more, 0, 1)
        expected = cut(hsv2rgb(hsv))
        difference = np.abs(levels(corrupt(name, severity, x)).astype(int) - expected)
        # rounding errors of the way through HSV decide at whole levels
        assert difference.max() <= 1
        assert (difference > 0).mean() < 2e-3


@pytest.mark.parametrize("severity", [1, 3, 5])
def test_contrast_is_the_originals_formula(severity: int) -> None:
    pixels = levels(COLOUR) / 255.0
    mean = pixels.mean(axis=(1, 2), keepdims=True)
    expected = cut((pixels - mean) * CORRUPTIONS["contrast"].constants[severity - 1] + mean)
    difference = np.abs(levels(corrupt("contrast", severity, COLOUR)).astype(int) - expected)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-3


def test_brightness_of_grey_is_that_of_grey_colour() -> None:
    grey = corrupt("brightness", 4, GREY)
    assert torch.equal(corrupt("brightness", 4, GREY.expand(-1, 3, -1, -1)), grey.expand(-1, 3, -1, -1))


def test_an_8_bit_pixel_that_nothing_changes_keeps_its_level() -> None:
    ramp = (torch.arange(256).float() / 255).view(1, 1, 16, 16)
    out = corrupt("impulse_noise", 1, ramp)
    kept = (out != 0) & (out != 1)
    assert kept.sum() > 200
    assert torch.equal(out[kept], ramp[kept])


def test_refusals_come_with_a_reason() -> None:
    small = {name: refusal(name, (1, 8, 8)) for name in CORRUPTIONS}
    assert [name for name, reason in small.items() if reason is None] == sorted(
        ANY_SIZE, key=list(small).index
    )
    assert "at least 32x32" in str(small["fog"])
    assert "colour" in str(small["saturate"])
    assert refusal("saturate", (3, 8, 8)) is None
    assert "not built yet" in str(refusal("fog", (3, 32, 32)))
    assert "channels" in str(refusal("contrast", (4, 32, 32)))
    with pytest.raises(UnsupportedError, match="at least 32x32") as error:
        corrupt("fog", 1, GREY)
    assert "gaussian_noise" in str(error.value)
    with pytest.raises(UserError, match="severity"):
        Corruption("fog", 6)
    with pytest.raises(UserError, match="no corruption named"):
        Corruption("fogg", 1)
