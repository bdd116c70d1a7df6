"""Blurs beside OpenCV, scikit-image and imagecorruptions' own loops."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch
from corruption_pictures import COLOUR, corrupt, cut, levels, smooth_pictures
from scipy.ndimage import zoom as enlarge
from skimage.filters import gaussian

from robustgen.corruptions import blur
from robustgen.corruptions.constants import CIFAR, IMAGENET
from robustgen.draws import Draws

PHOTOS = smooth_pictures()


def constants(name: str, severity: int):
    return CIFAR[name][severity - 1]


def same(ours: np.ndarray, expected: np.ndarray) -> None:
    """8-bit pictures that differ by a level at most, and hardly anywhere: at whole levels the last bits of
    other arithmetic decide."""
    difference = np.abs(ours.astype(int) - expected)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 5e-3


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_gaussian_blur_is_scikit_images(severity: int) -> None:
    sigma = constants("gaussian_blur", severity)
    ours = blur.gaussian_blur(PHOTOS.double(), sigma, Draws(0, "none", torch.arange(6)))
    for found, one in zip(ours.numpy(), PHOTOS.double().numpy(), strict=True):
        np.testing.assert_allclose(found, gaussian(one, sigma=sigma, channel_axis=0), atol=1e-12)


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_defocus_blur_is_opencvs_filter_with_its_own_kernel(severity: int) -> None:
    radius, alias = constants("defocus_blur", severity)
    side = np.arange(-8, 9)
    kernel = (side[:, None] ** 2 + side[None] ** 2 <= radius**2).astype(np.float32)
    kernel = cv2.GaussianBlur(kernel / kernel.sum(), ksize=(3, 3), sigmaX=alias)
    ours = blur.defocus_blur(PHOTOS.double(), (radius, alias), Draws(0, "none", torch.arange(6)))
    for found, one in zip(ours.numpy(), PHOTOS.double().numpy(), strict=True):
        expected = cv2.filter2D(one.transpose(1, 2, 0), -1, kernel)
        exact = found.transpose(1, 2, 0) - blur.FFT_ERROR / 255
        np.testing.assert_allclose(exact, expected, atol=1e-6)  # the kernel is float32


@pytest.mark.parametrize("degrees", [-45, -20.5, 0, 33, 45, -90, -135])
def test_motion_blur_of_a_dot_is_half_a_normal_kernel_along_its_line(degrees: float) -> None:
    radius, sigma = 6, 2.0
    dot = torch.zeros(1, 1, 32, 32, dtype=torch.float64)
    dot[0, 0, 16, 16] = 1
    out = blur.directional_blur(dot, radius, sigma, torch.tensor([degrees]).double())[0, 0].numpy()
    weights = np.exp(-0.5 * (np.arange(13) / sigma) ** 2)
    weights /= weights.sum()
    expected = np.zeros((32, 32))
    for i, weight in enumerate(weights):
        # a pixel gathers from the direction of the angle, so the dot smears the other way
        x = 16 - math.ceil(i * math.cos(math.radians(degrees)) - 0.5)
        y = 16 - math.ceil(i * math.sin(math.radians(degrees)) - 0.5)
        expected[y, x] += weight
    np.testing.assert_allclose(out, expected, atol=0.5 / 255 + 1e-9)
    assert (out > 0).sum() >= 5


def test_motion_blur_draws_angles_up_to_45_degrees_and_goes_on_at_the_border() -> None:
    drawn = blur.angles(Draws(0, "a", torch.arange(2000)), -45, 45)
    assert float(drawn.min()) < -44
    assert float(drawn.max()) > 44
    assert abs(float(drawn.mean())) < 5 * 90 / 12**0.5 / 2000**0.5
    flat = torch.full((3, 3, 32, 32), 100 / 255)
    assert torch.equal(corrupt("motion_blur", 5, flat), flat)


@pytest.mark.parametrize(("severity", "zooms"), [(1, 7), (2, 12), (3, 16), (4, 21), (5, 26)])
def test_zoom_blur_takes_as_many_zooms_as_the_original(severity: int, zooms: int) -> None:
    assert len(np.arange(1, *constants("zoom_blur", severity))) == zooms


@pytest.mark.parametrize("factor", [1.0, 1.05, 1.25, 1.75, 2.25])
def test_a_zoom_keeps_the_middle_and_interpolates_linearly(factor: float) -> None:
    ramp = torch.linspace(0, 1, 32, dtype=torch.float64).expand(1, 1, 32, 32).numpy()
    out = blur.zoom(ramp, factor)
    assert out.shape == ramp.shape
    rows = np.ptp(out, axis=2)
    np.testing.assert_allclose(rows, 0, atol=1e-12)
    steps = np.diff(out[0, 0, 0])
    inner = math.ceil(32 / factor)
    np.testing.assert_allclose(steps, (inner - 1) / (round(inner * factor) - 1) / 31, atol=1e-9)
    assert abs(out.mean() - 0.5) <= 1 / 31  # a pixel off the middle at most


@pytest.mark.parametrize("severity", [1, 3, 5])
def test_glass_blur_copies_pixels_as_the_originals_loop_does(severity: int) -> None:
    sigma, _, passes = constants("glass_blur", severity)
    stream = Draws(0, f"glass_blur-{severity}", torch.arange(len(COLOUR)))
    moves = [(stream.uniform(2, 30, 30).numpy() * 2).astype(int) - 1 for _ in range(passes)]
    expected = []
    for number, picture in enumerate(levels(COLOUR)):
        x = np.uint8(gaussian(picture / 255.0, sigma=sigma, channel_axis=-1) * 255 + 1e-7)
        for move in moves:
            for h in range(31, 1, -1):
                for w in range(31, 1, -1):
                    dy, dx = move[number, :, h - 2, w - 2]
                    x[h, w], x[h + dy, w + dx] = x[h + dy, w + dx], x[h, w]  # a copy, by numpy's views
        expected.append(cut(gaussian(x / 255.0, sigma=sigma, channel_axis=-1)))
    ours = levels(corrupt("glass_blur", severity, COLOUR))
    same(ours, np.stack(expected))
    assert (ours != levels(COLOUR)).mean() > 0.5


@pytest.mark.parametrize("table", [CIFAR, IMAGENET])
def test_zoom_blur_is_the_mean_of_scipys_zooms(table) -> None:
    largest, step = table["zoom_blur"][3]
    x = PHOTOS.double().numpy()
    factors = np.arange(1, largest, step)
    zooms = []
    for factor in factors:
        rows = math.ceil(32 / factor)
        first = (32 - rows) // 2
        middle = x[:, :, first : first + rows, first : first + rows]
        large = enlarge(middle, (1, 1, factor, factor), order=1)
        trim = (large.shape[2] - 32) // 2
        zooms.append(large[:, :, trim : trim + 32, trim : trim + 32])
    expected = (x + sum(zooms)) / (len(factors) + 1)
    found = blur.zoom_blur(PHOTOS.double(), (largest, step), Draws(0, "none", torch.arange(6)))
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("reach", [2, 3, 4])
def test_glass_blur_with_a_longer_reach_follows_copies_of_copies(reach: int) -> None:
    x = COLOUR[:2].double()
    stream = Draws(0, "glass", torch.arange(2))
    inner = 32 - 2 * reach
    moves = (stream.uniform(2, inner, inner).numpy() * 2 * reach).astype(int) - reach
    found = blur.glass_blur(x, (1e-3, reach, 1), Draws(0, "glass", torch.arange(2)))
    for out, picture, move in zip(found.numpy(), levels(COLOUR[:2]), moves, strict=True):
        loop = picture.copy()
        for h in range(32 - reach, reach, -1):
            for w in range(32 - reach, reach, -1):
                dy, dx = move[:, h - reach - 1, w - reach - 1]
                loop[h, w], loop[h + dy, w + dx] = loop[h + dy, w + dx], loop[h, w]
        np.testing.assert_array_equal(np.rint(out.transpose(1, 2, 0) * 255), loop)
