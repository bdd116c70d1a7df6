"""Data sets: pictures with labels, a fingerprint and a line that says where they come from.

``load(name, split)`` is the one way in. Splits are train, calibration and test; calibration samples
are neither training nor test samples. Foreign sets (letters, photos, textures, ...) have only a
test split and are brought to the shape of the data that they are foreign to.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustgen.errors import UserError, unknown_name
from robustgen.types import UNLABELLED, Split

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


def data_root(root: Path | str | None = None) -> Path:
    """Where data sets lie: the argument, else ROBUSTGEN_DATA, else the user's cache folder."""
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
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "robustgen" / "data"


def load(
    name: str,
    split: Split = "test",
    *,
    shape: tuple[int, int, int] | None = None,
    root: Path | str | None = None,
) -> Dataset:
    """A split of a data set by name, ``imagefolder:PATH`` or ``FILE.npz``.

    ``shape`` brings foreign pictures to (channels, height, width). Raises UserError where the name
    is not known, the files are absent and cannot be downloaded, or there is no such split.
    """
    if name.startswith("imagefolder:"):
        dataset = _image_folder(Path(name.removeprefix("imagefolder:")).expanduser(), split)
    elif name.endswith(".npz"):
        dataset = _npz(Path(name).expanduser(), split)
    elif name in SOURCES:
        source = SOURCES[name]
        if source.foreign and split != "test":
            raise _no_split(name, split)
        dataset = source.load(split, shape, data_root(root))
    else:
        raise unknown_name("data set", name, SOURCES, also="imagefolder:PATH, or FILE.npz")
    return replace(dataset.reshaped(shape) if shape else dataset, source=name)


def _no_split(name: str, split: str) -> UserError:
    return UserError(f"data set {name!r} has no {split} split", expected="another data set", got=split)


# --- the sets that need no files -------------------------------------------------------------------


def _digits(split: Split, shape: Any, root: Path) -> Dataset:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = (bunch.images / 16).astype(np.float32)[:, None]
    order = np.random.RandomState(SPLIT_SEED).permutation(len(images))
    parts = {"test": order[:400], "calibration": order[400:600], "train": order[600:]}
    keep = parts[split]
    provenance = (
        "scikit-learn's 1,797 handwritten digits (UCI optdigits, test part), native 8x8, 17 grey levels; "
        f"{split}: {len(keep)} by a fixed permutation."
    )
    return make("digits", images[keep], bunch.target[keep], [str(k) for k in range(10)], provenance)


FONTS = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSansMono-Bold"),
    *("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "STIXGeneral", "STIXGeneralBol"),
)


def _letters(split: Split, shape: tuple[int, int, int] | None, root: Path) -> Dataset:
    """Letters that are drawn large from matplotlib's fonts, cropped to their ink and scaled down."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    channels, height, width = shape or (1, 28, 28)
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    pictures = []
    for font_name in FONTS:
        font = ImageFont.truetype(str(folder / f"{font_name}.ttf"), 128)
        for letter in "ABCDEFGHJKLMNPQRTUVWXYabdefghkmnpqrtwy":  # without those that look like digits
            canvas = Image.new("L", (256, 256))
            ImageDraw.Draw(canvas).text((48, 48), letter, font=font, fill=255)
            ink = canvas.crop(canvas.getbbox())
            side = max(ink.size)
            square = Image.new("L", (side, side))
            square.paste(ink, ((side - ink.width) // 2, (side - ink.height) // 2))
            pictures.append(np.asarray(square.resize((width, height), Image.Resampling.BOX)))
    images = _shuffled(np.stack(pictures))[:, None].repeat(channels, axis=1)
    provenance = f"Letters drawn from {len(FONTS)} fonts that matplotlib carries; no digits look-alikes."
    return make("letters", images, np.full(len(images), UNLABELLED), (), provenance)


def _photos(split: Split, shape: tuple[int, int, int] | None, root: Path) -> Dataset:
    """Windows of the two photographs that scikit-learn carries, scaled down to the shape."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    channels, height, width = shape or (3, 32, 32)
    windows = []
    for photo in load_sample_images().images:
        for top in range(0, photo.shape[0] - 63, 32):
            for left in range(0, photo.shape[1] - 63, 32):
                window = Image.fromarray(photo[top : top + 64, left : left + 64])
                window = window.convert("L" if channels == 1 else "RGB").resize(
                    (width, height), Image.Resampling.BOX
                )
                windows.append(np.asarray(window).reshape(height, width, -1).transpose(2, 0, 1))
    images = _shuffled(np.stack(windows))
    provenance = "64x64 windows of scikit-learn's two photographs (china, flower), scaled down."
    return make("photos", images, np.full(len(images), UNLABELLED), (), provenance)


