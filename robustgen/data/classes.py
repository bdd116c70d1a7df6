"""Some classes of a data set, and the others as foreign pictures (open-set recognition)."""

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
    """The pictures of the classes ``chosen`` ("0-7", "0,2,5-7"), numbered anew in the order of the whole
    set, as the data set ``<name>:<chosen>``. Raises UserError where these are not classes of it."""
    kept = class_numbers(whole, chosen)
    rows = np.isin(whole.labels.numpy(), kept)
    labels = np.searchsorted(kept, whole.labels.numpy()[rows])
    words = f"{whole.provenance} Of its {len(whole.class_names)} classes {chosen} alone."
    names = [whole.class_names[k] for k in kept]
    made = make(f"{whole.name}:{chosen}", whole.images[rows], labels, names, words)
    return replace(made, codec=whole.codec)


def held_out_classes(whole: Dataset, chosen: str) -> Dataset:
    """The pictures of all other classes, without labels, as the foreign set HELD_OUT."""
    kept = class_numbers(whole, chosen)
    rows = ~np.isin(whole.labels.numpy(), kept)
    words = f"{whole.provenance} The classes beside {chosen}."
    made = make(HELD_OUT, whole.images[rows], np.full(rows.sum(), UNLABELLED), (), words)
    return replace(made, codec=whole.codec, source=HELD_OUT)


def class_numbers(whole: Dataset, chosen: str) -> list[int]:
    """The classes that are meant, rising: two at least, and not all of them."""
    count, found = len(whole.class_names), set()
    for part in chosen.split(","):
        ends = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", part, re.ASCII)
        found |= set(range(int(ends[1]), int(ends[2] or ends[1]) + 1)) if ends else {-1}
    if not found <= set(range(count)) or not 2 <= len(found) < count:
        few = "a data set of three classes or more"
        some = f"two or more of 0 to {count - 1}, but not all, such as {whole.name}:0-{count - 2}"
        raise UserError(
            f"these are not some of the classes of {whole.name!r}", where="the data set's name",
            expected=some if count > 2 else few, got=chosen[:80], remedy="name other classes",
        )  # fmt: skip
    return sorted(found)
