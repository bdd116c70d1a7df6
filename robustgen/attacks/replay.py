"""A search as the reference's code runs it, for comparison with it: in parity configuration.

One batch in step, in the reference's order, with its counts and its draws, known quirks included; nothing
that users run comes by here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from robustgen.attacks.apgd import SparseAPGD
from robustgen.attacks.search import Found, Search, Start, clean_logits
from robustgen.attacks.square import Square, Squares
from robustgen.attacks.victim import Victim
from robustgen.draws import Draws

WASTED = 3
"""Pictures of normal draws: the reference's APGD draws a start for each of its shrinking balls, unused."""


class ReferenceDraws(Draws):
    """Draws as the reference implementations of attacks make them: from torch's global generator,
    for a whole batch in one go. They belong to the batch, so nothing but comparisons uses them.

    ``left``, (rows,), says which rows there are numbers for: all to begin with. The others get 0.
    """

    def __init__(self, rows: int) -> None:
        self.left = torch.ones(rows, dtype=torch.bool)

    def __len__(self) -> int:
        return len(self.left)

    def uniform(self, *shape: int) -> Tensor:
        """Draws from [0, 1), shape (rows, \\*shape)."""
        return self._spread(torch.rand(int(self.left.sum()), *shape))

    def normal(self, *shape: int) -> Tensor:
        """Draws from N(0, 1), shape (rows, \\*shape)."""
        return self._spread(torch.randn(int(self.left.sum()), *shape))

    def shared(self, *shape: int) -> Tensor:
        """Draws from [0, 1), shape (rows, \\*shape), the same for all rows."""
        return torch.rand(*shape).expand(len(self), *shape)

    def keys(self) -> Tensor:
        """Zeros: a replay has no streams; ``_redraw`` gives the numbers of each step."""
        return torch.zeros(len(self), dtype=torch.long)

    def _spread(self, drawn: Tensor) -> Tensor:
        everyone = torch.zeros(len(self), *drawn.shape[1:])
        everyone[self.left] = drawn
        return everyone


def replay(search: Search[Any], victim: Victim, x: Tensor, y: Tensor, seed: int) -> Found:
    """What ``search`` finds from pictures x (batch, ...) with labels y as the reference would run it.

    Rows stay until the job is over, the last misclassified point counts, and draws come from torch's
    global generator, seeded anew, in the reference's order.
    """
    found = Found.nothing(x)
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
                for _ in range(WASTED):
                    draws.normal(*x.shape[1:])
            while not bool(state.over.all()):
                answer = search.ask(victim, state)
                hit = (answer.logits.argmax(1) != state.y) & search.allowed(state) & ~state.over
                found.note(rows[hit], state.point[hit])
                search.step(state, answer)
                draws.left = ~found.broken[rows].cpu()
                if isinstance(state, Squares):
                    assert isinstance(search, Square)
                    _redraw(search, state, draws)
    return found


def _redraw(search: Square, state: Squares, draws: ReferenceDraws) -> None:
    """Propose by the batch's draws, and end the rows that have left: the others' numbers depend on it."""
    channels = state.x.shape[1]
    place = draws.shared(search.placing)
    signs = draws.shared(channels) if search.threat.norm == "linf" else draws.uniform(channels)
    search.move(state, torch.cat([place, signs], 1).to(state.x))
    state.over = state.over | ~draws.left.to(state.over.device)
