"""Where results lie: a folder of this machine, or a URL of an object store such as s3://bucket/folder.

A URL is walked like a path (universal_pathlib over fsspec). What differs is writing: a local file gets its
name when it is whole, an object appears with its one PUT.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

from robustgen.errors import UserError, missing_package


def cache_folder() -> Path:
    """Where this user's programs keep what can be made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "robustgen"


def place(text: str | Path) -> Path:
    """The path that a person means by ``--out``: a URL walks like a Path, and is none of this machine's."""
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
            "there is no such kind of place",
            where=text,
            expected="a folder, or s3://BUCKET/FOLDER",
            got=error,
        ) from None


def is_remote(path: Path) -> bool:
    """Whether a path is of an object store."""
    return not isinstance(path, Path)


def relative(path: Path, folder: Path) -> str:
    """How ``path`` is found from ``folder``; in whole where only one is of an object store."""
    if not is_remote(path) and not is_remote(folder):
        return Path(os.path.relpath(path, folder)).as_posix()
    if is_remote(path) and is_remote(folder) and path.is_relative_to(folder):
        return path.relative_to(folder).as_posix()
    return shown(path)


def within(folder: Path, text: str) -> Path:
    """The path that ``relative`` wrote."""
    return place(text) if "://" in text or Path(text).is_absolute() else folder / text


def move(path: Path, target: Path) -> None:
    """Give an object another name."""
    remote = cast(Any, path)
    remote.fs.mv(remote.path, cast(Any, target).path)


def put(path: Path, content: bytes, *, new: bool = False) -> None:
    """Write an object by one PUT; where ``new``, FileExistsError if there is one."""
    remote = cast(Any, path)
    remote.fs.pipe_file(remote.path, content, mode="create" if new else "overwrite")


def shown(path: Path) -> str:
    """A path for people, from wherever they read it."""
    return str(path if is_remote(path) else path.resolve())
