"""Warps and compression beside Pillow and OpenCV."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
import torch
from corruption_pictures import corrupt, levels, smooth_pictures
from PIL import Image
from scipy.ndimage import map_coordinates

from robustgen.corruptions.constants import CIFAR
from robustgen.corruptions.digital import affine, beyond_mirrored, beyond_reflected, bilinear, pixelate
from robustgen.draws import Draws

PHOTOS = smooth_pictures()


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_jpeg_is_pillows_at_that_quality(severity: int) -> None:
    for ours, picture in zip(
        levels(corrupt("jpeg_compression", severity, PHOTOS)), levels(PHOTOS), strict=True
    ):
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "JPEG", quality=(80, 65, 58, 50, 40)[severity - 1])
        np.testing.assert_array_equal(ours, np.asarray(Image.open(file)))


@pytest.mark.parametrize(("severity", "side"), [(1, 30), (2, 28), (3, 27), (4, 24), (5, 20)])
def test_pixelate_is_pillows_box_down_and_up(severity: int, side: int) -> None:
    for ours, picture in zip(levels(corrupt("pixelate", severity, PHOTOS)), levels(PHOTOS), strict=True):
        small = Image.fromarray(picture).resize((side, side), Image.Resampling.BOX)
        np.testing.assert_array_equal(ours, np.asarray(small.resize((32, 32), Image.Resampling.BOX)))


def test_an_affine_map_is_opencvs() -> None:
    moves = 2 * Draws(0, "affine", torch.arange(len(PHOTOS))).uniform(3, 2).double().numpy() - 1
    ours = affine(PHOTOS.double().numpy(), 3 * moves)
    before = np.float32([[26, 26], [26, 6], [6, 6]])
    for found, picture, move in zip(ours, PHOTOS.numpy(), 3 * moves, strict=True):
        matrix = cv2.getAffineTransform(before, before + move.astype(np.float32))
        expected = cv2.warpAffine(
            picture.transpose(1, 2, 0), matrix, (32, 32), borderMode=cv2.BORDER_REFLECT_101
        )
        # OpenCV knows places to 1/32 of a pixel only
        assert np.abs(found.transpose(1, 2, 0) - expected).max() < 0.02
        assert np.abs(found.transpose(1, 2, 0) - expected).mean() < 0.002


def test_elastic_shifts_are_as_long_as_their_constants_say() -> None:
    """Of a ramp, whose value says where a pixel came from."""
    ramp = torch.linspace(0.2, 0.8, 32).expand(200, 3, 32, 32).mul(255).round() / 255
    for severity in (1, 5):
        strength, sigma, move = (32 * share for share in CIFAR["elastic_transform"][severity - 1])
        shift = (corrupt("elastic_transform", severity, ramp) - ramp)[:, 0, 8:24, 8:24] / 0.6 * 31
        shift = shift + 0.5 / 255 / 0.6 * 31  # levels are cut down
        # the middle moves with the mean of two corners of the square, each uniform in [-move, move]
        middle = move * (2 / 3 / 4) ** 0.5
        # white noise of variance 1/3, smoothed by a normal kernel of sigma in two dimensions
        local = strength * (1 / 3 / (4 * np.pi * max(sigma, 0.3) ** 2)) ** 0.5
        found = float(shift[:, 7:9, 7:9].double().pow(2).mean().sqrt())
        expected = (middle**2 + local**2) ** 0.5
        assert abs(found - expected) < 0.2 * expected, (found, expected)


def test_severity_one_is_an_affine_map_alone() -> None:
    assert CIFAR["elastic_transform"][0][0] == 0


@pytest.mark.parametrize(("beyond", "mode"), [(beyond_reflected, "reflect"), (beyond_mirrored, "mirror")])
def test_reading_between_pixels_is_scipys(beyond, mode: str) -> None:
    generator = torch.Generator().manual_seed(0)
    rows, columns = (40 * torch.rand(6, 32, 32, generator=generator, dtype=torch.float64) - 4 for _ in "yx")
    ours = bilinear(PHOTOS.double(), rows, columns, beyond)
    for found, picture, place in zip(ours, PHOTOS.double(), torch.stack([rows, columns], 1), strict=True):
        for channel, expected in zip(found, picture, strict=True):
            read = map_coordinates(expected.numpy(), place.numpy(), order=1, mode=mode)
            np.testing.assert_allclose(channel, read, atol=1e-12)


@pytest.mark.parametrize("scale", [0.95, 0.75, 0.6, 0.5, 0.3, 0.25])
def test_boxes_are_pillows_at_any_scale_and_shape(scale: float) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (40, 33), dtype=np.uint8)
    found = pixelate(torch.from_numpy(picture / 255.0)[None, None], scale, Draws(0, "none", torch.arange(1)))
    small = Image.fromarray(picture).resize((int(33 * scale), int(40 * scale)), Image.Resampling.BOX)
    expected = np.asarray(small.resize((33, 40), Image.Resampling.BOX))
    np.testing.assert_array_equal(np.rint(found[0, 0].numpy() * 255), expected)
