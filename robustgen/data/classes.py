"""Restricts a data set to some classes; the others are foreign (open-set recognition)."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np

from robustgen.data.dataset import Dataset, make
from robustgen.errors import UserError
from robustgen.types import UNLABELLED

HELD_OUT = "held-out"
SUMMARY = "the classes that DATA:CLASSES leaves out, such as 8 and 9 of digits:0-7"


def keep_classes(whole: Dataset, chosen: str) -> Dataset:
    """The images of the classes ``chosen`` ("0-7", "0,2,5-7"), renumbered from 0, as ``<name>:<chosen>``."""
    kept = class_numbers(whole, chosen)
    rows = np.isin(whole.labels.numpy(), kept)
    labels = np.searchsorted(kept, whole.labels.numpy()[rows])
    words = f"{whole.provenance} Of its {len(whole.class_names)} classes {chosen} alone."
    names = [whole.class_names[k] for k in kept]
    made = make(f"{whole.name}:{chosen}", whole.images[rows], labels, names, words)
    return replace(made, codec=whole.codec)


def held_out_classes(whole: Dataset, chosen: str) -> Dataset:
    """The images of all classes but ``chosen``, unlabelled, as the foreign set HELD_OUT."""
    kept = class_numbers(whole, chosen)
    rows = ~np.isin(whole.labels.numpy(), kept)
    words = f"{whole.provenance} The classes beside {chosen}."
    made = make(HELD_OUT, whole.images[rows], np.full(rows.sum(), UNLABELLED), (), words)
    return replace(made, codec=whole.codec, source=HELD_OUT)


def class_numbers(whole: Dataset, chosen: str) -> list[int]:
    """The sorted class numbers of ``chosen``; UserError unless they are at least two and not all classes."""
    count, found = len(whole.class_names), set()
    for part in chosen.split(","):
        ends = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", part, re.ASCII)
        found |= set(range(int(ends[1]), int(ends[2] or ends[1]) + 1)) if ends else {-1}
    if not found <= set(range(count)) or not 2 <= len(found) < count:
        too_few = "a data set of three classes or more"
        some = f"two or more of 0 to {count - 1}, but not all, such as {whole.name}:0-{count - 2}"
        raise UserError(
            f"these are not a selection of the classes of {whole.name!r}", where="the data set's name",
            expected=some if count > 2 else too_few, got=chosen[:80], remedy="name other classes",
        )  # fmt: skip
    return sorted(found)
