"""How a search for adversarial pictures runs over a batch: row by row, each at its own step.

A search is a loop for one picture: ask the model about a point, take the next point. Rows that are
broken, or that have spent their budget, leave at once and others take their place, so the model is
always asked about as many points as it likes best. Since a row's way depends on nothing but its
own picture and draws, what it finds does not depend on who its neighbours are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import NamedTuple, Self

import torch
from torch import Tensor

from robustgen.attacks.losses import margin
from robustgen.attacks.victim import Answer, Victim
from robustgen.draws import Draws, ReferenceDraws
from robustgen.errors import UserError


@dataclass
class State:
    """Rows of a search; every field has them as its first dimension.

    ``row``: place in the batch; ``x``, ``y``: clean picture and label; ``clean``: the model's logits
    there; ``job``: which restart or target class; ``step``: how many points were asked about in this
    job; ``point``: the next one; ``over``: whether the job's budget is spent.
    """

    row: Tensor
    x: Tensor
    y: Tensor
    clean: Tensor
    job: Tensor
    step: Tensor
    point: Tensor
    over: Tensor

    def __len__(self) -> int:
        return len(self.row)

    def take(self, rows: Tensor) -> Self:
        """Some rows, by mask or index."""
        return replace(self, **{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    def join(self, other: Self) -> Self:
        """These rows, then the other's."""
        both = {f.name: torch.cat([getattr(self, f.name), getattr(other, f.name)]) for f in fields(self)}
        return replace(self, **both)


class Start(NamedTuple):
    """Rows whose next job is to begin; fields as of ``State``."""

    row: Tensor
    x: Tensor
    y: Tensor
    clean: Tensor
    job: Tensor

    def fields(self) -> dict[str, Tensor]:
        """What a new State takes over as it is, its counters at 0."""
        zeros = torch.zeros_like(self.job)
        return {**self._asdict(), "step": zeros, "over": zeros.bool()}


class Search(ABC):
    """One attack as a loop for one picture. ``jobs``: how often it starts anew from the clean picture,
    with other draws or another target class, while the picture is not broken."""

    jobs: int = 1
    discarded: int = 0
    """How many pictures of normal draws the reference's code makes after ``begin`` and does not use."""

    @abstractmethod
    def begin(self, start: Start, draws: Draws) -> State:
        """The state before the first question; ``draws`` are streams of these rows and jobs."""

    @abstractmethod
    def ask(self, victim: Victim, state: State) -> Answer:
        """Ask about ``state.point``: the one call of the model in a step."""

    @abstractmethod
    def step(self, state: State, answer: Answer) -> None:
        """Take in the answer: move ``state.point``, count ``state.step``, set ``state.over``."""

    def allowed(self, state: State) -> Tensor:
        """Whether ``state.point`` lies within the budget, (rows,): true of every point of most attacks."""
        return torch.ones_like(state.over)

    def redraw(self, state: State, draws: ReferenceDraws) -> None:
        """For ``replay``, after a step: take ``state.point`` from the reference's draws instead, and end
        the rows that ``draws`` says have left. Nothing to do for a search that draws in ``begin`` alone."""
        return


@dataclass
class Found:
    """What a search found for each sample of a batch.

    ``images``: the picture, the clean one where there is none; ``broken``: whether the model takes it
    for something else. Of a stochastic model no single answer is believed: there the point of highest
    ``margin`` is kept, by the mean over its draws, and is broken where that margin is positive.
    """

    images: Tensor
    broken: Tensor
    margin: Tensor

    @classmethod
    def nothing(cls, x: Tensor) -> Found:
        """Before a search from pictures x."""
        low = torch.full((len(x),), -torch.inf, device=x.device)
        return cls(x.clone(), torch.zeros_like(low, dtype=torch.bool), low)

    def note(self, rows: Tensor, points: Tensor) -> None:
        """These points break the samples ``rows``."""
        self.images[rows] = points
        self.broken[rows] = True

    def weigh(self, rows: Tensor, points: Tensor, margins: Tensor) -> None:
        """Keep the points whose margin is higher than any before."""
        better = margins > self.margin[rows]
        rows = rows[better]
        self.images[rows], self.margin[rows] = points[better], margins[better].to(self.margin)
        self.broken[rows] = self.margin[rows] > 0


def run(
    search: Search, victim: Victim, x: Tensor, y: Tensor, draws: Draws, *, width: int | None = None
) -> Found:
    """Search from pictures x (batch, ...) with labels y, at most ``width`` (None: all) at a time.

    Raises UserError where the model's logits are no numbers.
    """
    found = Found.nothing(x)
    stochastic = victim.model.stochastic
    everyone = torch.arange(len(x), device=x.device)
    width = width or len(x)
    with victim.serving(everyone):
        clean = victim.logits(x).logits

    def begin(rows: Tensor, job: Tensor) -> State:
        start = Start(rows, x[rows], y[rows], clean[rows], job)
        return search.begin(start, draws.at(rows, job))

    waiting = everyone[width:]
    state = begin(everyone[:width], torch.zeros_like(everyone[:width]))
    while len(state):
        with victim.serving(state.row):
            answer = search.ask(victim, state)
        _check(answer)
        if stochastic:
            right = search.allowed(state).nonzero().squeeze(1)
            values = margin(answer.logits, state.y)[right]
            found.weigh(state.row[right], state.point[right], values)
        else:
            _note_hits(found, search, victim, state, answer)
        search.step(state, answer)
        # The mean of a stochastic model's draws may go on rising where it is wrong already.
        gone = torch.zeros_like(state.over) if stochastic else found.broken[state.row]
        ended = gone | state.over
        if bool(ended.any()):
            again = ended & ~found.broken[state.row] & (state.job + 1 < search.jobs)
            rows, job = state.row[again], state.job[again] + 1
            state = state.take(~ended)
            room = width - len(state) - len(rows)
            rows, job = torch.cat([rows, waiting[:room]]), torch.cat([job, torch.zeros_like(waiting[:room])])
            waiting = waiting[room:]
            if len(rows):
                state = state.join(begin(rows, job))
    return found


def _check(answer: Answer) -> None:
    if not bool(torch.isfinite(answer.logits).all()):
        raise UserError(
            "the model returned NaN or infinite logits under attack",
            expected="numbers everywhere in the box", remedy="'robustgen check MODEL' says more",
        )  # fmt: skip


def _note_hits(found: Found, search: Search, victim: Victim, state: State, answer: Answer) -> None:
    hit = (answer.logits.argmax(1) != state.y) & search.allowed(state)
    if bool(hit.any()):
        at = hit.nonzero().squeeze(1)
        with victim.serving(state.row[at]):
            at = at[victim.confirm(state.point[at], state.y[at])]
        found.note(state.row[at], state.point[at])


def replay(search: Search, victim: Victim, x: Tensor, y: Tensor, seed: int) -> Found:
    """The same search as the reference's code runs it, for comparison with it: one batch in step.

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
            clean = victim.logits(x[rows]).logits
            draws = ReferenceDraws(len(rows))
            state = search.begin(Start(rows, x[rows], y[rows], clean, torch.full_like(rows, job)), draws)
            for _ in range(search.discarded):
                draws.normal(*x.shape[1:])
            while not bool(state.over.all()):
                answer = search.ask(victim, state)
                hit = (answer.logits.argmax(1) != state.y) & search.allowed(state) & ~state.over
                found.note(rows[hit], state.point[hit])
                search.step(state, answer)
                draws.left = ~found.broken[rows].cpu()
                search.redraw(state, draws)
    return found
