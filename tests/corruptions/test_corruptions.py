"""The table of corruptions, and what all of them keep to."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from corruption_pictures import COLOUR, GREY, corrupt, smooth_pictures
from torch import Tensor

from robustgen.corruptions import CORRUPTIONS, TABLES, Corruption, refusal
from robustgen.errors import UnsupportedError, UserError

ANY_SIZE = ["gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise", "brightness", "contrast"]


def pictures(name: str) -> list[Tensor]:
    """Pictures that can have it, colour and grey."""
    kind = CORRUPTIONS[name]
    photos = smooth_pictures(12)
    grey = [] if kind.needs_colour else [photos[:, :1]] if kind.min_side > 8 else [GREY]
    return [photos, *grey]


def test_there_are_the_19_of_cifar_10_c_at_5_severities() -> None:
    assert len(CORRUPTIONS) == 19
    for table in TABLES.values():
        assert list(table) == list(CORRUPTIONS)
        assert {len(constants) for constants in table.values()} == {5}


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_sample_is_the_same_bits_in_any_batch(name: str) -> None:
    for x in pictures(name):
        whole = corrupt(name, 3, x)
        for rows in (torch.tensor([11, 0, 4]), torch.tensor([5]), torch.arange(12).flip(0)):
            assert torch.equal(corrupt(name, 3, x[rows], rows), whole[rows])
        assert corrupt(name, 3, x[:0]).shape == x[:0].shape


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("severity", [1, 5])
def test_what_comes_out_is_an_8_bit_picture(name: str, severity: int) -> None:
    for x in pictures(name):
        out = corrupt(name, severity, x)
        assert out.dtype == torch.float32
        assert out.shape == x.shape
        assert torch.equal(out, (out * 255).round() / 255)
        assert float(out.min()) >= 0
        assert float(out.max()) <= 1
        assert not torch.equal(out, x)


@pytest.mark.parametrize("name", [name for name, kind in CORRUPTIONS.items() if not kind.needs_colour])
def test_the_smallest_pictures_are_of_28_pixels_or_of_any_size(name: str) -> None:
    side = CORRUPTIONS[name].min_side
    assert side in (1, 28)
    x = smooth_pictures(2, 28)[:, :1]
    assert corrupt(name, 5, x).shape == x.shape
    assert (refusal(name, (1, 27, 27)) is None) == (name in ANY_SIZE)


@pytest.mark.parametrize("name", ANY_SIZE)
def test_severity_is_monotone(name: str) -> None:
    x = 0.2 + 0.6 * COLOUR
    change = [float((corrupt(name, severity, x) - x).pow(2).mean()) for severity in (1, 2, 3, 4, 5)]
    assert change == sorted(change)
    assert change[0] < change[-1] / 4


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
    assert "at least 28x28" in str(small["fog"])
    assert "colour" in str(small["saturate"])
    assert refusal("saturate", (3, 8, 8)) is None
    assert "channels" in str(refusal("contrast", (4, 32, 32)))
    with pytest.raises(UnsupportedError, match="at least 28x28") as error:
        corrupt("fog", 1, GREY)
    assert "gaussian_noise" in str(error.value)
    with pytest.raises(UserError, match="severity"):
        Corruption("fog", 6)
    with pytest.raises(UserError, match="no corruption named"):
        Corruption("fogg", 1)


def test_pictures_larger_than_a_photograph_of_frost_are_refused() -> None:
    assert refusal("frost", (3, 63, 105)) is None
    for shape in ((3, 64, 64), (3, 63, 113)):
        assert "photographs of frost" in str(refusal("frost", shape))
    assert refusal("imagenet-constants:frost", (3, 224, 224)) is None
    largest = torch.rand(20, 3, 63, 105)  # 20 draws have the smallest of five photographs
    assert corrupt("frost", 2, largest).shape == largest.shape


def test_what_a_machine_lacks_is_a_refusal_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal("frost", (3, 32, 32)) is None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name, needs in (("frost", "photographs"), ("spatter", "OpenCV")):
        assert needs in str(refusal(name, (3, 32, 32)))
        assert "pip install" in str(refusal(name, (3, 32, 32)))
        with pytest.raises(UnsupportedError, match=needs):
            corrupt(name, 1, smooth_pictures(1))
    assert refusal("fog", (3, 32, 32)) is None
