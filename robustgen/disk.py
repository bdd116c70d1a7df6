"""Files that appear whole or not at all, and what is said of those that cannot be read or written."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from robustgen.errors import DamagedError, DiskFullError, UserError
from robustgen.places import is_remote, move, put

STALE = 24 * 3600.0
"""Seconds after which a temporary file is taken for one that a crash left behind."""


@contextmanager
def atomic(path: Path, *, new: bool = False) -> Iterator[Path]:
    """A temporary path that becomes ``path``, whole and on disk, when the block ends well; where ``new``,
    only if there is no such file: else FileExistsError."""
    if is_remote(path):
        with TemporaryDirectory(prefix="robustgen-") as folder:
            yield Path(folder) / path.name
            _put(path, (Path(folder) / path.name).read_bytes(), new)
        return
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
        opened = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)
    except OSError as error:
        if new and path.is_file():
            raise
        raise cannot_write(path, error) from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _put(path: Path, content: bytes, new: bool = False) -> None:
    try:
        put(path, content, new=new)
    except FileExistsError:
        raise
    except Exception as error:  # what an object store's library raises is as varied as these are
        raise cannot_write(path, _as_os_error(error)) from None


def _as_os_error(error: Exception) -> OSError:
    return error if isinstance(error, OSError) else OSError(f"{type(error).__name__}: {error}")


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
    except Exception as error:
        if is_remote(path):
            raise cannot_read(path, _as_os_error(error)) from None
        raise


def append_line(path: Path, line: str) -> None:
    """Add a line to a file, on a line of its own even where a crash cut off the last one. An object is
    written anew: of two that do so at once one line may be lost."""
    if is_remote(path):
        _put(path, (read_bytes(path) if path.exists() else b"") + line.encode() + b"\n")
        return
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
    except (ValueError, RecursionError) as error:
        raise DamagedError(
            "cannot read the file", where=path, expected="JSON written by robustgen", got=error,
            remedy="run 'robustgen report' with this --out again",
        ) from None  # fmt: skip


def listed(folder: Path) -> list[str]:
    """The names in a folder; none where it is not there."""
    try:
        return [path.name for path in folder.iterdir()] if is_remote(folder) else os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []


def set_aside(path: Path) -> Path:
    """Take a damaged file out of the way, under a hidden name: who reads the folder whole, as pyarrow and
    pandas do, passes over it."""
    aside = path.with_name(f".{path.name}.damaged")
    try:
        move(path, aside) if is_remote(path) else path.replace(aside)
    except FileNotFoundError:  # another run was faster
        return aside
    except OSError as error:
        raise cannot_write(path, error) from None
    return aside


def remove_stale(folder: Path) -> None:
    """Remove temporary files that a crash left behind, but none that another process may be writing."""
    if is_remote(folder):
        return  # an object has no temporary name
    for path in folder.rglob(".*.tmp"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > STALE:
                path.unlink()
