"""Common corruptions at five severities (Hendrycks and Dietterich 2019, arXiv:1903.12261).

Names, formulas and constants are those of CIFAR-10-C (hendrycks/robustness,
ImageNet-C/create_c/make_cifar_c.py), which are several times milder than ImageNet-C's. The published
files carry no seed, so what is made here is CIFAR-10-C-like, never CIFAR-10-C itself.

Everything is computed in float64 on the CPU, and random numbers belong to the sample, so a sample's
corrupted picture is the same bits in any batch and on any machine. As in the original, the outcome is
an 8-bit picture, and cut down to its level, not rounded: half a level darker on average.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustgen.classifiers.base import Classifier
from robustgen.draws import Draws
from robustgen.errors import UnsupportedError, UserError, unknown_name
from robustgen.perturb import Perturbation, Perturbed

SEVERITIES = (1, 2, 3, 4, 5)

# A float32 pixel is off its 8-bit level by up to 2e-5 levels, and cutting would take it to the level below.
_ROUNDING = 1e-4


# --- the formulas: x float64 (batch, channels, height, width) in [0, 1] -----------------------------------


def _gaussian_noise(x: Tensor, sigma: float, draws: Draws) -> Tensor:
    return x + sigma * draws.normal(*x.shape[1:]).double()


def _shot_noise(x: Tensor, photons: float, draws: Draws) -> Tensor:
    """Poisson(photons x) / photons, by the inverse distribution function of one uniform draw a pixel."""
    from scipy.stats import poisson

    # Draws lie on a grid of 2^-24 that holds 0, whose quantile would be -1: half a step up.
    u = draws.uniform(*x.shape[1:]).double().numpy() + 2.0**-25
    counts: np.ndarray = poisson.ppf(u, x.numpy() * photons)
    return torch.from_numpy(counts) / photons


def _impulse_noise(x: Tensor, amount: float, draws: Draws) -> Tensor:
    """Salt and pepper: this share of the values, channel by channel, becomes 0 or 1."""
    hit, salt = draws.uniform(*x.shape[1:]) < amount, draws.uniform(*x.shape[1:]) < 0.5
    return torch.where(hit, salt.double(), x)


def _speckle_noise(x: Tensor, sigma: float, draws: Draws) -> Tensor:
    return x + x * sigma * draws.normal(*x.shape[1:]).double()


def _contrast(x: Tensor, factor: float, draws: Draws) -> Tensor:
    """Towards the mean of each channel."""
    mean = x.mean((2, 3), keepdim=True)
    return (x - mean) * factor + mean


def _brightness(x: Tensor, shift: float, draws: Draws) -> Tensor:
    """V + shift in HSV, hue and saturation kept: every channel times the ratio of the two V.

    A grey picture has no hue, and its value is V. Black is grey, so it takes the new value.
    """
    value = x.amax(1, keepdim=True)
    shifted = (value + shift).clamp(0, 1)
    return torch.where(value > 0, x * (shifted / value.clamp_min(1e-12)), shifted)


def _saturate(x: Tensor, constants: tuple[float, float], draws: Draws) -> Tensor:
    """S times and plus a constant in HSV, hue and value kept.

    A channel is V (1 - S f), where the hue alone decides f. The hue of grey is 0 by convention, so
    that grey turns red where the constant that is added is not 0, as it does in the original.
    """
    factor, shift = constants
    value, low = x.amax(1, keepdim=True), x.amin(1, keepdim=True)
    spread = value - low
    red = torch.tensor([0.0, 1.0, 1.0], dtype=x.dtype).view(1, 3, 1, 1)
    f = torch.where(spread > 0, (value - x) / spread.clamp_min(1e-12), red)
    saturation = spread / value.clamp_min(1e-12) * factor + shift
    return value * (1 - saturation.clamp(0, 1) * f)


# --- the table --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """A type of corruption: its constant at each severity, its formula, and the pictures that it needs.

    ``formula`` is None where it is not built yet; ``side`` is the least height and width in pixels.
    """

    summary: str
    constants: tuple[Any, ...] = ()
    formula: Callable[[Tensor, Any, Draws], Tensor] | None = None
    side: int = 1
    colour: bool = False


# Kernels, warps and weather are given in pixels of a 32x32 picture; fewer pixels and they erase it.
CORRUPTIONS: dict[str, Kind] = {
    "gaussian_noise": Kind("normal noise", (0.04, 0.06, 0.08, 0.09, 0.10), _gaussian_noise),
    "shot_noise": Kind("Poisson noise of few photons", (500, 250, 100, 75, 50), _shot_noise),
    "impulse_noise": Kind("salt and pepper", (0.01, 0.02, 0.03, 0.05, 0.07), _impulse_noise),
    "defocus_blur": Kind("a disk-shaped blur", side=32),
    "glass_blur": Kind("pixels copied about, and blurred", side=32),
    "motion_blur": Kind("a blur along a line", side=32),
    "zoom_blur": Kind("the mean of several zooms", side=32),
    "snow": Kind("falling snow", side=32),
    "frost": Kind("photographed frost on the lens", side=32),
    "fog": Kind("plasma fog", side=32),
    "brightness": Kind("a higher value in HSV", (0.05, 0.1, 0.15, 0.2, 0.3), _brightness),
    "contrast": Kind("towards the mean", (0.75, 0.5, 0.4, 0.3, 0.15), _contrast),
    "elastic_transform": Kind("a smooth random warp", side=32),
    "pixelate": Kind("scaled down and up again", side=32),
    "jpeg_compression": Kind("JPEG artefacts", side=32),
    "speckle_noise": Kind("normal noise in proportion", (0.06, 0.1, 0.12, 0.16, 0.2), _speckle_noise),
    "gaussian_blur": Kind("a normal blur", side=32),
    "spatter": Kind("drops on the lens", side=32),
    "saturate": Kind(
        "more or less colour", ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)), _saturate, colour=True
    ),
}  # fmt: skip


def refusal(type_: str, shape: tuple[int, ...]) -> str | None:
    """Why pictures of this shape (channels, height, width) cannot have this corruption; None if they can."""
    kind = _known(type_)
    channels, height, width = shape
    if min(height, width) < kind.side:
        return (
            f"{type_} needs at least {kind.side}x{kind.side} pixels, and these pictures have {height}x{width}"
        )
    if channels not in ((3,) if kind.colour else (1, 3)):
        needed = "3 channels (colour)" if kind.colour else "1 or 3 channels"
        return f"{type_} needs {needed}, and these pictures have {channels}"
    return None if kind.formula else f"{type_} is not built yet"


class Corruption(Perturbation):
    """A corruption by name and severity (1 to 5)."""

    reference = "Hendrycks and Dietterich 2019, arXiv:1903.12261; constants of CIFAR-10-C"

    def __init__(self, type_: str, severity: int) -> None:
        self.kind = _known(type_)
        if severity not in SEVERITIES:
            raise UserError(f"{type_} has no such severity", expected="1, 2, 3, 4 or 5", got=severity)
        self.type, self.severity = type_, severity
        self.name = f"{type_}-{severity}"

    def __call__(self, model: Classifier, x: Tensor, y: Tensor, draws: Draws) -> Perturbed:
        reason = refusal(self.type, x.shape[1:])
        if reason or self.kind.formula is None:
            possible = [type_ for type_ in CORRUPTIONS if not refusal(type_, x.shape[1:])]
            raise UnsupportedError(
                f"cannot corrupt these pictures: {reason}",
                expected=f"one of: {', '.join(possible)}",
                got=self.name,
                remedy="leave this type out of the protocol, or take larger pictures",
            )
        corrupted = self.kind.formula(
            x.detach().cpu().double(), self.kind.constants[self.severity - 1], draws
        )
        levels = (corrupted.clamp(0, 1) * 255 + _ROUNDING).floor()
        return Perturbed((levels.float() / 255).to(x.device))


def _known(type_: str) -> Kind:
    if type_ not in CORRUPTIONS:
        raise unknown_name("corruption", type_, CORRUPTIONS)
    return CORRUPTIONS[type_]
