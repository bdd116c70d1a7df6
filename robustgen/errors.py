"""Errors written for users: what is wrong, where, what was expected, what was found, and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LISTED = {
    "model": "models",
    "protocol": "protocols",
    "attack": "attacks",
    "corruption": "corruptions",
    "data set": "data",
}
"""What 'robustgen list' can show, by the word that messages use for one of them."""


class UserError(Exception):
    """A mistake that the user can correct; the command line prints it without a traceback and exits with 2.

    Args:
        what: what is wrong.
        where: the file, key or option.
        expected: what would have been right.
        got: what was found instead.
        remedy: what to do about it.
    """

    def __init__(
        self,
        what: str,
        *,
        where: object = None,
        expected: object = None,
        got: object = None,
        remedy: str | None = None,
    ) -> None:
        self.what = what
        self.details: dict[str, object] = {"where": where, "expected": expected, "got": got, "remedy": remedy}
        super().__init__(what)

    def __str__(self) -> str:
        lines = [f"  {key + ':':<10}{value}" for key, value in self.details.items() if value is not None]
        return "\n".join([self.what, *lines])

    def fill_in(self, **details: object) -> None:
        """Set the details that are still None, such as those that only a caller knows."""
        self.details |= {key: value for key, value in details.items() if self.details[key] is None}

    def __reduce__(self) -> tuple[object, ...]:
        # A worker process pickles it; the default would drop the keyword arguments.
        return _rebuild, (type(self), self.what, self.details)


def _rebuild(cls: type[UserError], what: str, details: dict[str, object]) -> UserError:
    return cls(what, **details)  # type: ignore[arg-type]


def describe_error(error: BaseException, most: int = 200) -> str:
    """``Type: message``: its first line, at most ``most`` characters; the type alone without a message."""
    return ": ".join([type(error).__name__, *str(error).splitlines()[:1]])[:most]


class UnsupportedError(UserError):
    """A model, data set or evaluation does not support what was asked of it."""


class DiskFullError(UserError):
    """The disk is full: nothing more can be computed, but what is finished is kept."""

    def __init__(self, what: str = "the disk is full", **details: object) -> None:
        remedy = "free some room and run the same command again: what is finished is kept"
        super().__init__(what, **({"remedy": remedy} | details))  # type: ignore[arg-type]


class DamagedError(UserError):
    """A stored file is not as it was written, so nothing in it is used."""


class UnknownNameError(UserError):
    """An unknown name: most likely a typing mistake, not something that happens to be missing."""


def unknown_name(
    kind: str, name: str, known: Iterable[str], *, where: object = None, also: str = ""
) -> UnknownNameError:
    """The error for an unknown name, with the most similar known ones as suggestions.

    ``also``: what else would have been accepted, such as a path.
    """
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if near:
        remedy = f"did you mean {' or '.join(near)}?"
    elif kind in LISTED:
        remedy = f"'robustgen list {LISTED[kind]}' shows what there is"
    else:
        remedy = "choose one of these"
    return UnknownNameError(
        f"there is no {kind} named {name!r}",
        where=where,
        expected=f"one of: {', '.join(known) or '(none found)'}{also and f'; or {also}'}",
        got=name,
        remedy=remedy,
    )


def missing_package(package: str, extra: str, needed_for: str) -> UserError:
    """The error for an optional package that is not installed."""
    return UserError(
        f"{needed_for} needs the package {package!r}, which is not installed",
        remedy=f"pip install 'robustgen[{extra}]'",
    )
