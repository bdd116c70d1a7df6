"""Data sets in files: torchvision's formats, Hugging Face image parquet, and a user's own files."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from robustgen.data.codec import Jpeg, codec_of
from robustgen.data.dataset import SPLIT_SEED, Dataset, check_classes, make, no_split, numbered
from robustgen.data.npz import check_fits_memory, read_npz
from robustgen.errors import UserError, describe_error
from robustgen.types import Split

AGAIN = "fetch the file again, or write it anew if it is your own"


@contextmanager
def _reading(what: str, where: object, expected: str, remedy: str | None = None) -> Iterator[None]:
    """Turn any exception of a library that reads an invalid or damaged file into one UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # zip, zlib, pickle, struct, assertions: each reader has its own
        raise UserError(
            what, where=where, expected=expected, got=describe_error(error), remedy=remedy
        ) from None


def _must_exist(path: Path) -> None:
    if not path.exists():
        raise UserError(
            "there is no such file or folder", where=path, expected="a data set", remedy="check the path"
        )


def from_torchvision(name: str, split: Split, root: Path) -> Dataset:
    """mnist, cifar10, cifar100 or svhn in torchvision's format; downloaded if missing."""
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
    with _torchvision(name, root):
        images = np.asarray(source.data)
        if images.ndim == 3:
            images = images[:, None]
        elif images.shape[-1] == 3:
            images = images.transpose(0, 3, 1, 2)
        labels = np.asarray(source.targets if hasattr(source, "targets") else source.labels)
        class_names = getattr(source, "classes", [str(k) for k in range(10)])
        keep = _part_of_training(split, len(images))
        provenance = f"{name}, {split}: {len(keep)} pictures, read through torchvision."
        return make(name, images[keep], labels[keep], class_names, provenance, where=root)


def _torchvision(name: str, root: Path) -> AbstractContextManager[None]:
    return _reading(
        f"the files of the data set {name!r} cannot be read",
        root,
        "its files as torchvision expects them",
        "delete its files there, and fetch them again",
    )


def _obtain(name: str, maker: Callable[[bool], Any], root: Path) -> Any:
    """A data set of torchvision, from its files or, if they are missing, downloaded."""
    with _torchvision(name, root):
        try:
            return maker(False)
        except RuntimeError as error:  # torchvision raises this for missing files, among others
            if not str(error).startswith("Dataset not found"):
                raise
    try:
        root.mkdir(parents=True, exist_ok=True)
        return maker(True)
    except Exception as error:
        raise UserError(
            f"data set {name!r} was not found and could not be downloaded",
            where=root,
            got=describe_error(error),
            remedy="put its files there as torchvision expects them, or name another --data-root",
        ) from None


