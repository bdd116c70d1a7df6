"""Arrays of an untrusted .npz: no pickled objects, no duplicate names, and no more than fits into memory."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np


def memory_limit() -> int:
    """How many bytes the arrays of a file may take: a quarter of the machine's memory, as they are copied."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4
    except (AttributeError, ValueError, OSError):  # a system that does not say
        return 4 << 30


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file by name; ValueError, or whatever zipfile and numpy raise, for an invalid file.

    The uncompressed size is checked first: zeros compress a thousandfold.
    """
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    names = [member.filename for member in members]
    if len(set(names)) < len(names):
        raise ValueError("two of its arrays have one name")
    check_fits_memory(sum(member.file_size for member in members))
    with np.load(path, allow_pickle=False) as found:
        return {name: found[name] for name in found.files}


def check_fits_memory(size: int) -> None:
    """Raise ValueError if ``size`` bytes exceed ``memory_limit``."""
    limit = memory_limit()
    if size > limit:
        raise ValueError(f"it unpacks to {size / 2**30:.1f} GiB, and there is room for {limit / 2**30:.1f}")
