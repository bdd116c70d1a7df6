from __future__ import annotations

import pytest

from robustgen.audit import audited


@pytest.mark.parametrize(
    ("survivors", "count"), [(0, 0), (1, 1), (3, 3), (4, 4), (32, 4), (33, 5), (200, 25)]
)
def test_every_eighth_survivor_is_audited_and_four_at_least(survivors: int, count: int) -> None:
    chosen = audited(survivors)
    assert len(set(chosen)) == len(chosen) == count
    assert all(0 <= i < survivors for i in chosen)
    assert chosen == sorted(chosen)
