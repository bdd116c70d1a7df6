"""Cuts a plan into chunks at multiples of the chunk size; held as intervals, never sample by sample."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from robustgen.errors import UserError
from robustgen.evaluation import Evaluation
from robustgen.store import Chunk


class Shard(NamedTuple):
    """The ``part``-th of ``of`` jobs that share a plan, counted from 1."""

    part: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """From ``i/k``."""
        found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
        shard = cls(*map(int, found.groups())) if found else None
        if shard is None or not 1 <= shard.part <= shard.of:
            raise UserError(
                "this is no shard", where="--shard", expected="i/k with i from 1 to k, such as 3/8", got=text
            )
        return shard


class Chunks:
    """The chunks to compute, in the order of the plan; stored as intervals of 16 bytes each."""

    def __init__(self, parts: Iterable[tuple[str, np.ndarray]]) -> None:
        self.parts = list(parts)

    def __len__(self) -> int:
        return sum(len(intervals) for _, intervals in self.parts)

    def __iter__(self) -> Iterator[Chunk]:
        for name, intervals in self.parts:
            for block in range(0, len(intervals), 4096):  # as Python's own integers, a few at a time
                for start, stop in intervals[block : block + 4096].tolist():
                    yield Chunk(name, start, stop)


def unfinished(
    evaluations: Iterable[Evaluation], finished: dict[str, np.ndarray], size: int, n: int | None,
    shard: Shard | None = None,
) -> Chunks:  # fmt: skip
    """The chunks of each evaluation's first n samples that are still to be computed.

    ``finished`` has the intervals (m, 2) of each evaluation's finished chunks. Of k shards the i-th gets
    every k-th chunk of the whole plan, finished or not: costly and cheap evaluations are shared evenly, and
    k jobs compute each chunk once.
    """
    parts = []
    before = 0
    for evaluation in evaluations:
        stop = min(n or evaluation.size, evaluation.size)
        gaps = _gaps(finished.get(evaluation.name, np.empty((0, 2), np.int64)), stop)
        intervals = _cut(gaps, size)
        if shard is not None:
            intervals = intervals[(before + intervals[:, 0] // size) % shard.of == shard.part - 1]
        parts.append((evaluation.name, intervals))
        before += -(-stop // size)
    return Chunks(parts)


def _gaps(covered: np.ndarray, stop: int) -> np.ndarray:
    """The intervals of [0, stop) that none of the intervals (m, 2) covers."""
    covered = np.minimum(covered[np.argsort(covered[:, 0])], stop)
    reached = np.maximum.accumulate(covered[:, 1])
    gaps = np.stack([np.append(0, reached), np.append(covered[:, 0], stop)], 1)
    return gaps[gaps[:, 0] < gaps[:, 1]]


def _cut(gaps: np.ndarray, size: int) -> np.ndarray:
    """Intervals (m, 2) cut at the multiples of ``size``."""
    first, last = gaps[:, 0] // size, (gaps[:, 1] - 1) // size
    pieces = last - first + 1
    gap = np.repeat(np.arange(len(gaps)), pieces)
    index = np.arange(len(gap)) - np.repeat(np.cumsum(pieces) - pieces, pieces) + first[gap]
    return np.stack([np.maximum(gaps[gap, 0], index * size), np.minimum(gaps[gap, 1], (index + 1) * size)], 1)
