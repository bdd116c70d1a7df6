"""Common corruptions at five severities (Hendrycks and Dietterich 2019, arXiv:1903.12261).

Names, formulas and constants are those of CIFAR-10-C (hendrycks/robustness,
ImageNet-C/create_c/make_cifar_c.py), which are several times milder than ImageNet-C's. The published
files carry no seed, so what is made here is CIFAR-10-C-like, never CIFAR-10-C itself.

Everything is computed in float64 on the CPU, and random numbers belong to the sample, so a sample's
corrupted picture is the same bits in any batch and on any machine. As in the original, the outcome is
an 8-bit picture, and cut down to its level, not rounded: half a level darker on average.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from robustgen.classifiers.base import Classifier
from robustgen.corruptions import blur, digital, pixels, weather
from robustgen.draws import Draws
from robustgen.errors import UnsupportedError, UserError, unknown_name
from robustgen.perturb import Perturbation, Perturbed

SEVERITIES = (1, 2, 3, 4, 5)
SPATIAL = 28
"""Kernels, warps and weather are given in pixels of a 32x32 picture; far fewer pixels and they erase it."""
REMEDY = "pip install 'robustgen[imagecorruptions]'"


@dataclass(frozen=True)
class Kind:
    """A type of corruption: its formula, its constant at each severity, and the pictures that it needs.

    ``formula`` maps x float64 (batch, channels, height, width) in [0, 1], a constant and the samples'
    draws to x's shape; ``side`` is the least height and width in pixels; ``missing`` says what it
    needs and this machine lacks.
    """

    summary: str
    formula: Callable[[Tensor, Any, Draws], Tensor]
    constants: tuple[Any, ...]
    side: int = 1
    colour: bool = False
    missing: Callable[[], str | None] = lambda: None


def _no_frost() -> str | None:
    if weather.frost_folder() is not None:
        return None
    return f"frost is made from photographs that come with imagecorruptions, which is not installed: {REMEDY}"


def _no_opencv() -> str | None:
    return (
        None if importlib.util.find_spec("cv2") else f"spatter needs OpenCV, which is not installed: {REMEDY}"
    )


CORRUPTIONS: dict[str, Kind] = {
    "gaussian_noise": Kind("normal noise", pixels.gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
    "shot_noise": Kind("Poisson noise of few photons", pixels.shot_noise, (500, 250, 100, 75, 50)),
    "impulse_noise": Kind("salt and pepper", pixels.impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07)),
    "defocus_blur": Kind(  # radius, sigma of its edge
        "a disk-shaped blur", blur.defocus_blur,
        ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)), SPATIAL,
    ),
    "glass_blur": Kind(  # sigma, passes
        "pixels copied about, and blurred", blur.glass_blur,
        ((0.05, 1), (0.25, 1), (0.4, 1), (0.25, 2), (0.4, 2)), SPATIAL,
    ),
    "motion_blur": Kind(  # radius, sigma
        "a blur along a line", blur.motion_blur, ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)), SPATIAL
    ),
    "zoom_blur": Kind("the mean of several zooms", blur.zoom_blur, (1.06, 1.11, 1.16, 1.21, 1.26), SPATIAL),
    "snow": Kind(  # mean, spread, zoom, threshold, radius, sigma, share kept
        "falling snow", weather.snow,
        ((0.1, 0.2, 1, 0.6, 8, 3, 0.95), (0.1, 0.2, 1, 0.5, 10, 4, 0.9), (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
         (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85), (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8)), SPATIAL,
    ),
    "frost": Kind(  # share kept, weight of the frost
        "photographed frost on the lens", weather.frost,
        ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)), SPATIAL, missing=_no_frost,
    ),
    "fog": Kind("plasma fog", weather.fog, ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)), SPATIAL),
    "brightness": Kind("a higher value in HSV", pixels.brightness, (0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": Kind("towards the mean", pixels.contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "elastic_transform": Kind(  # strength, sigma, affine: shares of the shorter side
        "a smooth random warp", digital.elastic_transform,
        ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)), SPATIAL,
    ),
    "pixelate": Kind("scaled down and up again", digital.pixelate, (0.95, 0.9, 0.85, 0.75, 0.65), SPATIAL),
    "jpeg_compression": Kind("JPEG artefacts", digital.jpeg_compression, (80, 65, 58, 50, 40), SPATIAL),
    "speckle_noise": Kind("normal noise in proportion", pixels.speckle_noise, (0.06, 0.1, 0.12, 0.16, 0.2)),
    "gaussian_blur": Kind("a normal blur", blur.gaussian_blur, (0.4, 0.6, 0.7, 0.8, 1), SPATIAL),
    "spatter": Kind(  # mean, spread, sigma, threshold, strength, whether it is mud
        "drops on the lens", weather.spatter,
        ((0.62, 0.1, 0.7, 0.7, 0.5, 0), (0.65, 0.1, 0.8, 0.7, 0.5, 0), (0.65, 0.3, 1, 0.69, 0.5, 0),
         (0.65, 0.1, 0.7, 0.69, 0.6, 1), (0.65, 0.1, 0.5, 0.68, 0.6, 1)), SPATIAL, missing=_no_opencv,
    ),
    "saturate": Kind(  # factor, constant
        "more or less colour", pixels.saturate,
        ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)), colour=True,
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
    return kind.missing()


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
        if reason:
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
        levels = (corrupted.clamp(0, 1) * 255 + blur.ROUNDING).floor()
        return Perturbed((levels.float() / 255).to(x.device))


def _known(type_: str) -> Kind:
    if type_ not in CORRUPTIONS:
        raise unknown_name("corruption", type_, CORRUPTIONS)
    return CORRUPTIONS[type_]
