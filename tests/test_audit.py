from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from robustgen.audit import audited_ids, audited_indices


@pytest.mark.parametrize(
    ("survivors", "count"), [(0, 0), (1, 1), (3, 3), (4, 4), (32, 4), (33, 5), (200, 25)]
)
def test_every_eighth_survivor_is_audited_and_four_at_least(survivors: int, count: int) -> None:
    chosen = audited_indices(survivors)
    assert len(set(chosen)) == len(chosen) == count
    assert all(0 <= i < survivors for i in chosen)
    assert chosen == sorted(chosen)


@pytest.mark.parametrize("survivors", [*range(70), 1000])
def test_the_audited_lie_evenly(survivors: int) -> None:
    chosen = audited_indices(survivors)
    assert len(chosen) == min(survivors, max(4, math.ceil(survivors / 8)))
    assert chosen == sorted(set(chosen))
    assert all(0 <= i < survivors for i in chosen)
    if survivors >= 32:
        assert max(b - a for a, b in pairwise(chosen)) <= 8


def test_every_chunk_is_audited_by_itself_and_no_sample_twice() -> None:
    survivors = np.arange(0, 40, 2)
    assert audited_ids(survivors, [(0, 40)]).tolist() == [0, 10, 20, 30]
    assert audited_ids(survivors, [(20, 40), (0, 20)]).tolist() == [0, 4, 10, 14, 20, 24, 30, 34]
    # what a second writer computed again, with other borders, stays as the first one's
    assert audited_ids(survivors, [(0, 20), (10, 26)]).tolist() == [0, 4, 10, 14, 22]
    assert audited_ids(survivors[:0], [(0, 40)]).tolist() == []
