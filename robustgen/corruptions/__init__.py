"""Common corruptions at five severities (Hendrycks and Dietterich 2019, arXiv:1903.12261).

A plain name, such as ``fog``, means the formula and constants of CIFAR-10-C, which are several times milder
than those of ImageNet-C. The published CIFAR-10-C has no known seed, so the images made here are not the
published ones (published.py reads those). Two prefixes select other families:

- ``imagenet-constants:fog``: the same formula with the constants of ImageNet-C, for images of any size;
- ``imagenet-c:fog``: the package imagecorruptions, for images of at least 64x64 pixels.

Except in the last family, a sample's corrupted image has the same bits in any batch and on any machine: it is
computed on the CPU, with random draws per sample. As in the original, the result is truncated to 8 bits, not
rounded, which makes it half a level darker on average.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robustgen.classifiers.base import Classifier
from robustgen.corruptions import blur, digital, imagenet_c, pixels, weather
from robustgen.corruptions.constants import CIFAR, IMAGENET, Table
from robustgen.draws import Draws
from robustgen.errors import UnsupportedError, UserError, unknown_name
from robustgen.perturb import Perturbation, Perturbed

SEVERITIES = (1, 2, 3, 4, 5)
SPATIAL = 28
"""Least side for corruptions with constants in pixels of a 32x32 image; much smaller ones would be erased."""
REMEDY = imagenet_c.REMEDY
IMAGENET_C = "imagenet-c"
TABLES: dict[str, Table] = {"": CIFAR, "imagenet-constants": IMAGENET}
"""The constants of a family, by its prefix."""
BLOCK = 2**17
"""Values to corrupt at a time; few enough for the processor's cache."""


@dataclass(frozen=True)
class CorruptionType:
    """A type of corruption: its formula and its requirements.

    ``formula`` maps x, float64 (batch, channels, height, width) in [0, 1], the constants of a severity and
    the samples' draws to corrupted images of x's shape; ``min_side``: least height and width in pixels;
    ``missing``: an error message if a package that it needs is not installed.
    """

    summary: str
    formula: Callable[[Tensor, Any, Draws], Tensor]
    min_side: int = 1
    needs_colour: bool = False
    missing: Callable[[], str | None] = lambda: None


def _missing_frost() -> str | None:
    if weather.frost_folder() is not None:
        return None
    return f"frost is made from photographs that come with imagecorruptions, which is not installed: {REMEDY}"


def _missing_opencv() -> str | None:
    return (
        None if importlib.util.find_spec("cv2") else f"spatter needs OpenCV, which is not installed: {REMEDY}"
    )


CORRUPTIONS: dict[str, CorruptionType] = {
    "gaussian_noise": CorruptionType("normal noise", pixels.gaussian_noise),
    "shot_noise": CorruptionType("Poisson noise of few photons", pixels.shot_noise),
    "impulse_noise": CorruptionType("salt and pepper", pixels.impulse_noise),
    "defocus_blur": CorruptionType("a disk-shaped blur", blur.defocus_blur, SPATIAL),
    "glass_blur": CorruptionType("pixels copied about, and blurred", blur.glass_blur, SPATIAL),
    "motion_blur": CorruptionType("a blur along a line", blur.motion_blur, SPATIAL),
    "zoom_blur": CorruptionType("the mean of several zooms", blur.zoom_blur, SPATIAL),
    "snow": CorruptionType("falling snow", weather.snow, SPATIAL),
    "frost": CorruptionType("photographed frost on the lens", weather.frost, SPATIAL, missing=_missing_frost),
    "fog": CorruptionType("plasma fog", weather.fog, SPATIAL),
    "brightness": CorruptionType("a higher value in HSV", pixels.brightness),
    "contrast": CorruptionType("towards the mean", pixels.contrast),
    "elastic_transform": CorruptionType("a smooth random warp", digital.elastic_transform, SPATIAL),
    "pixelate": CorruptionType("scaled down and up again", digital.pixelate, SPATIAL),
    "jpeg_compression": CorruptionType("JPEG artefacts", digital.jpeg_compression, SPATIAL),
    "speckle_noise": CorruptionType("normal noise in proportion", pixels.speckle_noise),
    "gaussian_blur": CorruptionType("a normal blur", blur.gaussian_blur, SPATIAL),
    "spatter": CorruptionType("drops on the lens", weather.spatter, SPATIAL, missing=_missing_opencv),
    "saturate": CorruptionType("more or less colour", pixels.saturate, needs_colour=True),
}


