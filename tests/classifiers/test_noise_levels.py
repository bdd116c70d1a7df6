"""Which noise levels a model takes, and how they are given."""

import pytest
import torch

from robustgen.classifiers.noise_levels import check_noise_level, per_sample, trained_levels, trained_noise
from robustgen.errors import UnsupportedError, UserError
from robustgen.types import ConditionalNoise


def test_one_level_serves_every_picture():
    x = torch.rand(3, 1, 2, 2, dtype=torch.float64)
    assert per_sample(0.5, x).tolist() == [0.5] * 3
    assert per_sample(torch.tensor([1.0, 2.0, 3.0]), x).dtype == torch.float64


def test_sigma_is_checked_up_to_the_rounding_of_float32():
    levels = ConditionalNoise(0.1, 1.0)
    check_noise_level(torch.tensor([0.1, 1.0]), levels)
    check_noise_level(torch.empty(0), levels)
    for sigma in (0.09, 1.01, float("nan"), torch.tensor([0.5, 2.0])):
        with pytest.raises(UnsupportedError, match="outside the noise levels"):
            check_noise_level(sigma, levels)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (1.0, 0.5), (0.1, float("inf"))])
def test_levels_to_train_on_are_positive_and_rising(low, high):
    with pytest.raises(UserError, match="0 < low < high"):
        trained_levels(low, high)


def test_a_level_to_train_on_is_not_negative():
    assert trained_noise(0.0).sigma == 0
    with pytest.raises(UserError, match="noise level"):
        trained_noise(-1.0)