def _shuffled(images: np.ndarray) -> np.ndarray:
    return images[np.random.RandomState(SPLIT_SEED).permutation(len(images))]


# --- torchvision's formats, and Hugging Face image parquet -----------------------------------------


def _torchvision(name: str, split: Split, root: Path) -> Dataset:
    from torchvision import datasets

    # calibration is cut from the training part
    part = "test" if split == "test" else "train"
    makers: dict[str, Callable[[bool], Any]] = {
        "mnist": lambda down: datasets.MNIST(root, train=part == "train", download=down),
        "cifar10": lambda down: datasets.CIFAR10(root, train=part == "train", download=down),
        "cifar100": lambda down: datasets.CIFAR100(root, train=part == "train", download=down),
        "svhn": lambda down: datasets.SVHN(root / "svhn", split=part, download=down),
    }
    source = _obtain(name, makers[name], root)
    images = np.asarray(source.data)
    if images.ndim == 3:
        images = images[:, None]
    elif images.shape[-1] == 3:
        images = images.transpose(0, 3, 1, 2)
    labels = np.asarray(source.targets if hasattr(source, "targets") else source.labels)
    class_names = getattr(source, "classes", [str(k) for k in range(10)])
    keep = _part_of_training(split, len(images))
    provenance = f"{name}, {split}: {len(images[keep])} pictures, read through torchvision."
    return make(name, images[keep], labels[keep], class_names, provenance)


def _obtain(name: str, maker: Callable[[bool], Any], root: Path) -> Any:
    try:
        return maker(False)
    except RuntimeError:
        pass
    try:
        root.mkdir(parents=True, exist_ok=True)
        return maker(True)
    except Exception as error:
        raise UserError(
            f"data set {name!r} is not there and could not be downloaded",
            where=root,
            got=f"{type(error).__name__}: {str(error)[:200]}",
            remedy="put its files there as torchvision expects them, or name another --data-root",
        ) from None


