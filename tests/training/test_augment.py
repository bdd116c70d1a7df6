import pytest
import torch

from robustgen.training.augment import augment
from robustgen.training.recipe import Augment


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def point(n: int) -> torch.Tensor:
    x = torch.zeros(n, 2, 9, 9)
    x[:, :, 4, 4] = 1
    return x


def test_nothing_asked_nothing_changed():
    x = torch.rand(4, 1, 8, 8)
    assert torch.equal(augment(x, Augment(), generator()), x)


def test_shifts_reach_every_place_and_move_channels_together():
    x = augment(point(2000), Augment(shift=2), generator())
    assert torch.equal(x.flatten(1).sum(1), torch.full((2000,), 2.0))
    assert torch.equal(x[:, 0], x[:, 1])
    shares = x[:, 0].mean(0)[2:7, 2:7]
    assert float(shares.sum()) == 1.0  # no farther than 2 pixels
    assert torch.all((shares - 1 / 25).abs() < 0.02)


def test_subpixel_shift_keeps_the_mass_and_the_reach():
    x = augment(point(500), Augment(subpixel=1.0), generator())
    torch.testing.assert_close(x.flatten(1).sum(1), torch.full((500,), 2.0))
    assert float(x[:, :, :3].sum()) == 0  # rows 3 to 5 only
    centres = (x[:, 0].sum(2) * torch.arange(9)).sum(1)
    assert float(centres.min()) < 3.1
    assert float(centres.max()) > 4.9


def test_flips_half_of_the_pictures():
    x = torch.arange(9.0).view(1, 1, 1, 9).expand(1000, 1, 2, 9) / 9
    flipped = augment(x, Augment(flip=True), generator())[:, 0, 0, 0] > 0.5
    assert 400 < int(flipped.sum()) < 600


def test_rotation_and_scale_leave_the_centre_and_the_range():
    x = augment(point(100), Augment(rotate=30, scale=0.3), generator())
    assert float(x.min()) >= 0
    assert float(x.max()) <= 1
    assert bool((x[:, :, 4, 4] > 0.9).all())


def test_rotation_turns_pictures_that_are_not_square_by_its_angle():
    for height, width in ((33, 33), (17, 65), (65, 17)):
        x = torch.zeros(20, 1, height, width)
        rows, columns = torch.meshgrid(
            torch.arange(height) - height // 2, torch.arange(width) - width // 2, indexing="ij"
        )
        x[:, :, height // 2, width // 2 - 6 : width // 2 + 7] = 1
        x = augment(x, Augment(rotate=30), generator())[:, 0]
        # the main axis of what was a horizontal line, from its second moments
        xx, yy, xy = ((x * m).sum((1, 2)) for m in (columns**2, rows**2, rows * columns))
        found = torch.rad2deg(torch.atan2(2 * xy, xx - yy) / 2)
        drawn = (torch.rand(4, 20, generator=generator()) * 2 - 1)[0] * 30
        assert torch.all((found + drawn).abs() < 1)


@pytest.mark.parametrize("side", [1, 2, 3, 4, 20])
def test_cutout_greys_one_square_around_any_pixel(side):
    x = torch.zeros(4000, 2, 6, 9)
    grey = augment(x, Augment(cutout=side), generator())
    assert torch.equal(grey[:, 0], grey[:, 1])
    assert set(grey.unique().tolist()) <= {0.0, 0.5}
    cut = grey[:, 0] > 0
    rows, columns = cut.any(2), cut.any(1)
    assert torch.equal(cut, rows[:, :, None] & columns[:, None, :])
    # the share of middles, each as likely, whose square covers a pixel of the first column, or a middle one
    for line, size in ((rows, 6), (columns, 9)):
        for place in (0, size // 2):
            covering = sum(-(side // 2) <= place - middle < side - side // 2 for middle in range(size))
            assert abs(float(line[:, place].float().mean()) - covering / size) < 0.03
