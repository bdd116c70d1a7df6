"""A search run in lockstep as the reference's code would run it, for parity tests; no evaluation uses this.

The whole batch moves together, in the reference's order and with its draws, known quirks included.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from robustgen.attacks.apgd import SparseAPGD
from robustgen.attacks.search import Search, SearchResult, Start, clean_logits
from robustgen.attacks.square import Square, SquareState
from robustgen.attacks.victim import Victim
from robustgen.draws import Draws

UNUSED_STARTS = 3
"""How many starts the reference's APGD draws for its shrinking balls and does not use."""


class ReferenceDraws(Draws):
    """Draws as the reference implementations make them: from torch's global generator, for a whole batch at
    once.

    ``active`` (rows,): which rows draw numbers, at first all of them; the others get 0.
    """

    def __init__(self, rows: int) -> None:
        self.active = torch.ones(rows, dtype=torch.bool)

    def __len__(self) -> int:
        return len(self.active)

    def uniform(self, *shape: int) -> Tensor:
        """Draws from [0, 1), shape (rows, \\*shape)."""
        return self._spread(torch.rand(int(self.active.sum()), *shape))

    def normal(self, *shape: int) -> Tensor:
        """Draws from N(0, 1), shape (rows, \\*shape)."""
        return self._spread(torch.randn(int(self.active.sum()), *shape))

    def shared(self, *shape: int) -> Tensor:
        """Draws from [0, 1), shape (rows, \\*shape), the same for all rows."""
        return torch.rand(*shape).expand(len(self), *shape)

    def keys(self) -> Tensor:
        """Zeros: there are no streams, and ``_redraw`` supplies the numbers of each step."""
        return torch.zeros(len(self), dtype=torch.long)

    def _spread(self, drawn: Tensor) -> Tensor:
        result = torch.zeros(len(self), *drawn.shape[1:])
        result[self.active] = drawn
        return result


def replay(search: Search[Any], victim: Victim, x: Tensor, y: Tensor, seed: int) -> SearchResult:
    """What ``search`` finds from images x (batch, ...) with labels y when run as the reference does.

    Rows stay until the job is over, the last misclassified point counts, and draws come from torch's global
    generator, freshly seeded, in the reference's order.
    """
    found = SearchResult.initial(x)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for job in range(search.jobs):
            rows = (~found.broken).nonzero().squeeze(1)
            if len(rows) == 0:
                break
            clean = clean_logits(search, victim, x[rows])
            draws = ReferenceDraws(len(rows))
            state = search.begin(Start(rows, x[rows], y[rows], clean, torch.full_like(rows, job)), draws)
            if isinstance(search, SparseAPGD) and search.shrinking:
                for _ in range(UNUSED_STARTS):
                    draws.normal(*x.shape[1:])
            while not bool(state.done.all()):
                answer = search.query(victim, state)
                hit = (answer.logits.argmax(1) != state.y) & search.within_budget(state) & ~state.done
                found.add_hits(rows[hit], state.point[hit])
                search.update(state, answer)
                draws.active = ~found.broken[rows].cpu()
                if isinstance(state, SquareState):
                    assert isinstance(search, Square)
                    _redraw(search, state, draws)
    return found


def _redraw(search: Square, state: SquareState, draws: ReferenceDraws) -> None:
    """Make the next proposals from the batch's draws, and end the rows that are broken: they draw no more."""
    channels = state.x.shape[1]
    place = draws.shared(search.n_place_draws)
    signs = draws.shared(channels) if search.threat.norm == "linf" else draws.uniform(channels)
    search.set_proposal(state, torch.cat([place, signs], 1).to(state.x))
    state.done = state.done | ~draws.active.to(state.done.device)