def _part_of_training(split: Split, n: int) -> np.ndarray:
    """Which rows of the published training or test part a split takes: a tenth is calibration."""
    if split == "test":
        return np.arange(n)
    order = np.random.RandomState(SPLIT_SEED).permutation(n)
    return np.sort(order[: n // 10] if split == "calibration" else order[n // 10 :])


def _cifar10(split: Split, shape: Any, root: Path) -> Dataset:
    parquet = root / "cifar10" / f"{'test' if split == 'test' else 'train'}.parquet"
    if parquet.is_file() and not (root / "cifar-10-batches-py").is_dir():
        return _parquet("cifar10", parquet, split)
    return _torchvision("cifar10", split, root)


def _textures(split: Split, shape: Any, root: Path) -> Dataset:
    parquet = root / "textures" / "test.parquet"
    if parquet.is_file():
        return _parquet("textures", parquet, split)
    from PIL import Image
    from torchvision.datasets import DTD

    source = _obtain("textures", lambda down: DTD(root, split="test", download=down), root)
    size = (64, 64)
    images = [np.asarray(picture.convert("RGB").resize(size, Image.Resampling.BOX)) for picture, _ in source]
    labels = [label for _, label in source]
    stacked = np.stack(images).transpose(0, 3, 1, 2)
    return make("textures", stacked, np.asarray(labels), source.classes, "DTD test split, scaled to 64x64.")


def _parquet(name: str, path: Path, split: Split) -> Dataset:
    import pyarrow
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
        column = next(c for c in ("img", "image") if c in table.column_names)
        encoded = [row["bytes"] for row in table[column].to_pylist()]
        labels = np.asarray(table["label"])
    except (pyarrow.ArrowException, OSError, StopIteration, KeyError) as error:
        raise UserError(
            f"data set {name!r}: this is no Hugging Face image parquet",
            where=path,
            expected="the columns img or image {bytes, path}, and label",
            got=f"{type(error).__name__}: {str(error)[:200]}",
        ) from None
    keep = _part_of_training(split, len(encoded))
    pictures = [_decode(encoded[i], f"{path}, row {i}") for i in keep]
    formats = {kind for _, kind in pictures}
    images = np.stack([picture for picture, _ in pictures]).transpose(0, 3, 1, 2)
    provenance = f"{name}, {split}: {len(keep)} pictures from a parquet of {'/'.join(sorted(formats))} files."
    if formats == {"JPEG"}:
        provenance += " A JPEG copy (quality 75): lossy, not the original pictures."
    return make(name, images, labels[keep], _class_names(table, labels), provenance)


def _decode(encoded: bytes, where: str) -> tuple[np.ndarray, str]:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(encoded)) as picture:
            return np.asarray(picture.convert("RGB")), str(picture.format)
    except OSError as error:
        raise UserError("cannot decode the picture", where=where, got=error) from None


def _class_names(table: Any, labels: np.ndarray) -> list[str]:
    import json

    metadata = (table.schema.metadata or {}).get(b"huggingface")
    features = json.loads(metadata)["info"]["features"] if metadata else {}
    return features.get("label", {}).get("names") or [str(k) for k in range(int(labels.max()) + 1)]


# --- the user's own ----------------------------------------------------------------------------------


def _image_folder(path: Path, split: Split) -> Dataset:
    from torchvision.datasets import ImageFolder

    folder = path / split if (path / split).is_dir() else path
    if folder == path and split != "test":
        raise _no_split(f"imagefolder:{path}", split)
    try:
        source = ImageFolder(str(folder))
        pictures = [np.asarray(picture.convert("RGB")) for picture, _ in source]
    except (FileNotFoundError, OSError) as error:
        raise UserError(
            "this is no folder of pictures",
            where=folder,
            expected="one folder a class, with pictures in it",
            got=error,
        ) from None
    sizes = {picture.shape for picture in pictures}
    if len(sizes) > 1:
        raise UserError(
            "the pictures of a folder must have one size",
            where=folder,
            got=", ".join(f"{w}x{h}" for h, w, _ in sorted(sizes)[:4]),
            remedy="resize them first",
        )
    images = np.stack(pictures).transpose(0, 3, 1, 2)
    if (images == images[:, :1]).all():
        images = images[:, :1]  # grey pictures that were opened as colour
    return make(path.name, images, np.asarray(source.targets), source.classes, f"Image folder, {split}.")


def _npz(path: Path, split: Split) -> Dataset:
    prefix = "" if split == "test" else f"{split}_"
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if split != "test" and f"{prefix}images" not in arrays:
                raise _no_split(str(path), split)
            images, labels = arrays[f"{prefix}images"], arrays[f"{prefix}labels"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            "cannot read the data set",
            where=path,
            expected="an .npz with the arrays images and labels (and train_images, calibration_images, ...)",
            got=error,
        ) from None
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim == 4 and images.shape[1] not in (1, 3) and images.shape[3] in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    classes = [str(k) for k in range(int(labels.max()) + 1)] if labels.size else []
    return make(path.stem, images, labels, classes, f"{path.name}, {split}.")


@dataclass(frozen=True)
class Source:
    """How a named data set is loaded: (split, wanted shape, data root) -> Dataset."""

    load: Callable[[Split, tuple[int, int, int] | None, Path], Dataset]
    summary: str
    foreign: bool = False


SOURCES: dict[str, Source] = {
    "digits": Source(_digits, "1,797 handwritten digits, 8x8, carried by scikit-learn"),
    "mnist": Source(lambda s, _, r: _torchvision("mnist", s, r), "handwritten digits, 28x28"),
    "cifar10": Source(_cifar10, "10 kinds of objects, 32x32, colour"),
    "cifar100": Source(lambda s, _, r: _torchvision("cifar100", s, r), "100 kinds of objects, 32x32, colour"),
    "svhn": Source(lambda s, _, r: _torchvision("svhn", s, r), "house numbers, 32x32, colour"),
    "textures": Source(_textures, "describable textures, 64x64, colour", foreign=True),
    "letters": Source(_letters, "letters from matplotlib's fonts, any size", foreign=True),
    "photos": Source(_photos, "windows of scikit-learn's two photographs, any size", foreign=True),
}
