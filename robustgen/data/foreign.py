"""Foreign (out-of-distribution) sets, matched in shape and codec to a familiar set or derived from it.

A model should not be credited with detecting file formats, so a foreign set is passed through the familiar
set's codec; the unmatched one is kept for comparison.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from robustgen.data.dataset import SPLIT_SEED, Dataset, make
from robustgen.errors import UserError
from robustgen.types import UNLABELLED

MOST = 2000  # images of a derived set


class Foreign(NamedTuple):
    """``matched``: the set in the familiar shape and codec; ``raw``: in the shape alone, if that differs."""

    matched: Dataset
    raw: Dataset | None


def matched(foreign: Dataset, familiar: Dataset) -> Foreign:
    """A foreign set in the familiar set's shape, and passed through its codec if there is one.

    Images of this shape that came from the same codec are left unchanged.
    """
    raw = foreign.reshaped(familiar.shape)
    codec = familiar.codec
    if codec is None or raw.codec == codec:
        return Foreign(raw, None)
    words = f"{raw.provenance} Through the codec of {familiar.name}, {codec}."
    through = make(raw.name, codec(raw.images), raw.labels, raw.class_names, words)
    return Foreign(replace(through, codec=codec, source=foreign.source), replace(raw, source=foreign.source))


@dataclass(frozen=True)
class Derived:
    """A foreign set that is computed from a familiar one by ``pictures(familiar, rng)``."""

    pictures: Callable[[Dataset, np.random.RandomState], Tensor]
    summary: str


def derive(name: str, familiar: Dataset) -> Dataset:
    """The set DERIVED[name] for a familiar data set; UserError if that does not allow it."""
    kind = DERIVED[name]
    images = kind.pictures(familiar, np.random.RandomState(SPLIT_SEED))
    words = f"{kind.summary[0].upper()}{kind.summary[1:]}, made for {familiar.name}: {len(images)} pictures."
    dataset = make(name, images, np.full(len(images), UNLABELLED), (), words)
    return replace(dataset, source=name)


def _interpolated(familiar: Dataset, rng: np.random.RandomState) -> Tensor:
    """(x_i + x_j) / 2 for each i and a random j of another class (as in JEM)."""
    labels = familiar.labels.numpy()
    if len(np.unique(labels)) < 2:
        raise UserError("there are no pairs of different classes", where="interpolated", got=familiar.name)
    others = np.array([rng.choice(np.flatnonzero(labels != label)) for label in labels[:MOST]])
    return _to_8_bits((familiar.images[:MOST] + familiar.images[others]) / 2)


def _uniform(familiar: Dataset, rng: np.random.RandomState) -> Tensor:
    return torch.from_numpy(rng.randint(0, 256, (MOST, *familiar.shape)).astype(np.float32) / 255)


def _gaussian(familiar: Dataset, rng: np.random.RandomState) -> Tensor:
    """With the familiar set's mean and deviation per channel, so that brightness does not give it away."""
    mean, deviation = (part.view(-1, 1, 1) for part in _moments(familiar.images))
    noise = torch.from_numpy(rng.standard_normal((MOST, *familiar.shape)).astype(np.float32))
    return _to_8_bits((mean + deviation * noise).clamp(0, 1))


def _moments(images: Tensor) -> tuple[Tensor, Tensor]:
    return images.mean((0, 2, 3)), images.std((0, 2, 3))


def _constant(familiar: Dataset, rng: np.random.RandomState) -> Tensor:
    """All 256 grey levels, or random colours."""
    channels, height, width = familiar.shape
    if channels == 1:
        levels = rng.permutation(256)[:, None]
    else:
        levels = rng.randint(0, 256, (MOST, channels))
    colours = torch.from_numpy(levels.astype(np.float32) / 255)
    return colours[:, :, None, None].expand(-1, -1, height, width)


def _turned(familiar: Dataset, rng: np.random.RandomState) -> Tensor:
    _, height, width = familiar.shape
    if height != width:
        raise UserError(
            "pictures that are not square cannot be turned by 90 degrees", where="turned",
            expected="as high as wide", got=f"{height}x{width}",
        )  # fmt: skip
    return familiar.images[:MOST].rot90(1, (2, 3))


def _inverted(familiar: Dataset, rng: np.random.RandomState) -> Tensor:
    return 1 - familiar.images[:MOST]


def _to_8_bits(images: Tensor) -> Tensor:
    return (images * 255).round() / 255


DERIVED: dict[str, Derived] = {
    "interpolated": Derived(_interpolated, "means of two test pictures of different classes"),
    "uniform-noise": Derived(_uniform, "independent uniform noise"),
    "gaussian-noise": Derived(_gaussian, "independent noise of the data's own mean and deviation"),
    "constant": Derived(_constant, "one colour all over"),
    "turned": Derived(_turned, "the test pictures turned by 90 degrees; a round shape stays what it was"),
    "inverted": Derived(_inverted, "the test pictures as negatives"),
}
"""Foreign sets that are computed from the familiar set, so that any data set has them."""
