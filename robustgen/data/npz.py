"""Arrays of an .npz from anywhere: no pickled object, no name twice, and no more than fits into memory."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np


def room() -> int:
    """Bytes that a file's arrays may take: a quarter of the machine's memory, since they are copied."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4
    except (AttributeError, ValueError, OSError):  # a system that does not say
        return 4 << 30


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file by name; ValueError, or whatever zipfile and numpy raise, for a wrong one.

    What it unpacks to is looked at first: a thousand bytes of zeros become one when they are packed.
    """
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    names = [member.filename for member in members]
    if len(set(names)) < len(names):
        raise ValueError("two of its arrays have one name")
    check_room(sum(member.file_size for member in members))
    with np.load(path, allow_pickle=False) as found:
        return {name: found[name] for name in found.files}


def check_room(size: int) -> None:
    """ValueError where so many bytes are more than there is room for."""
    if size > room():
        raise ValueError(f"it unpacks to {size / 2**30:.1f} GiB, and there is room for {room() / 2**30:.1f}")
