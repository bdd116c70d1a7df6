"""Where results are stored: a local folder, or a URL of an object store such as s3://bucket/folder.

A URL is used like a path (universal_pathlib over fsspec). Only writing differs: a local file is renamed when
it is complete, an object appears with a single PUT.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

from robustgen.errors import UserError, missing_package


def cache_folder() -> Path:
    """The user's cache folder for robustgen: files that can be downloaded or computed again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "robustgen"


def as_path(text: str | Path) -> Path:
    """A path or URL as a Path; a URL becomes an object that behaves like one (see ``is_remote``)."""
    if "://" not in str(text):
        return Path(text)
    try:
        from upath import UPath
    except ImportError:
        raise missing_package("universal_pathlib", "s3", f"the address {text!r}") from None
    try:
        # listings that are kept would hide what others have written since
        return cast(Path, UPath(str(text), use_listings_cache=False))
    except ImportError:
        raise missing_package("s3fs", "s3", f"the address {text!r}") from None
    except ValueError as error:
        raise UserError(
            "unknown kind of address",
            where=text,
            expected="a folder, or s3://BUCKET/FOLDER",
            got=error,
        ) from None


def is_remote(path: Path) -> bool:
    """Whether a path is in an object store."""
    return not isinstance(path, Path)


def relative_path(path: Path, folder: Path) -> str:
    """``path`` relative to ``folder``; absolute if only one of them is in an object store."""
    if not is_remote(path) and not is_remote(folder):
        return Path(os.path.relpath(path, folder)).as_posix()
    if is_remote(path) and is_remote(folder) and path.is_relative_to(folder):
        return path.relative_to(folder).as_posix()
    return display_path(path)


def resolve_path(folder: Path, text: str) -> Path:
    """The path that ``relative_path`` made relative to ``folder``."""
    return as_path(text) if "://" in text or Path(text).is_absolute() else folder / text


def move(path: Path, target: Path) -> None:
    """Rename an object."""
    remote = cast(Any, path)
    remote.fs.mv(remote.path, cast(Any, target).path)


def put(path: Path, content: bytes, *, new: bool = False) -> None:
    """Write an object with a single PUT; with ``new``, FileExistsError if it exists."""
    remote = cast(Any, path)
    remote.fs.pipe_file(remote.path, content, mode="create" if new else "overwrite")


def display_path(path: Path) -> str:
    """An absolute path, or a URL, to print."""
    return str(path if is_remote(path) else path.resolve())
