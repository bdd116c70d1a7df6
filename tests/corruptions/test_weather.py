"""Snow, frost, fog and spatter: their parts beside plain loops, OpenCV and imagecorruptions' pictures."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from corruption_pictures import corrupt, levels, smooth_pictures

from robustgen.corruptions import weather
from robustgen.corruptions.constants import CIFAR
from robustgen.draws import Draws

PHOTOS = smooth_pictures()


def test_plasma_is_the_diamond_square_algorithm_point_by_point() -> None:
    side, decay = 16, 1.75
    numbers = Draws(0, "plasma", torch.tensor([3]))
    ours = weather.plasma(Draws(0, "plasma", torch.tensor([3])), side, decay)[0].numpy()
    clouds = np.zeros((side, side))
    step, wobble = side, 100.0
    while step >= 2:
        half = step // 2
        places = range(0, side, step)
        noise = [2 * numbers.uniform(side // step, side // step)[0].double().numpy() - 1 for _ in range(3)]

        def at(y: int, x: int, clouds: np.ndarray = clouds) -> float:
            return clouds[y % side, x % side]

        for i, y in enumerate(places):  # squares
            for j, x in enumerate(places):
                around = at(y, x) + at(y + step, x) + at(y, x + step) + at(y + step, x + step)
                clouds[y + half, x + half] = around / 4 + wobble**2 * noise[0][i, j]
        upper = clouds.copy()
        for i, y in enumerate(places):  # diamonds
            for j, x in enumerate(places):
                around = at(y, x) + at(y, x + step) + at(y + half, x + half) + at(y - half, x + half)
                upper[y, x + half] = around / 4 + wobble**2 * noise[1][i, j]
                around = at(y, x) + at(y + step, x) + at(y + half, x + half) + at(y + half, x - half)
                upper[y + half, x] = around / 4 + wobble**2 * noise[2][i, j]
        clouds = upper
        step, wobble = half, wobble / decay
    clouds -= clouds.min()
    np.testing.assert_allclose(ours, clouds / clouds.max(), atol=1e-9)


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_fog_lifts_what_is_dark_and_keeps_the_highest_value(severity: int) -> None:
    black, white = torch.zeros(40, 3, 32, 32), torch.ones(40, 3, 32, 32)
    strength, _ = CIFAR["fog"][severity - 1]
    assert torch.equal(corrupt("fog", severity, black), black)  # its highest value is 0
    fogged = corrupt("fog", severity, white)
    assert float(fogged.amax((1, 2, 3)).min()) > 0.995
    # 1 + strength * cloud over 1 + strength, the cloud's least value being 0
    lowest = fogged.amin((1, 2, 3))
    torch.testing.assert_close(lowest, torch.full_like(lowest, 1 / (1 + strength)), atol=1 / 255, rtol=0)


def test_frost_takes_a_fifth_of_the_first_five_photographs() -> None:
    folder = weather.frost_folder()
    assert folder is not None
    for name, ours in zip(weather.FROSTS, weather.frost_pictures(), strict=True):
        expected = cv2.resize(cv2.imread(str(folder / name)), (0, 0), fx=0.2, fy=0.2)[..., ::-1]
        height, width = expected.shape[:2]
        found = (ours * 255).round().numpy().transpose(1, 2, 0)
        assert abs(found.shape[0] - height) <= 1
        rows, columns = min(height, found.shape[0]), min(width, found.shape[1])
        difference = np.abs(found[:rows, :columns] - expected[:rows, :columns])
        assert np.median(difference) == 0
        assert difference.mean() < 2


@pytest.mark.parametrize("severity", [1, 5])
def test_frost_is_a_part_of_a_photograph_over_the_picture(severity: int) -> None:
    kept, weight, _ = CIFAR["frost"][severity - 1]
    grey = torch.full((30, 3, 32, 32), 51 / 255)
    out = corrupt("frost", severity, grey)
    layers = (out + 0.5 / 255 - kept * 51 / 255) / weight
    pictures = [p.unfold(1, 32, 1).unfold(2, 32, 1) for p in weather.frost_pictures()]
    from_which = set()
    for layer in layers:
        unclipped = out.max() < 1
        assert unclipped
        for number, windows in enumerate(pictures):
            near = (windows[:, :, :, 0, 0].permute(1, 2, 0) - layer[:, 0, 0]).abs().amax(2) < 3 / 255
            if any(
                float((windows[:, y, x] - layer).abs().max()) < 0.7 / 255 / weight
                for y, x in near.nonzero().tolist()
            ):
                from_which.add(number)
                break
        else:
            raise AssertionError("not a part of any photograph")
    assert from_which == {0, 1, 3, 4}  # the second and third photograph are one
    assert torch.equal(*weather.frost_pictures()[1:3])


def test_snow_whitens_and_its_flakes_are_the_same_turned_half_round() -> None:
    black = torch.zeros(60, 1, 32, 32)
    for severity in (1, 3, 5):
        kept = CIFAR["snow"][severity - 1][6]
        flakes = corrupt("snow", severity, black) - (1 - kept) * 0.5
        # the level is cut down, the layer was rounded
        torch.testing.assert_close(flakes, flakes.rot90(2, (2, 3)), atol=1.01 / 255, rtol=0)
        assert abs(float(flakes.min())) < 1.01 / 255
        assert float(flakes.amax((1, 2, 3)).median()) > 0.1


@pytest.mark.parametrize("severity", [1, 2, 3])
def test_water_is_what_opencv_makes_of_the_liquid(severity: int) -> None:
    mean, spread, sigma, threshold, strength, _ = CIFAR["spatter"][severity - 1]
    numbers = Draws(0, f"spatter-{severity}", torch.arange(len(PHOTOS))).normal(32, 32).double().numpy()
    for number, picture in enumerate(levels(PHOTOS)):
        liquid = cv2.GaussianBlur(
            mean + spread * numbers[number], (0, 0), sigma, borderType=cv2.BORDER_REPLICATE
        )
        covered = np.where(liquid < threshold, 0, liquid) > 0
        out = levels(corrupt("spatter", severity, PHOTOS))[number].astype(int)
        changed = np.abs(out - picture).max(2) > 1
        assert not (changed & ~cv2.dilate(covered.astype(np.uint8), np.ones((3, 3))).astype(bool)).any()
        lift = (out - picture)[changed]
        assert (lift >= -1).all()
        assert lift.max() <= 255 * strength * 238 / 255 + 1


@pytest.mark.parametrize("severity", [4, 5])
def test_mud_is_brown_where_it_covers_and_nothing_elsewhere(severity: int) -> None:
    white = torch.ones(40, 3, 32, 32)
    out = corrupt("spatter", severity, white)
    muddy = (out < 0.99).any(1)
    assert 0.002 < float(muddy.double().mean()) < 0.5
    deepest = out.permute(0, 2, 3, 1)[muddy].amin(0) * 255
    assert (deepest - torch.tensor([63.0, 42.0, 20.0])).abs().max() <= 2
    # a fifth at least shines through nowhere: what covers less than four fifths is not there
    assert float(out.amin(1)[muddy].max()) <= 1 - 0.8 * (1 - 20 / 255) + 1 / 255


def test_no_drop_at_all_leaves_the_picture() -> None:
    assert not weather.water(np.zeros((32, 32), np.uint8)).any()
