from __future__ import annotations

import numpy as np
import torch
from scipy import stats

from robustgen.draws import Draws, uniform_at


def test_a_sample_draws_the_same_numbers_in_any_batch() -> None:
    def both(ids: torch.Tensor) -> torch.Tensor:
        draws = Draws(3, "pgd-linf-0.15", ids)
        return torch.cat([draws.uniform(2, 5), draws.normal(2, 5)], 1)

    whole = both(torch.arange(100))
    order = torch.randperm(100)
    assert torch.equal(both(order), whole[order])
    for rows in (torch.tensor([7]), torch.arange(33, 90)):
        assert torch.equal(both(rows), whole[rows])


def test_draws_depend_on_seed_scope_sample_and_turn() -> None:
    first = Draws(0, "a", torch.arange(4))
    one, two = first.uniform(50), first.uniform(50)
    seen = [one, two, Draws(1, "a", torch.arange(4)).uniform(50), Draws(0, "b", torch.arange(4)).uniform(50)]
    rows = torch.cat(seen)
    assert len(torch.unique(rows)) == rows.numel()
    assert torch.equal(Draws(0, "a", torch.arange(4)).uniform(100), torch.cat([one, two], 1))


def test_draws_are_distributed_as_they_say() -> None:
    draws = Draws(0, "moments", torch.arange(2000))
    uniform, normal = draws.uniform(10, 10), draws.normal(10, 10)
    assert uniform.dtype == normal.dtype == torch.float32
    assert float(uniform.min()) >= 0
    assert float(uniform.max()) < 1
    assert stats.kstest(uniform.flatten().numpy(), "uniform").pvalue > 1e-3
    assert stats.kstest(normal.flatten().numpy(), "norm").pvalue > 1e-3
    # neither neighbouring samples nor neighbouring draws know of each other: |r| < 5 / sqrt(n)
    for a, b in ((uniform[1:], uniform[:-1]), (uniform[..., 1:], uniform[..., :-1])):
        r = np.corrcoef(a.flatten().numpy(), b.flatten().numpy())[0, 1]
        assert abs(r) < 5 / a.numel() ** 0.5


def test_the_integer_belongs_to_the_batch() -> None:
    ids = torch.arange(64)
    assert Draws(0, "a", ids).integer() == Draws(0, "a", ids).integer()
    others = [Draws(1, "a", ids), Draws(0, "b", ids), Draws(0, "a", ids[:32]), Draws(0, "a", ids + 64)]
    integers = {Draws(0, "a", ids).integer(), *(other.integer() for other in others)}
    assert len(integers) == 5
    assert all(0 <= i < 2**32 for i in integers), "numpy's legacy seed takes 32 bits"


def test_keys_lead_to_the_draws_that_are_left() -> None:
    ids = torch.arange(50)
    whole = Draws(3, "square", ids).uniform(40)
    draws = Draws(3, "square", ids)
    draws.uniform(2, 5)
    keys = draws.keys()
    assert torch.equal(uniform_at(keys, torch.zeros_like(keys), 30), whole[:, 10:])
    apart = uniform_at(keys, ids % 20, 10)  # every row at its own place
    for row in ids:
        first = 10 + int(row) % 20
        assert torch.equal(apart[row], whole[row, first : first + 10])


def test_places_are_streams_of_their_own() -> None:
    draws = Draws(0, "a", torch.arange(6))
    rows = torch.tensor([4, 1])
    streams = [
        draws.at(rows),
        *(draws.at(rows, i) for i in range(3)),
        draws.at(rows, 0, 0),
        draws.at(rows, 0, 1),
    ]
    streams += [draws.at(rows, 1, 0), Draws(1, "a", rows).at(torch.arange(2), 1)]
    drawn = torch.cat([stream.uniform(50) for stream in streams])
    assert len(torch.unique(drawn)) == drawn.numel()
    # without a place they are the samples' own
    assert torch.equal(drawn[:2], Draws(0, "a", torch.tensor([4, 1])).uniform(50))


def test_a_place_is_the_same_whatever_was_drawn_and_whoever_is_beside() -> None:
    rows, jobs = torch.tensor([5, 0, 3]), torch.tensor([2, 0, 7])
    wanted = Draws(0, "a", torch.arange(6)).at(rows, jobs, 4).normal(3, 2)
    used = Draws(0, "a", torch.arange(6))
    used.uniform(17)
    assert torch.equal(used.at(rows, jobs, 4).normal(3, 2), wanted)
    for k in range(3):
        alone = Draws(0, "a", rows[k : k + 1]).at(torch.tensor([0]), int(jobs[k]), 4)
        assert torch.equal(alone.normal(3, 2)[0], wanted[k])
    twice = Draws(0, "a", torch.arange(6)).at(rows).at(torch.arange(3), jobs).at(torch.arange(3), 4)
    assert torch.equal(twice.normal(3, 2), wanted)


def test_streams_of_neighbouring_places_do_not_know_of_each_other() -> None:
    draws = Draws(0, "a", torch.arange(200))
    rows = torch.arange(200)
    drawn = torch.stack([draws.at(rows, place).uniform(100) for place in range(5)])
    assert stats.kstest(drawn.flatten().numpy(), "uniform").pvalue > 1e-3
    for a, b in ((drawn[1:], drawn[:-1]), (drawn[1:, 1:], drawn[:-1, :-1]), (drawn[1:, :-1], drawn[:-1, 1:])):
        r = np.corrcoef(a.flatten().numpy(), b.flatten().numpy())[0, 1]
        assert abs(r) < 5 / a.numel() ** 0.5


def test_what_the_reference_shares_belongs_to_a_sample_here() -> None:
    ids = torch.arange(4)
    shared = Draws(0, "a", ids).shared(3)
    assert torch.equal(shared, Draws(0, "a", ids).uniform(3))
    assert len(torch.unique(shared)) == 12
