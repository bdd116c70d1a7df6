"""Chunks are cut at multiples of their size, fill the gaps, and are shared among shards."""

from __future__ import annotations

import random
import tracemalloc

import numpy as np
import pytest

from robustgen.chunks import Shard, unfinished
from robustgen.errors import UserError
from robustgen.evaluation import Evaluation
from robustgen.perturb import Identity
from robustgen.store import Chunk


def evaluation(size: int, name: str = "clean") -> Evaluation:
    return Evaluation(name, "clean", "digits", "test", size, {}, perturbation=Identity())


def finished(*intervals: tuple[int, int], name: str = "clean") -> dict[str, np.ndarray]:
    return {name: np.array(intervals, np.int64).reshape(-1, 2)}


def test_chunks_fill_the_gaps_at_multiples_of_their_size():
    whole = unfinished([evaluation(40)], {}, 16, None)
    assert list(whole) == [Chunk("clean", 0, 16), Chunk("clean", 16, 32), Chunk("clean", 32, 40)]
    assert len(whole) == 3
    done = finished((16, 20), (0, 16)) | finished((0, 40), name="other")
    assert list(unfinished([evaluation(40)], done, 16, 36)) == [
        Chunk("clean", 20, 32),
        Chunk("clean", 32, 36),
    ]
    assert list(unfinished([evaluation(40)], done, 16, 10)) == []


@pytest.mark.parametrize("seed", range(40))
def test_what_is_left_is_what_no_finished_chunk_covers(seed: int):
    chance = random.Random(seed)
    size, n, total = chance.randint(1, 20), chance.choice([None, chance.randint(1, 250)]), 200
    done = [
        (a, a + chance.randint(1, 40)) for a in (chance.randrange(total) for _ in range(chance.randrange(9)))
    ]
    found = list(unfinished([evaluation(total)], finished(*done), size, n))
    wanted = set(range(min(n or total, total))) - {i for a, b in done for i in range(a, b)}
    assert [i for _, a, b in found for i in range(a, b)] == sorted(wanted)
    assert all(a // size == (b - 1) // size for _, a, b in found)


@pytest.mark.parametrize("of", [1, 3, 7])
def test_shards_are_disjoint_and_together_the_plan_whatever_is_finished(of: int):
    several = [evaluation(40), evaluation(8, "b"), evaluation(100, "c")]
    whole = list(unfinished(several, {}, 16, None))
    parts = []
    for part in range(1, of + 1):
        done = finished(*((c.start, c.stop) for c in parts if c.evaluation == "clean"))  # by earlier jobs
        mine = list(unfinished(several, done, 16, None, Shard(part, of)))
        assert mine == list(unfinished(several, {}, 16, None, Shard(part, of)))
        assert abs(len(mine) - len(whole) / of) < 1
        parts += mine
    assert sorted(parts) == sorted(whole)


def test_a_million_chunks_take_a_few_bytes_each():
    tracemalloc.start()
    try:
        found = unfinished([evaluation(64_000_000)], {}, 64, None)
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(found) == 1_000_000
    assert next(iter(found)) == Chunk("clean", 0, 64)
    assert taken < 40 * len(found)


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "a/b", "1/0", "-1/2", "1/2/3"])
def test_what_is_no_shard_is_refused(text: str):
    with pytest.raises(UserError, match="no shard"):
        Shard.parse(text)
    assert Shard.parse("3/8") == Shard(3, 8)
