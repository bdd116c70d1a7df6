"""Foreign pictures as they are compared with a familiar set: of its size, through its codec; and foreign
sets that are made for it.

What a picture owes to its file format says nothing of a model. So a foreign set goes through the
familiar set's codec, and the raw one stands beside it.
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

MOST = 2000  # pictures of a set that can be as large as one likes


class Foreign(NamedTuple):
    """``matched``: in size and codec, the one to read; ``raw``: in size alone, where that differs."""

    matched: Dataset
    raw: Dataset | None


def matched(foreign: Dataset, familiar: Dataset) -> Foreign:
    """A foreign set in the familiar set's size, and through its codec where that has one.

    Pictures that came through the very same codec, at this size, are left as they are.
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
    """A foreign set that is made for a familiar one: ``pictures(familiar, rng)``, and what they are."""

    pictures: Callable[[Dataset, np.random.RandomState], Tensor]
    summary: str


def derive(name: str, familiar: Dataset) -> Dataset:
    """A set of DERIVED for a familiar data set; UserError where that does not allow it."""
    kind = DERIVED[name]
    images = kind.pictures(familiar, np.random.RandomState(SPLIT_SEED))
    words = f"{kind.summary[0].upper()}{kind.summary[1:]}, made for {familiar.name}: {len(images)} pictures."
    dataset = make(name, images, np.full(len(images), UNLABELLED), (), words)
    return replace(dataset, source=name)


def _interpolated(familiar: Dataset, rng: np.random.RandomState) -> Tensor:
    """(x_i + x_j) / 2 for i in order and a random j of another class (JEM's interpolation)."""
    labels = familiar.labels.numpy()
    if len(np.unique(labels)) < 2:
        raise UserError("there are no pairs of different classes", where="interpolated", got=familiar.name)
    others = np.array([rng.choice(np.flatnonzero(labels != label)) for label in labels[:MOST]])
    return _levels((familiar.images[:MOST] + familiar.images[others]) / 2)


def _uniform(familiar: Dataset, rng: np.random.RandomState) -> Tensor:
    return torch.from_numpy(rng.randint(0, 256, (MOST, *familiar.shape)).astype(np.float32) / 255)


def _gaussian(familiar: Dataset, rng: np.random.RandomState) -> Tensor:
    """Of the familiar set's mean and deviation in each channel, so that brightness alone does not tell."""
    mean, deviation = (part.view(-1, 1, 1) for part in _moments(familiar.images))
    noise = torch.from_numpy(rng.standard_normal((MOST, *familiar.shape)).astype(np.float32))
    return _levels((mean + deviation * noise).clamp(0, 1))


def _moments(images: Tensor) -> tuple[Tensor, Tensor]:
    return images.mean((0, 2, 3)), images.std((0, 2, 3))


def _constant(familiar: Dataset, rng: np.random.RandomState) -> Tensor:
    """Of grey there are 256; of colours, as many as there is room for."""
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


def _levels(images: Tensor) -> Tensor:
    return (images * 255).round() / 255


DERIVED: dict[str, Derived] = {
    "interpolated": Derived(_interpolated, "means of two test pictures of different classes"),
    "uniform-noise": Derived(_uniform, "independent uniform noise"),
    "gaussian-noise": Derived(_gaussian, "independent noise of the data's own mean and deviation"),
    "constant": Derived(_constant, "one colour all over"),
    "turned": Derived(_turned, "the test pictures turned by 90 degrees; a round shape stays what it was"),
    "inverted": Derived(_inverted, "the test pictures as negatives"),
}
"""Foreign sets that need no files: any data set has them."""
