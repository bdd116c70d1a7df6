"""Noise levels, given as ``sigma``: a float for the whole batch, or a tensor of one level per image."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from robustgen.errors import UnsupportedError, UserError
from robustgen.types import ConditionalNoise, FixedNoise


def check_noise_level(sigma: float | Tensor, levels: ConditionalNoise) -> None:
    """Raise UnsupportedError unless every ``sigma`` lies within the noise levels of the training."""
    if isinstance(sigma, Tensor) and not sigma.numel():
        return  # an empty batch
    lowest, highest = (float(value) for value in torch.as_tensor(sigma).detach().aminmax())
    rounding = 1 + 1e-6  # sigma may be float32
    if not (lowest * rounding >= levels.low and highest <= levels.high * rounding):  # also false for NaN
        raise UnsupportedError(
            "sigma lies outside the noise levels that the model was trained on",
            expected=f"from {levels.low:g} to {levels.high:g}",
            got=f"{lowest:g} to {highest:g}",
            remedy="leave sigma out for a picture without noise",
        )


def trained_levels(low: float, high: float) -> ConditionalNoise:
    """The range of noise levels to train on; UserError unless 0 < low < high."""
    if not 0 < low < high < math.inf:
        raise UserError(
            "low and high are not a range of noise levels to train on",
            expected="0 < low < high", got=f"low={low}, high={high}",
        )  # fmt: skip
    return ConditionalNoise(low, high)


def trained_noise(sigma: float) -> FixedNoise:
    """The single noise level to train on; UserError unless it is 0 or more."""
    if not 0 <= sigma < math.inf:
        raise UserError(
            "sigma is not a noise level to train on", expected="a number of 0 or more", got=f"sigma={sigma}"
        )
    return FixedNoise(sigma)


def per_sample(sigma: float | Tensor, x: Tensor) -> Tensor:
    """``sigma`` expanded to one level per image, (batch,), with the dtype and device of ``x``."""
    return torch.as_tensor(sigma, dtype=x.dtype, device=x.device).expand(len(x))
