"""Where chunks are computed: in this process, for now."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Protocol, TypeAlias

from robustgen.errors import unknown_name
from robustgen.store import Chunk

if TYPE_CHECKING:
    from robustgen.worker import Reading

Result: TypeAlias = "Reading | Exception"


class Executor(Protocol):
    """Computes chunks, in any order; a chunk that raises yields its exception, and the rest go on."""

    def run(
        self, worker: Callable[[Chunk], Reading], chunks: Iterable[Chunk]
    ) -> Iterator[tuple[Chunk, Result]]:
        """Yield each chunk with its reading as it is finished."""
        ...


class LocalExecutor:
    """One chunk after the other, in this process."""

    def run(
        self, worker: Callable[[Chunk], Reading], chunks: Iterable[Chunk]
    ) -> Iterator[tuple[Chunk, Result]]:
        for chunk in chunks:
            try:
                result: Result = worker(chunk)
            except Exception as error:
                # Whatever a model or an attack raises costs its chunk, never the finished work.
                result = error
            yield chunk, result


EXECUTORS: dict[str, Callable[[], Executor]] = {"local": LocalExecutor}


def by_name(name: str) -> Executor:
    """The executor of that name."""
    if name not in EXECUTORS:
        raise unknown_name("executor", name, EXECUTORS)
    return EXECUTORS[name]()
