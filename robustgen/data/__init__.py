"""Data sets by name: ``load(name, split)``; out-of-distribution sets by ``load_foreign(name, familiar)``.

Splits are train, calibration and test; the calibration split is cut from the training data. Foreign sets
(letters, photos, textures) have only a test split. Any set may be foreign to another: ``load_foreign``
converts it to the shape and the codec of the familiar set, or derives it from that (noise, rotations).
``NAME:CLASSES`` is a set restricted to some classes; the remaining ones are then foreign to it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from robustgen.data import bundled, classes, files
from robustgen.data.classes import HELD_OUT, class_numbers
from robustgen.data.dataset import Dataset, make, no_split
from robustgen.data.foreign import DERIVED, Foreign, derive, matched
from robustgen.errors import UserError, unknown_name
from robustgen.places import cache_folder
from robustgen.types import Split

__all__ = [
    "DERIVED", "HELD_OUT", "SOURCES", "Dataset", "Foreign", "Source", "class_numbers", "data_root",
    "holds_out", "load", "load_foreign", "make",
]  # fmt: skip


def data_root(root: Path | str | None = None) -> Path:
    """The folder of the data sets: the argument, else ROBUSTGEN_DATA, else the user's cache folder."""
    if root is None:
        root = os.environ.get("ROBUSTGEN_DATA") or None
    if root is not None:
        path = Path(root).expanduser()
        if not path.is_dir():
            raise UserError(
                "the data root is not a folder",
                where="--data-root or ROBUSTGEN_DATA",
                got=path,
                remedy="name an existing folder; 'digits' needs none",
            )
        return path
    return cache_folder() / "data"


USER_DATA = "NAME:CLASSES, imagefolder:PATH, FILE.npz, or FILE.parquet"


def load(
    name: str,
    split: Split = "test",
    *,
    shape: tuple[int, int, int] | None = None,
    root: Path | str | None = None,
) -> Dataset:
    """A split of a data set, given by name, ``imagefolder:PATH``, ``FILE.npz`` or ``FILE.parquet``.

    ``NAME:CLASSES``, such as digits:0-7, is restricted to these classes. ``shape``: (channels, height, width)
    to convert the images to. Raises UserError if the name is unknown, if the files are missing and cannot
    be downloaded, and if there is no such split or class.
    """
    if split not in get_args(Split):
        raise unknown_name("split", str(split), get_args(Split), where=name)
    if name.startswith("imagefolder:"):
        dataset = files.image_folder(Path(name.removeprefix("imagefolder:")).expanduser(), split)
    elif name.endswith(".npz"):
        dataset = files.npz(Path(name).expanduser(), split)
    elif name.endswith(".parquet"):
        dataset = files.parquet(Path(name).expanduser(), split)
    elif name in SOURCES:
        source = SOURCES[name]
        if source.foreign and split != "test":
            raise no_split(name, split)
        dataset = source.load(split, shape, data_root(root))
    elif name.partition(":")[0] in SOURCES:
        whole, _, chosen = name.partition(":")
        dataset = classes.keep_classes(load(whole, split, root=root), chosen)
    elif name in (*DERIVED, HELD_OUT):
        raise UserError(
            f"{name!r} is derived from another data set and cannot be loaded by itself", got=name,
            remedy="name it among a protocol's foreign sets",
        )  # fmt: skip
    elif Path(name).expanduser().is_dir():
        raise UserError(
            "a folder of pictures is named by imagefolder:", expected="a data set's name, or "
            f"imagefolder:{name}", got=name, remedy=f"--data imagefolder:{name}",
        )  # fmt: skip
    else:
        raise unknown_name("data set", name, SOURCES, also=USER_DATA)
    return replace(dataset.reshaped(shape) if shape else dataset, source=name)


def load_foreign(name: str, familiar: Dataset, root: Path | str | None = None) -> Foreign:
    """A foreign (out-of-distribution) set for the ``familiar`` test split, matched to its shape and codec.

    ``name``: as for ``load``, a key of DERIVED, or HELD_OUT. The images of a user's files come in a fixed
    random order. Raises UserError as ``load`` does.
    """
    if name == HELD_OUT:
        whole, _, chosen = familiar.source.partition(":")
        if not holds_out(familiar):
            raise UserError(
                f"{familiar.name!r} has all of its classes, so none is held out",
                where=HELD_OUT, got=familiar.source,
                remedy="name the classes to keep, such as digits:0-7",
            )  # fmt: skip
        return matched(classes.held_out_classes(load(whole, "test", root=root), chosen), familiar)
    if name in DERIVED:
        return matched(derive(name, familiar), familiar)
    if name not in SOURCES and ":" not in name and not name.endswith((".npz", ".parquet")):
        raise unknown_name("data set", name, [*SOURCES, *DERIVED, HELD_OUT], also=USER_DATA)
    if name not in SOURCES:  # shuffled: folders are sorted by class, and a run may take the first n
        return matched(load(name, "test", root=root).shuffled(), familiar)
    # letters and photos are rendered in the requested shape
    shape = familiar.shape if SOURCES[name].foreign else None
    return matched(load(name, "test", shape=shape, root=root), familiar)


def holds_out(dataset: Dataset) -> bool:
    """Whether a data set is a named one restricted to some of its classes (``NAME:CLASSES``)."""
    whole, _, chosen = dataset.source.partition(":")
    return bool(chosen) and whole in SOURCES


@dataclass(frozen=True)
class Source:
    """A named data set: ``load(split, shape or None, data root)``; ``foreign``: it has only a test split."""

    load: Callable[[Split, tuple[int, int, int] | None, Path], Dataset]
    summary: str
    foreign: bool = False


SOURCES: dict[str, Source] = {
    "digits": Source(bundled.digits, "1,797 handwritten digits, 8x8, carried by scikit-learn"),
    "mnist": Source(lambda s, _, r: files.from_torchvision("mnist", s, r), "handwritten digits, 28x28"),
    "cifar10": Source(files.cifar10, "10 kinds of objects, 32x32, colour"),
    "cifar100": Source(
        lambda s, _, r: files.from_torchvision("cifar100", s, r), "100 kinds of objects, 32x32, colour"
    ),
    "svhn": Source(lambda s, _, r: files.from_torchvision("svhn", s, r), "house numbers, 32x32, colour"),
    "textures": Source(files.textures, "describable textures, 64x64, colour", foreign=True),
    "letters": Source(bundled.letters, "letters from matplotlib's fonts, any size", foreign=True),
    "photos": Source(bundled.photos, "windows of scikit-learn's two photographs, any size", foreign=True),
}
