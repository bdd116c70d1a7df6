"""The published CIFAR-10-C (https://zenodo.org/records/2535967), read from its files in the data root.

<type>.npy holds the corrupted test split at severities 1 to 5, uint8 (5 n, height, width, 3); labels.npy the
labels of all five.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from robustgen.classifiers.base import Classifier
from robustgen.draws import Draws
from robustgen.errors import UserError
from robustgen.perturb import Perturbation, Perturbed
from robustgen.places import cache_folder

FOLDER = "CIFAR-10-C"
BLOCKS = 5
MD5 = {
    "brightness": "0a81ef75e0b523c3383219c330a85d48",
    "contrast": "3c8262171c51307f916c30a3308235a8",
    "defocus_blur": "7d1322666342a0702b1957e92f6254bc",
    "elastic_transform": "9421657c6cd452429cf6ce96cc412b5f",
    "fog": "7b397314b5670f825465fbcd1f6e9ccd",
    "frost": "31f6ab3bce1d9934abfb0cc13656f141",
    "gaussian_blur": "c33370155bc9b055fb4a89113d3c559d",
    "gaussian_noise": "ecaf8b9a2399ffeda7680934c33405fd",
    "glass_blur": "7361fb4019269e02dbf6925f083e8629",
    "impulse_noise": "2090e01c83519ec51427e65116af6b1a",
    "jpeg_compression": "2b9cc4c864e0193bb64db8d7728f8187",
    "labels": "c439b113295ed5254878798ffe28fd54",
    "motion_blur": "fffa5f852ff7ad299cfe8a7643f090f4",
    "pixelate": "0f14f7e2db14288304e1de10df16832f",
    "saturate": "1cfae0964219c5102abbb883e538cc56",
    "shot_noise": "3a7239bb118894f013d9bf1984be7f11",
    "snow": "bb238de8555123da9c282dea23bd6e55",
    "spatter": "8a5a3903a7f8f65b59501a6093b4311e",
    "speckle_noise": "ef00b87611792b00df09c0b0237a1e30",
    "zoom_blur": "6ea8e63f1c5cdee1517533840641641b",
}
"""md5 of the published files, by name."""


class PublishedFile(NamedTuple):
    """The published file of a type. None without a ``reason``: it is not in the data root; with one: it does
    not fit the data."""

    file: Path | None
    reason: str | None = None


def find_published(type_: str, root: Path, labels: Tensor) -> PublishedFile:
    """The published file of a type, for the test split with these labels (n,).

    UserError if the md5 of a file is not the published one.
    """
    folder = root / FOLDER
    file, named = folder / f"{type_}.npy", folder / "labels.npy"
    if not file.is_file() or not named.is_file():
        return PublishedFile(None)
    check_md5(named)
    blocks = np.load(named, mmap_mode="r")
    if len(blocks) != BLOCKS * len(labels) or not np.array_equal(blocks[: len(labels)], labels.numpy()):
        return PublishedFile(
            None,
            "the published CIFAR-10-C goes with CIFAR-10's own test split, and the pictures at hand are "
            "fewer or in another order; they were corrupted here instead",
        )
    check_md5(file)
    return PublishedFile(file)


class PublishedCorruption(Perturbation):
    """The published images of a type at a severity, by sample id."""

    reference = "Hendrycks and Dietterich 2019, arXiv:1903.12261; CIFAR-10-C as published"

    def __init__(self, file: Path, severity: int) -> None:
        self.file, self.severity = file, severity
        self.name = f"{file.stem}-{severity}"

    def __call__(self, model: Classifier, x: Tensor, y: Tensor, draws: Draws) -> Perturbed:
        pictures = np.load(self.file, mmap_mode="r")
        expected = tuple(x.shape[i] for i in (2, 3, 1))
        if pictures.shape[1:] != expected or pictures.dtype != np.uint8:
            raise UserError(
                "the published pictures do not fit this data set",
                where=self.file,
                expected=f"uint8 pictures of shape {expected}",
                got=f"{pictures.dtype} of shape {pictures.shape[1:]}",
            )
        first = (self.severity - 1) * (len(pictures) // BLOCKS)
        chosen = torch.from_numpy(pictures[first + draws.sample_ids]).permute(0, 3, 1, 2)
        return Perturbed((chosen.float() / 255).contiguous().to(x.device))


@cache
def check_md5(file: Path) -> None:
    """Raise UserError unless the file's md5 is the published one.

    Results are cached, by size and modification time, in the user's cache folder.
    """
    status = file.stat()
    key = f"{file.resolve()} {status.st_size} {status.st_mtime_ns}"
    memory = cache_folder() / "md5.json"
    known = _remembered(memory)
    if key not in known:
        with file.open("rb") as stream:
            known[key] = hashlib.file_digest(stream, "md5").hexdigest()
        try:
            memory.parent.mkdir(parents=True, exist_ok=True)
            memory.write_text(json.dumps(known, indent=1), encoding="utf-8")
        except OSError:  # no writable cache folder: computed again next time
            pass
    if known[key] != MD5[file.stem]:
        raise UserError(
            "this is not the published file of CIFAR-10-C",
            where=file,
            expected=f"md5 {MD5[file.stem]}",
            got=known[key],
            remedy=f"fetch it again from https://zenodo.org/records/2535967, or remove {FOLDER}",
        )


def _remembered(memory: Path) -> dict[str, str]:
    try:
        found = json.loads(memory.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