def _part_of_training(split: Split, n: int) -> np.ndarray:
    """The rows of the published test or training part that form a split; a tenth of the latter calibrates."""
    if split == "test":
        return np.arange(n)
    order = np.random.RandomState(SPLIT_SEED).permutation(n)
    return np.sort(order[: n // 10] if split == "calibration" else order[n // 10 :])


def cifar10(split: Split, shape: Any, root: Path) -> Dataset:
    """CIFAR-10 from torchvision's format if present, else from parquet, else downloaded."""
    parquet = root / "cifar10" / f"{'test' if split == 'test' else 'train'}.parquet"
    if parquet.is_file() and not (root / "cifar-10-batches-py").is_dir():
        return _parquet("cifar10", parquet, split)
    return from_torchvision("cifar10", split, root)


def textures(split: Split, shape: Any, root: Path) -> Dataset:
    """Describable Textures from parquet if present, else through torchvision's DTD."""
    parquet = root / "textures" / "test.parquet"
    if parquet.is_file():
        return _parquet("textures", parquet, split)
    from PIL import Image
    from torchvision.datasets import DTD

    source = _obtain("textures", lambda down: DTD(root, split="test", download=down), root)
    size = (64, 64)
    with _torchvision("textures", root):
        pairs = [(np.asarray(p.convert("RGB").resize(size, Image.Resampling.BOX)), y) for p, y in source]
        images, labels = (np.stack(part) for part in zip(*pairs, strict=True))
    provenance = "DTD test split, scaled to 64x64."
    images = images.transpose(0, 3, 1, 2)
    # shuffled: the files are sorted by class, and a run may take the first n
    return make("textures", images, labels, source.classes, provenance, where=root).shuffled()


def _parquet(name: str, path: Path, split: Split) -> Dataset:
    import pyarrow.parquet as pq

    what = f"data set {name!r}: this is not a Hugging Face image parquet"
    expected = "the columns img or image {bytes, path}, and label; pictures of one size"
    with _reading(what, path, expected, AGAIN):
        file = pq.ParquetFile(path, page_checksum_verification=True)
        check_fits_memory(sum(file.metadata.row_group(i).total_byte_size for i in range(file.num_row_groups)))
        table = file.read()
        column = next((c for c in ("img", "image") if c in table.column_names), "img")
        encoded = [row["bytes"] for row in table[column].to_pylist()]
        labels = np.asarray(table["label"])
        class_names = _class_names(table, labels)
        keep = _part_of_training(split, len(encoded))
        pictures = [_decode(encoded[i], f"{path}, row {i}") for i in keep]
        images = np.stack([picture for picture, *_ in pictures]).transpose(0, 3, 1, 2)
    formats = {kind for _, kind, _ in pictures}
    provenance = f"{name}, {split}: {len(keep)} pictures from a parquet of {'/'.join(sorted(formats))} files."
    if all(kind.startswith("JPEG") for kind in formats):
        provenance += " A JPEG copy: lossy, not the original pictures."
    dataset = make(name, images, labels[keep], class_names, provenance, where=path)
    return replace(dataset, codec=_shared(codec for *_, codec in pictures))


def _shared(codecs: Iterable[Jpeg | None]) -> Jpeg | None:
    """The common codec of all images, or None."""
    different = set(codecs)
    return different.pop() if len(different) == 1 else None


def _decode(encoded: bytes, where: str) -> tuple[np.ndarray, str, Jpeg | None]:
    with _reading("cannot decode the picture", where, "a picture that Pillow reads", AGAIN):
        return _pixels(io.BytesIO(encoded))


def _pixels(file: Any) -> tuple[np.ndarray, str, Jpeg | None]:
    """The pixels (height, width, 3) of an image file, its format in words, and its codec if lossy."""
    from PIL import Image

    with Image.open(file) as picture:
        if picture.mode.startswith(("I", "F")):  # Pillow would clip the values
            raise ValueError(f"its values have more than 8 bits (mode {picture.mode})")
        codec = codec_of(picture)
        words = f"JPEG (quality {codec.quality})" if codec else str(picture.format)
        return np.asarray(picture.convert("RGB")), words, codec


def _class_names(table: Any, labels: np.ndarray) -> list[str]:
    metadata = (table.schema.metadata or {}).get(b"huggingface")
    features = json.loads(metadata)["info"]["features"] if metadata else {}
    names = features.get("label", {}).get("names") or numbered(labels)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"the names of its classes are no list of words: {str(names)[:60]}")
    if len(set(names)) < len(names):
        raise ValueError("two of its classes have one name")
    return names


# --- the user's own ----------------------------------------------------------------------------------


def image_folder(path: Path, split: Split) -> Dataset:
    """A folder with one subfolder per class, or with such folders as PATH/test, PATH/train and
    PATH/calibration; classes and channels are those of the test split."""
    from torchvision.datasets import ImageFolder
    from torchvision.datasets.folder import find_classes

    _must_exist(path)
    test = path / "test" if (path / "test").is_dir() else path
    if test == path:
        _check_no_splits(path)
    folder = test if split == "test" else path / split
    if split != "test" and (test == path or not folder.is_dir()):
        raise no_split(f"imagefolder:{path}", split, f"{path / split}/CLASS/ beside {path / 'test'}/CLASS/")
    name = path.resolve().name
    expected, remedy = "one folder a class, with pictures in it", "mend the folder: PATH/CLASS/PICTURE.png"
    with _reading("this is not a folder of pictures by class", folder, expected, remedy):
        source = ImageFolder(str(folder), loader=_read_picture)
        class_names, _ = find_classes(str(test))
        strange = [name for name in source.classes if name not in class_names]
        check_classes(name, split, strange, class_names, folder)
        decoded = [picture for picture, _ in source]
    pictures = [picture for picture, *_ in decoded]
    sizes = {picture.shape for picture in pictures}
    if len(sizes) > 1:
        raise UserError(
            "the pictures of a folder must have one size",
            where=folder,
            expected="one size",
            got=", ".join(f"{w}x{h}" for h, w, _ in sorted(sizes)[:4]),
            remedy="resize them first",
        )
    tested = () if split == "test" else ImageFolder(str(test), loader=_read_picture)
    images = _grey_where_grey(np.stack(pictures).transpose(0, 3, 1, 2), (found[0] for found, _ in tested))
    labels = [class_names.index(source.classes[k]) for k in source.targets]
    dataset = make(name, images, np.asarray(labels), class_names, f"Image folder, {split}.", where=folder)
    return replace(dataset, codec=_shared(codec for *_, codec in decoded))


def _check_no_splits(path: Path) -> None:
    """Raise UserError if the subfolders are splits, which hold folders, rather than classes."""
    names = ("train", "calibration", "val")
    found = [
        name for name in names if (path / name).is_dir() and any(p.is_dir() for p in (path / name).iterdir())
    ]
    if found:
        raise UserError(
            "this folder of pictures has splits, but none that is called test",
            where=path,
            expected="PATH/test/CLASS/PICTURE.png",
            got=", ".join(f"{name}/" for name in found),
            remedy="rename the folder of the pictures to be measured to test/, or name that folder itself",
        )


def _read_picture(path: str) -> tuple[np.ndarray, str, Jpeg | None]:
    expected, remedy = "a picture of 8 bits a value that Pillow reads", "mend this file, or take it away"
    with _reading("cannot decode the picture", path, expected, remedy):
        return _pixels(path)


def parquet(path: Path, split: Split) -> Dataset:
    """A Hugging Face image parquet; for a file named test.parquet the other splits are cut from the
    train.parquet beside it."""
    _must_exist(path)
    train = path.with_name("train.parquet")
    if split != "test" and not (path.name == "test.parquet" and train.is_file()):
        raise no_split(str(path), split, "train.parquet beside a test.parquet")
    name = path.resolve().parent.name if path.name == "test.parquet" else path.stem
    found = _parquet(name, path if split == "test" else train, split)
    class_names = found.class_names if split == "test" else _classes_of_test(path)
    strange = numbered(found.labels.numpy())[len(class_names) :]
    check_classes(name, split, strange, class_names, train)
    images = _grey_where_grey(found.images, () if split == "test" else _pictures_of_test(name, path))
    grey = make(name, images, found.labels, class_names, found.provenance, where=path)
    return replace(grey, codec=found.codec)


def _classes_of_test(path: Path) -> Sequence[str]:
    import pyarrow.parquet as pq

    expected, remedy = "a Hugging Face image parquet with the column label", AGAIN
    with _reading("the labels of the test split cannot be read", path, expected, remedy):
        table = pq.read_table(path, columns=["label"])
        return _class_names(table, np.asarray(table["label"]))


def _pictures_of_test(name: str, path: Path) -> Iterator[Any]:
    yield from _parquet(name, path, "test").images.permute(0, 2, 3, 1)


def _grey_where_grey(images: Any, tested: Iterable[Any] = ()) -> Any:
    """One channel if all images are grey, including those of the test split, ``tested`` (height, width, 3)
    each: all splits have the channels of the test split."""
    grey = (images == images[:, :1]).all() and all((picture == picture[..., :1]).all() for picture in tested)
    return images[:, :1] if grey else images


def npz(path: Path, split: Split) -> Dataset:
    """An .npz with the arrays images and labels, and train_images, train_labels, ... for other splits."""
    _must_exist(path)
    prefix = "" if split == "test" else f"{split}_"
    expected = "an .npz with the arrays images and labels (and train_images, calibration_images, ...)"
    remedy = "write it anew with numpy.savez(FILE, images=..., labels=...)"
    with _reading("cannot read the data set", path, expected, remedy):
        arrays = read_npz(path)
        if split != "test" and f"{prefix}images" not in arrays:
            raise no_split(str(path), split, f"the arrays {prefix}images and {prefix}labels")
        images, labels = arrays[f"{prefix}images"], arrays[f"{prefix}labels"]
        class_names = numbered(arrays["labels"])
    check_classes(path.stem, split, numbered(labels)[len(class_names) :], class_names, path)
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim == 4 and images.shape[1] not in (1, 3) and images.shape[3] in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    return make(path.stem, images, labels, class_names, f"{path.name}, {split}.", where=path)
