"""Files that appear whole or not at all, and what is said of those that cannot be read or written."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from robustgen.errors import DamagedError, DiskFullError, UserError

STALE = 24 * 3600.0
"""Seconds after which a temporary file is taken for one that a crash left behind."""


@contextmanager
def atomic(path: Path, *, new: bool = False) -> Iterator[Path]:
    """A temporary path that becomes ``path``, whole and on disk, when the block ends well; where ``new``,
    only if there is no such file: else FileExistsError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        if new:
            os.link(temporary, path)
        else:
            temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        if new and path.is_file():
            raise
        raise cannot_write(path, error) from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def cannot_write(path: Path, error: OSError) -> UserError:
    """The error for a file that was not written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFullError(where=path.parent)
    return UserError(
        "cannot write", where=path, got=error.strerror or error,
        remedy="see to the folder and run the same command again: what is finished is kept",
    )  # fmt: skip


def write_bytes(path: Path, content: bytes, *, new: bool = False) -> None:
    """Write a file atomically."""
    with atomic(path, new=new) as temporary:
        temporary.write_bytes(content)


def cannot_read(path: Path, error: OSError) -> UserError:
    """The error for a file that the disk did not give; one that is not there is as good as damaged."""
    kind = DamagedError if isinstance(error, FileNotFoundError) else UserError
    return kind("cannot read the file", where=path, got=error.strerror or error)


def read_bytes(path: Path) -> bytes:
    """A file's content; what the disk does not give is a UserError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise cannot_read(path, error) from None


def append_line(path: Path, line: str) -> None:
    """Add a line to a file, on a line of its own even where a crash cut off the last one."""
    try:
        with path.open("a+b") as file:
            cut_off = file.seek(0, os.SEEK_END) and file.seek(-1, os.SEEK_END) >= 0 and file.read(1) != b"\n"
            file.write((b"\n" if cut_off else b"") + line.encode() + b"\n")
    except OSError as error:
        raise cannot_write(path, error) from None


def write_json(path: Path, content: object, *, new: bool = False) -> None:
    """Write JSON atomically."""
    write_bytes(path, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode(), new=new)


def read_json(path: Path) -> Any:
    """Read JSON; what is none is a DamagedError."""
    content = read_bytes(path)
    try:
        return json.loads(content.decode())
    except ValueError as error:
        raise DamagedError(
            "cannot read the file", where=path, expected="JSON written by robustgen", got=error
        ) from None


def listed(folder: Path) -> list[str]:
    """The names in a folder; none where it is not there."""
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []


def set_aside(path: Path) -> Path:
    """Take a damaged file out of the way, under a name that nothing reads."""
    aside = path.with_name(f"{path.name}.damaged")
    try:
        path.replace(aside)
    except FileNotFoundError:  # another run was faster
        return aside
    except OSError as error:
        raise cannot_write(path, error) from None
    return aside


def remove_stale(folder: Path) -> None:
    """Remove temporary files that a crash left behind, but none that another process may be writing."""
    for path in folder.rglob(".*.tmp"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > STALE:
                path.unlink()
