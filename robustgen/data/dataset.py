"""A split of a data set: pictures with labels, a fingerprint and a line that says where they come from."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustgen.errors import UserError
from robustgen.types import UNLABELLED

SPLIT_SEED = 0  # of every split that is ours to make; changing it changes every fingerprint


@dataclass(frozen=True)
class Dataset:
    """One split of a data set.

    ``images`` float32 (n, channels, height, width) in [0, 1]; ``labels`` int64 (n,), -1 where there
    is none; ``sample_ids`` int64 (n,), a sample's place in the whole split; ``fingerprint``: sha256
    over pixels and labels, 16 hex digits; ``provenance``: a line for the report.
    """

    name: str
    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    sample_ids: Tensor
    fingerprint: str
    provenance: str
    source: str = ""
    """What ``load`` was asked for; it differs from the name for imagefolder:PATH and FILE.npz."""

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        return tuple(self.images.shape[1:])  # type: ignore[return-value]

    def slice(self, start: int, stop: int) -> Dataset:
        """Samples start to stop; the fingerprint stays that of the whole split."""
        part = slice(start, stop)
        return replace(
            self, images=self.images[part], labels=self.labels[part], sample_ids=self.sample_ids[part]
        )

    def reshaped(self, shape: tuple[int, int, int]) -> Dataset:
        """The same pictures in another shape: grey or colour, resized with antialiasing."""
        if self.shape == shape:
            return self
        images = self.images
        if images.shape[1] == 3 and shape[0] == 1:
            images = (images * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
        elif images.shape[1] == 1 and shape[0] == 3:
            images = images.expand(-1, 3, -1, -1)
        images = torch.nn.functional.interpolate(images, shape[1:], mode="bilinear", antialias=True)
        size = f"{shape[0]}x{shape[1]}x{shape[2]}"
        return make(
            self.name,
            images.clamp(0, 1),
            self.labels,
            self.class_names,
            f"{self.provenance} Brought to {size}.",
        )


def make(
    name: str, images: Tensor | np.ndarray, labels: Tensor | np.ndarray, class_names: Any, provenance: str
) -> Dataset:
    """A Dataset from pictures (n, channels, height, width), uint8 or float in [0, 1], checked."""
    images, labels = torch.as_tensor(images), torch.as_tensor(labels).to(torch.int64)
    if images.dtype == torch.uint8:
        images = images.float() / 255
    if not images.is_floating_point() or images.ndim != 4:
        raise UserError(
            f"data set {name!r}: these are no pictures",
            expected="uint8 or float, shape (n, channels, height, width)",
            got=f"{images.dtype}, shape {tuple(images.shape)}",
        )
    images = images.float().contiguous()
    if len(images) == 0 or len(images) != len(labels):
        raise UserError(
            f"data set {name!r}: as many labels as pictures are needed, and at least one",
            expected=f"{len(images)} labels",
            got=len(labels),
        )
    low, high = (float(v) for v in images.aminmax())
    if not (low >= -1e-6 and high <= 1 + 1e-6):
        raise UserError(
            f"data set {name!r}: pixels must lie in [0, 1] (or be uint8)",
            expected="[0, 1]",
            got=f"[{low:g}, {high:g}]",
            remedy="divide by 255, or undo the normalisation: it belongs inside the model",
        )
    images = images.clamp(0, 1)
    if int(labels.max()) >= len(class_names) or int(labels.min()) < UNLABELLED:
        raise UserError(
            f"data set {name!r}: a label is out of range",
            expected=f"0 to {len(class_names) - 1}, or -1 for none",
            got=f"{int(labels.min())} to {int(labels.max())}",
        )
    digest = hashlib.sha256(images.numpy().tobytes() + labels.numpy().tobytes())
    digest.update(str(tuple(images.shape)).encode())
    ids = torch.arange(len(images))
    return Dataset(name, images, labels, tuple(class_names), ids, digest.hexdigest()[:16], provenance)


def no_split(name: str, split: str) -> UserError:
    """The error for a split that a data set does not have."""
    return UserError(f"data set {name!r} has no {split} split", expected="another data set", got=split)
