"""Noise and colour: moments, distributions, and scikit-image's HSV."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from corruption_pictures import COLOUR, GREY, corrupt, cut, levels
from scipy.stats import poisson
from skimage.color import hsv2rgb, rgb2hsv

from robustgen.corruptions import pixels
from robustgen.corruptions.constants import CIFAR
from robustgen.draws import Draws


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_moments_of_the_noises(severity: int) -> None:
    """Of a flat grey picture, within 5 standard errors; cutting takes half a level on average."""
    level, n = 0.4, 12 * 3 * 32 * 32
    x = torch.full((12, 3, 32, 32), level)
    sigmas = {
        "gaussian_noise": CIFAR["gaussian_noise"][severity - 1],
        "shot_noise": (level / CIFAR["shot_noise"][severity - 1]) ** 0.5,
        "speckle_noise": level * CIFAR["speckle_noise"][severity - 1],
    }
    for name, sigma in sigmas.items():
        noise = corrupt(name, severity, x).double() - level + 0.5 / 255
        # Counts of photons are not spread evenly between levels: the half level is only about half.
        slack = 0.1 / 255
        assert abs(float(noise.mean())) < 5 * sigma / n**0.5 + slack, name
        cutting = 1 / 255 / 12**0.5
        expected = (sigma**2 + cutting**2) ** 0.5
        assert abs(float(noise.std()) - expected) < 5 * sigma / (2 * n) ** 0.5 + 0.02 * sigma, name
    amount = CIFAR["impulse_noise"][severity - 1]
    out = corrupt("impulse_noise", severity, x)
    for value in (0.0, 1.0):
        share = float((out == value).double().mean())
        assert abs(share - amount / 2) < 5 * (amount / 2 / n) ** 0.5


def test_shot_noise_has_the_poisson_distribution() -> None:
    from scipy import stats

    photons = CIFAR["shot_noise"][4]
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
    shift = CIFAR["brightness"][severity - 1]
    factor, more = CIFAR["saturate"][severity - 1]
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
    expected = cut((pixels - mean) * CIFAR["contrast"][severity - 1] + mean)
    difference = np.abs(levels(corrupt("contrast", severity, COLOUR)).astype(int) - expected)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-3


def test_brightness_of_grey_is_that_of_grey_colour() -> None:
    grey = corrupt("brightness", 4, GREY)
    assert torch.equal(corrupt("brightness", 4, GREY.expand(-1, 3, -1, -1)), grey.expand(-1, 3, -1, -1))


@pytest.mark.parametrize("x", [COLOUR, GREY, torch.rand(12, 3, 9, 9)])
@pytest.mark.parametrize("photons", [3, 60, 500])
def test_shot_noise_is_the_quantile_of_each_draw(x: torch.Tensor, photons: int) -> None:
    """Of 8-bit pictures by tables, of others one by one."""
    draws = Draws(0, "shot", torch.arange(len(x)))
    u = Draws(0, "shot", torch.arange(len(x))).uniform(*x.shape[1:]).double().numpy() + 2.0**-25
    expected = poisson.ppf(u, x.double().numpy() * photons)
    found = pixels.shot_noise(x.double(), photons, draws).numpy() * photons
    np.testing.assert_allclose(found, expected, atol=1e-9)


@pytest.mark.parametrize("sigma", [0.04, 0.38, 0.6])
@pytest.mark.parametrize("name", ["gaussian_noise", "speckle_noise"])
def test_levels_of_noise_are_those_of_the_plain_formula(name: str, sigma: float) -> None:
    x = torch.rand(40, 3, 32, 32, generator=torch.Generator().manual_seed(3)).double()
    x[:20] = (x[:20] * 255).round() / 255
    n = Draws(0, "noise", torch.arange(40)).normal(3, 32, 32).double()
    plain = x + sigma * n * (1 if name == "gaussian_noise" else x)
    found = getattr(pixels, name)(x, sigma, Draws(0, "noise", torch.arange(40)))
    for made in (plain, found):
        made.clamp_(0, 1).mul_(255).add_(1e-4).floor_()
    assert torch.equal(found, plain)
