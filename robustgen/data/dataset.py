"""The type of a data set's split, and the checks of images and labels that it is made from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustgen.data.codec import Jpeg
from robustgen.errors import UnknownNameError, UserError
from robustgen.types import UNLABELLED

SPLIT_SEED = 0  # of all splits and orders made here; changing it changes every fingerprint
MOST_CLASSES = 100_000  # larger integers are not class labels


@dataclass(frozen=True)
class Dataset:
    """One split of a data set.

    ``images``: float32 (n, channels, height, width) in [0, 1]; ``labels``: int64 (n,), -1 for an unlabelled
    sample; ``sample_ids``: int64 (n,), the index of a sample in the whole split; ``fingerprint``: sha256 of
    pixels and labels, 16 hex digits; ``provenance``: a description for the report.
    """

    name: str
    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    sample_ids: Tensor
    fingerprint: str
    provenance: str
    source: str = ""
    """The name given to ``load``; it differs from ``name`` for imagefolder:PATH and files."""
    codec: Jpeg | None = None
    """The lossy codec that all images passed through; None if there is none, or it is unknown."""

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

    def shuffled(self) -> Dataset:
        """The same images in a fixed random order."""
        order = np.random.RandomState(SPLIT_SEED).permutation(len(self))
        names = self.class_names
        mixed = make(self.name, self.images[order], self.labels[order], names, f"{self.provenance} Shuffled.")
        return replace(mixed, source=self.source, codec=self.codec)

    def reshaped(self, shape: tuple[int, int, int]) -> Dataset:
        """The same images converted to ``shape``: grey or colour, resized with antialiasing.

        Downscaling averages over areas, which blurs less than a linear filter: blur could give a foreign
        set away. The result has no codec.
        """
        if self.shape == shape:
            return self
        images = self.images
        if images.shape[1] == 3 and shape[0] == 1:
            images = (images * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
        elif images.shape[1] == 1 and shape[0] == 3:
            images = images.expand(-1, 3, -1, -1)
        if shape[1] <= self.shape[1] and shape[2] <= self.shape[2]:
            images = torch.nn.functional.interpolate(images, shape[1:], mode="area")
        else:
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
    name: str,
    images: Tensor | np.ndarray,
    labels: Tensor | np.ndarray,
    class_names: Any,
    provenance: str,
    *,
    where: object = None,
) -> Dataset:
    """A Dataset from images (n, channels, height, width), uint8 or float in [0, 1], and labels, checked.

    ``labels``: integers (n,), indices into ``class_names``, or all -1 without classes (a foreign set).
    ``where``: the file, for error messages. Raises UserError.
    """
    pictures = _pictures(name, images, where)
    numbers = _labels(name, labels, len(pictures), len(class_names), where)
    digest = hashlib.sha256(pictures.numpy().tobytes() + numbers.numpy().tobytes())
    digest.update(str(tuple(pictures.shape)).encode())
    ids = torch.arange(len(pictures))
    return Dataset(name, pictures, numbers, tuple(class_names), ids, digest.hexdigest()[:16], provenance)


def _pictures(name: str, given: Tensor | np.ndarray, where: object) -> Tensor:
    """Images as float32 in [0, 1]; UserError for other content."""
    given = given if isinstance(given, Tensor) else np.asarray(given)
    wrong = UserError(
        f"data set {name!r}: the array does not hold pictures",
        where=where,
        expected="uint8 or float, shape (n, channels, height, width), none of them 0",
        got=f"{given.dtype}, shape {tuple(given.shape)}",
        remedy="store the pictures anew in that form",
    )
    if isinstance(given, np.ndarray):
        if given.dtype.kind not in "uf":
            raise wrong
        given = np.ascontiguousarray(given, given.dtype.newbyteorder("="))  # torch requires native byte order
    images = torch.as_tensor(given)
    if images.dtype == torch.uint8:
        images = images.float() / 255
    if not images.is_floating_point() or images.ndim != 4 or 0 in images.shape[1:]:
        raise wrong
    images = images.float().contiguous()
    if len(bad := (~images.isfinite()).flatten(1).any(1).nonzero().flatten().tolist()):
        raise UserError(
            f"data set {name!r}: pixels must lie in [0, 1] (or be uint8), and some are no numbers",
            where=where,
            expected="[0, 1]",
            got=f"NaN or infinite values in {len(bad)} of {len(images)} pictures, counted from 0: "
            + ", ".join(map(str, bad[:8])),
            remedy="mend these pictures, or leave them out",
        )
    low, high = (float(v) for v in images.aminmax()) if len(images) else (0.0, 1.0)
    if not (low >= -1e-6 and high <= 1 + 1e-6):
        raise UserError(
            f"data set {name!r}: pixels must lie in [0, 1] (or be uint8)",
            where=where,
            expected="[0, 1]",
            got=f"[{low:g}, {high:g}]",
            remedy="divide by 255, or undo the normalisation: it belongs inside the model",
        )
    return images.clamp(0, 1)


def _labels(name: str, given: Tensor | np.ndarray, pictures: int, classes: int, where: object) -> Tensor:
    """Labels as int64 (n,): 0 to classes - 1, or all -1 if there are no classes; ``pictures``: n."""
    array = np.asarray(given)
    if pictures == 0:
        raise UserError(
            f"data set {name!r} has no pictures", where=where, expected="at least one", got="none"
        )
    if array.ndim and len(array) != pictures:
        raise UserError(
            f"data set {name!r}: the numbers of labels and pictures differ",
            where=where,
            expected=f"labels of shape ({pictures},)",
            got=f"{pictures} pictures, labels of shape {array.shape}",
            remedy="store a label for each picture",
        )
    if array.ndim != 1 or array.dtype.kind not in "iu":
        floats = array if array.ndim == 1 and array.dtype.kind == "f" else np.zeros(0)
        parts = np.flatnonzero(floats != np.rint(floats)).tolist()
        raise UserError(
            f"data set {name!r}: labels must be integers, one per picture",
            where=where,
            expected=f"an integer type, shape ({pictures},)",
            got=f"{array.dtype}, shape {array.shape}"
            + (f", {array[parts[0]]} at picture {parts[0]}, counted from 0" if len(parts) else ""),
            remedy="number the classes from 0, and store the numbers as int64",
        )
    lowest, highest = int(array.min()), int(array.max())
    allowed = (0, classes - 1) if classes else (UNLABELLED, UNLABELLED)
    if lowest < allowed[0] or highest > allowed[1]:
        raise UserError(
            f"data set {name!r}: a label is out of range",
            where=where,
            expected=f"0 to {classes - 1}" if classes else f"{UNLABELLED}, since there are no classes",
            got=f"{lowest} to {highest}",
            remedy="leave the pictures without a label out"
            if lowest == UNLABELLED
            else "number the classes from 0, and name each of them",
        )
    return torch.from_numpy(array.astype(np.int64))


def numbered(labels: np.ndarray) -> list[str]:
    """Class names "0", "1", ... up to the largest label; empty if these are not class labels."""
    if labels.dtype.kind not in "iu" or not labels.size:
        return []
    return [str(k) for k in range(min(int(labels.max()) + 1, MOST_CLASSES))]


def check_classes(
    name: str, split: str, strange: Sequence[str], class_names: Sequence[str], where: object
) -> None:
    """Raise UnknownNameError if a split has classes, ``strange``, that the test split lacks."""
    if strange:
        raise UnknownNameError(
            f"data set {name!r}: the {split} split has classes that the test split lacks",
            where=where,
            expected=f"classes of the test split: {_few(class_names)}",
            got=_few(strange),
            remedy=f"name or number the classes alike, or leave these pictures out of the {split} split",
        )


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def no_split(name: str, split: str, expected: str | None = None) -> UserError:
    """The error for a missing split; ``expected``: where a user's own data set would have it."""
    named = "name a data set that has one ('robustgen list data')"
    return UserError(
        f"data set {name!r} has no {split} split", where=name, expected=expected or "another data set",
        got=split, remedy=f"put its pictures there, or {named}" if expected else named,
    )  # fmt: skip
