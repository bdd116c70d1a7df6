"""Our code with ImageNet-C's constants beside imagecorruptions, and ImageNet-C through that package."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from corruption_pictures import corrupt, levels, smooth_pictures
from scipy.stats import ks_2samp

from robustgen import data
from robustgen.corruptions import CORRUPTIONS, Corruption, imagenet_c, refusal
from robustgen.errors import UnsupportedError, UserError

if imagenet_c.missing():
    pytest.skip(str(imagenet_c.missing()), allow_module_level=True)

from benchmarks.corruptions import OWN_DRAWS, agreement, ours

PHOTOS = data.load("photos", shape=(3, 64, 64)).images[::9][:6]
DISTRIBUTIONS = ("snow",)  # what it crops lies elsewhere, by the package's zoom
DETERMINISTIC = [name for name in CORRUPTIONS if name not in (*OWN_DRAWS, *DISTRIBUTIONS)]


@pytest.mark.parametrize("severity", [1, 3, 4, 5])
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_at_equal_draws_we_are_a_level_off_at_most(name: str, severity: int) -> None:
    found = agreement(name, severity, PHOTOS[:2]).difference
    assert found is not None
    # motion blur is rounded to 8 bits before it is cut down to them
    assert found <= (0.6 if name == "motion_blur" else 0.2)
    assert (ours(f"imagenet-constants:{name}", severity, PHOTOS[:2]) - PHOTOS[:2]).abs().mean() > 1 / 255


@pytest.mark.parametrize("severity", [1, 5])
@pytest.mark.parametrize("name", ["gaussian_noise", "speckle_noise", *OWN_DRAWS])
def test_noise_has_the_packages_mean_and_variance(name: str, severity: int) -> None:
    found = agreement(name, severity, torch.cat([PHOTOS] * 32))
    assert abs(found.mean) < 0.02
    assert abs(found.variance) < 0.02


def test_snow_falls_as_thick_as_the_packages() -> None:
    """The mean lift of a grey picture, over draws of both sides."""
    grey = torch.full((60, 3, 64, 64), 0.4)
    for severity in (2, 5):
        mine = ours("imagenet-constants:snow", severity, grey).mean((1, 2, 3)).numpy()
        theirs = corrupt("imagenet-c:snow", severity, grey).mean((1, 2, 3)).numpy()
        assert ks_2samp(mine, theirs).pvalue > 1e-3
        assert abs(mine.mean() - theirs.mean()) < 4 * (mine.std() + theirs.std()) / 60**0.5


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_package_draws_by_sample(name: str) -> None:
    whole = corrupt(f"imagenet-c:{name}", 3, PHOTOS)
    assert torch.equal(whole, (whole * 255).round() / 255)
    rows = torch.tensor([4, 1])
    assert torch.equal(corrupt(f"imagenet-c:{name}", 3, PHOTOS[rows], rows), whole[rows])
    assert not torch.equal(whole, PHOTOS)


def test_the_package_itself_says_the_same_where_nothing_is_drawn() -> None:
    from imagecorruptions import corrupt as package

    for name in ("contrast", "jpeg_compression", "defocus_blur", "saturate", "brightness"):
        for made, picture in zip(
            levels(corrupt(f"imagenet-c:{name}", 2, PHOTOS)), levels(PHOTOS), strict=True
        ):
            np.testing.assert_array_equal(made, package(picture, corruption_name=name, severity=2))


def test_the_package_is_left_as_it_is() -> None:
    from imagecorruptions import corruptions

    corrupt("imagenet-c:fog", 1, PHOTOS[:1])
    assert corruptions.np is np
    assert corruptions.gaussian.__module__.startswith("skimage")


def test_imagenet_c_is_for_large_colour_pictures_and_never_meant_by_the_plain_name() -> None:
    assert "64x64" in str(refusal("imagenet-c:fog", (3, 32, 32)))
    assert "3 channels" in str(refusal("imagenet-c:fog", (1, 64, 64)))
    with pytest.raises(UnsupportedError, match="64x64"):
        corrupt("imagenet-c:fog", 1, smooth_pictures(1))
    with pytest.raises(UserError, match="no corruption named"):
        Corruption("imagenet:fog", 1)
    assert Corruption("imagenet-c:fog", 2).name == "imagenet-c-fog-2"
    mild, hard = (ours(f"{prefix}fog", 5, PHOTOS) for prefix in ("", "imagenet-constants:"))
    assert (hard - PHOTOS).abs().mean() > 1.2 * (mild - PHOTOS).abs().mean()


def test_what_the_machine_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "imagecorruptions" in str(refusal("imagenet-c:fog", (3, 64, 64)))