def refusal(type_: str, shape: tuple[int, ...]) -> str | None:
    """Why images of this shape (channels, height, width) cannot be corrupted by a type; None if they can."""
    family, kind = _parse_type(type_)
    channels, height, width = shape
    side = imagenet_c.MIN_SIDE if family == IMAGENET_C else kind.min_side
    if min(height, width) < side:
        return f"{type_} needs at least {side}x{side} pixels, and these pictures have {height}x{width}"
    if channels not in ((3,) if kind.needs_colour or family == IMAGENET_C else (1, 3)):
        needed = "3 channels (colour)" if kind.needs_colour or family == IMAGENET_C else "1 or 3 channels"
        return f"{type_} needs {needed}, and these pictures have {channels}"
    missing = imagenet_c.missing() if family == IMAGENET_C else kind.missing()
    if missing or family == IMAGENET_C or kind.formula is not weather.frost:
        return missing
    most = weather.frost_size(TABLES[family]["frost"][0][2])
    if height > most[0] or width > most[1]:
        return (
            f"the photographs of frost that {type_} is made from have {most[0]}x{most[1]} pixels, and these "
            f"pictures have {height}x{width}"
        )
    return None


def evaluation_name(type_: str, severity: int) -> str:
    """The name of the evaluation of a corruption.

    >>> evaluation_name("imagenet-c:fog", 3)
    'imagenet-c-fog-3'
    """
    return f"{type_.replace(':', '-')}-{severity}"


class Corruption(Perturbation):
    """A corruption by name and severity (1 to 5)."""

    reference = "Hendrycks and Dietterich 2019, arXiv:1903.12261"

    def __init__(self, type_: str, severity: int) -> None:
        self.family, self.kind = _parse_type(type_)
        if severity not in SEVERITIES:
            raise UserError(f"{type_} has no such severity", expected="1, 2, 3, 4 or 5", got=severity)
        self.type, self.severity = type_, severity
        self.name = evaluation_name(type_, severity)

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
        block = max(1, BLOCK // max(1, x[:1].numel()))
        parts = zip(x.detach().cpu().split(block), torch.arange(len(x)).split(block), strict=True)
        corrupted = [self._corrupt(images, draws.at(rows)) for images, rows in parts]
        return Perturbed(torch.cat(corrupted).to(x.device))

    def _corrupt(self, x: Tensor, draws: Draws) -> Tensor:
        """Corrupted images, float32 with 8-bit levels."""
        name = self.type.rpartition(":")[2]
        if self.family == IMAGENET_C:
            return imagenet_c.corrupt(x, name, self.severity, draws)
        constants = TABLES[self.family][name][self.severity - 1]
        corrupted = self.kind.formula(x.double(), constants, draws)
        return corrupted.clamp(0, 1).mul_(255).add_(blur.FLOAT32_ERROR).floor_().float().div_(255)


def _parse_type(type_: str) -> tuple[str, CorruptionType]:
    """The family (prefix) and the CorruptionType of a name; UserError for an unknown one."""
    family, _, name = type_.rpartition(":")
    if name not in CORRUPTIONS or family not in (*TABLES, IMAGENET_C):
        raise unknown_name(
            "corruption", type_, CORRUPTIONS, also="imagenet-constants:NAME, or imagenet-c:NAME"
        )
    return family, CORRUPTIONS[name]
