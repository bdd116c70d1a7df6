"""Where chunks are computed: in this process, or on the machines of a Ray cluster (cluster.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar

import torch

from robustgen.chunks import Chunks
from robustgen.errors import unknown_name
from robustgen.job import ModelJob, Result
from robustgen.store import Chunk, RunStore

T = TypeVar("T")


class Executor(Protocol):
    """Has chunks computed and stored, in any order; a chunk that raises yields ``Failed``, and the rest go
    on."""

    def has_gpu(self) -> bool:
        """Whether there is a GPU where chunks are computed."""
        ...

    def call(self, function: Callable[..., T], *arguments: object) -> T:
        """Call a function where chunks are computed."""
        ...

    def run(self, job: ModelJob, store: RunStore, chunks: Chunks) -> Iterator[tuple[Chunk, Result]]:
        """Yield each chunk as it finishes. Raises UserError if nothing can be computed or stored."""
        ...


class LocalExecutor:
    """One chunk after the other, in this process."""

    def has_gpu(self) -> bool:
        return torch.cuda.is_available()

    def call(self, function: Callable[..., T], *arguments: object) -> T:
        return function(*arguments)

    def run(self, job: ModelJob, store: RunStore, chunks: Chunks) -> Iterator[tuple[Chunk, Result]]:
        if not len(chunks):
            return
        compute = job.start_worker(store)
        for chunk in chunks:
            yield chunk, compute(chunk)


def _ray() -> Executor:
    from robustgen.cluster import RayExecutor

    return RayExecutor()


EXECUTORS: dict[str, Callable[[], Executor]] = {"local": LocalExecutor, "ray": _ray}


def by_name(name: str) -> Executor:
    """The executor of that name. Raises UserError for an unknown name."""
    if name not in EXECUTORS:
        raise unknown_name("executor", name, EXECUTORS)
    return EXECUTORS[name]()
