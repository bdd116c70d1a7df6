"""Atomic writes, and reads and writes whose failures are UserErrors."""

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
"""Age in seconds from which a temporary file counts as left behind by a crash."""


@contextmanager
def atomic(path: Path, *, new: bool = False) -> Iterator[Path]:
    """Yield a temporary path that becomes ``path``, complete and synced to disk, when the block succeeds.

    With ``new``, raises FileExistsError if ``path`` exists then.
    """
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
    except Exception as error:  # the libraries of object stores raise all kinds
        raise cannot_write(path, _as_os_error(error)) from None


def _as_os_error(error: Exception) -> OSError:
    return error if isinstance(error, OSError) else OSError(f"{type(error).__name__}: {error}")


def cannot_write(path: Path, error: OSError) -> UserError:
    """The error for a file that could not be written."""
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
    """The error for a file that could not be read: DamagedError if it does not exist."""
    kind = DamagedError if isinstance(error, FileNotFoundError) else UserError
    return kind("cannot read the file", where=path, got=error.strerror or error)


def read_bytes(path: Path) -> bytes:
    """A file's content. Raises UserError if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise cannot_read(path, error) from None
    except Exception as error:
        if is_remote(path):
            raise cannot_read(path, _as_os_error(error)) from None
        raise


def append_line(path: Path, line: str) -> None:
    """Append a line to a file, on a line of its own even if a crash cut off the last one.

    In an object store the whole object is written again, so that of two writers one may lose its line.
    """
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
    """Read JSON. Raises DamagedError if it is not valid."""
    content = read_bytes(path)
    try:
        return json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise DamagedError(
            "cannot read the file", where=path, expected="JSON written by robustgen", got=error,
            remedy="run 'robustgen report' with this --out again",
        ) from None  # fmt: skip


def list_names(folder: Path) -> list[str]:
    """The names in a folder; none if it does not exist."""
    try:
        return [path.name for path in folder.iterdir()] if is_remote(folder) else os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []


def set_aside(path: Path) -> Path:
    """Rename a damaged file to a hidden name, which pyarrow and pandas skip when they read a folder."""
    aside = path.with_name(f".{path.name}.damaged")
    try:
        move(path, aside) if is_remote(path) else path.replace(aside)
    except FileNotFoundError:  # another run was faster
        return aside
    except OSError as error:
        raise cannot_write(path, error) from None
    return aside


def remove_stale(folder: Path) -> None:
    """Remove temporary files that a crash left behind, but none that another process may still be writing."""
    if is_remote(folder):
        return  # an object has no temporary name
    for path in folder.rglob(".*.tmp"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > STALE:
                path.unlink()
