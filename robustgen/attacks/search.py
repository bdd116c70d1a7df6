"""How a search for adversarial pictures runs over a batch: row by row, each at its own step.

A search is a loop for one picture: ask the model about a point, take the next point. Rows that are
broken, or that have spent their budget, leave at once and others take their place, so the model is
always asked about as many points as it likes best. Further restarts and target classes of a picture
that withstood the first are rows beside each other. Since a row's way depends on nothing but its own
picture and draws, what it finds does not depend on who its neighbours are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import Any, Generic, NamedTuple, Self, TypeVar

import torch
from torch import Tensor

from robustgen.attacks.early_stopping import stop_early
from robustgen.attacks.losses import margin
from robustgen.attacks.victim import SETTLED, Answer, Said, Victim, right_share
from robustgen.classifiers.base import Classifier
from robustgen.draws import Draws
from robustgen.errors import UnsupportedError, UserError


@dataclass
class State:
    """Rows of a search; every field has them as its first dimension.

    ``row``: place in the batch; ``x``, ``y``: clean picture and label; ``clean``: the model's logits
    there, of no class unless the search ``ranks`` them; ``job``: which restart or target class; ``step``:
    how many points were asked about in this job; ``point``: the next one; ``over``: whether the job has
    ended. ``at_first``, ``lacked``: what the job's best point lacked when that was first known, and at
    the last look, after ``looked`` steps (early_stopping.py).
    """

    row: Tensor
    x: Tensor
    y: Tensor
    clean: Tensor
    job: Tensor
    step: Tensor
    point: Tensor
    over: Tensor
    at_first: Tensor
    lacked: Tensor
    looked: Tensor

    def __len__(self) -> int:
        return len(self.row)

    def take(self, rows: Tensor) -> Self:
        """Some rows, by mask or index."""
        return replace(self, **{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    def join(self, other: Self) -> Self:
        """These rows, then the other's."""
        both = {f.name: torch.cat([getattr(self, f.name), getattr(other, f.name)]) for f in fields(self)}
        return replace(self, **both)


S = TypeVar("S", bound=State)


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
        unknown = torch.full_like(self.job, torch.inf, dtype=torch.float32)
        known = {"at_first": unknown, "lacked": unknown, "looked": zeros}
        return {**self._asdict(), "step": zeros, "over": zeros.bool(), **known}

    def target(self) -> Tensor:
        """The class that a targeted job aims at, (rows,): the (job + 2)th of the clean picture's, by its
        logits, the label being the first, be it one of several that tie."""
        order = self.clean.scatter(1, self.y[:, None], torch.inf).sort(1).indices
        return order.gather(1, order.shape[1] - 2 - self.job[:, None]).squeeze(1)


class Search(ABC, Generic[S]):
    """One attack as a loop for one picture, whose rows are of the type S. ``jobs``: how many such loops a
    picture gets, each with other draws or another target class: the first alone, since it breaks most, then
    the others together."""

    jobs: int = 1
    length: int
    """Steps of a full job, for searches with a ``lacking``."""
    ranks: bool = False
    """Whether jobs begin with the model's logits at the clean pictures; without, they are not asked for."""

    @abstractmethod
    def begin(self, start: Start, draws: Draws) -> S:
        """The state before the first question; ``draws`` are streams of these rows and jobs."""

    @abstractmethod
    def ask(self, victim: Victim, state: S) -> Answer:
        """Ask about ``state.point``: the one call of the model in a step."""

    @abstractmethod
    def step(self, state: S, answer: Answer) -> None:
        """Take in the answer: move ``state.point``, count ``state.step``, set ``state.over``."""

    def lacking(self, state: S) -> Tensor | None:
        """How far the best point of each row's job is from success, (rows,), in any unit, inf where that
        is not known yet; None for a search whose jobs all run to their end."""
        return None

    def allowed(self, state: S) -> Tensor:
        """Whether ``state.point`` lies within the budget, (rows,): true of every point of most attacks."""
        return torch.ones_like(state.over)


@dataclass
class Found:
    """What a search found for each sample of a batch.

    ``images``: the picture, the clean one where there is none; ``broken``: whether the model takes it
    for something else. Of a stochastic model no single answer is believed: there the point of highest
    ``margin`` is kept, by the mean probability of its draws, and is broken where that is positive.
    ``right``: the share of the draws that were right where ``judge`` saw it, 1 where nothing was found.
    """

    images: Tensor
    broken: Tensor
    margin: Tensor
    right: Tensor

    @classmethod
    def nothing(cls, x: Tensor) -> Found:
        """Before a search from pictures x."""
        low = torch.full((len(x),), -torch.inf, device=x.device)
        return cls(x.clone(), torch.zeros_like(low, dtype=torch.bool), low, torch.ones_like(low))

    def note(self, rows: Tensor, points: Tensor) -> None:
        """These points break the samples ``rows``; of several points of a sample the first is kept."""
        first = _first_of_each(rows)
        self.images[rows[first]] = points[first]
        self.broken[rows] = True
        self.right[rows] = 0

    def weigh(self, rows: Tensor, points: Tensor, margins: Tensor) -> None:
        """Keep the points whose margin is higher than any before."""
        order = margins.argsort(descending=True, stable=True)
        order = order[_first_of_each(rows[order])]
        best = order[margins[order] > self.margin[rows[order]]]
        rows = rows[best]
        self.images[rows], self.margin[rows] = points[best], margins[best].to(self.margin)
        self.broken[rows] = self.margin[rows] > 0

    def standing(self, model: Classifier, x: Tensor, y: Tensor, said: Said) -> Tensor:
        """Take in the clean pictures; who is to be attacked, bool (batch,): those that are right, of a
        stochastic model all, since one draw decides nothing. UnsupportedError where there is one class, which
        would make every picture robust."""
        if model.num_classes < 2:
            raise UnsupportedError(
                "there is nothing to attack where there is one class",
                expected="a model with 2 classes or more", got=model.num_classes,
            )  # fmt: skip
        self.judge(model, torch.arange(len(x), device=x.device), x, said, y)
        return ~self.broken | model.stochastic

    def judge(self, model: Classifier, rows: Tensor, points: Tensor, said: Said, y: Tensor) -> Tensor:
        """Record one point for each of ``rows`` (labels y), which no search asked about, by the model's
        answers there (victims.said). Returns the samples that it breaks; of a stochastic model, those whose
        margin is above 0 and above every earlier point's."""
        if model.stochastic:
            margins, higher = margin(said.logits, y), self.margin[rows]
            broken = margins > higher.clamp_min(0)
            self.right[rows] = right_share(said.predicted, y).where(margins > higher, self.right[rows])
            self.weigh(rows, points, margins)
        else:
            broken = said.logits.argmax(1) != y
            self.note(rows[broken], points[broken])
        return rows[broken]


class Remaining:
    """Who of a batch is still to be attacked: at first the samples of the mask ``robust``, bool (batch,).

    ``broken_by``: what broke each of the others, None where nothing had to.
    """

    def __init__(self, robust: Tensor) -> None:
        self.robust = robust
        self.broken_by: list[str | None] = [None] * len(robust)

    def rows(self) -> Tensor:
        """Their places in the batch."""
        return self.robust.nonzero().squeeze(1)

    def fell(self, rows: Tensor, name: str, found: Found) -> None:
        """These samples fell to the attack of that name; of a stochastic model those that are not SETTLED
        stay, and later attacks may do better."""
        self.robust[rows] = found.right[rows] > SETTLED
        for i in rows.tolist():
            self.broken_by[i] = name


def run(
    search: Search[S], victim: Victim, x: Tensor, y: Tensor, draws: Draws, *, width: int | None = None,
    thorough: bool = True,
) -> Found:  # fmt: skip
    """Search from pictures x (batch, ...) with labels y, at most ``width`` (None: all) points at a time,
    or one sample's jobs if these are more.

    Unless ``thorough``, jobs that will not arrive end early (early_stopping.py). Raises UserError where the
    model's logits are no numbers.
    """
    found = Found.nothing(x)
    fresh = torch.arange(len(x), device=x.device)  # samples whose first job is to begin
    standing = fresh[:0]  # samples whose other jobs are
    others = search.jobs - 1
    width = width or len(x) * search.jobs
    with victim.serving(fresh):
        clean = clean_logits(search, victim, x)

    def begin(samples: Tensor, jobs: range) -> S:
        row = samples.repeat_interleave(len(jobs))
        job = torch.tensor(jobs, device=x.device).repeat(len(samples))
        return search.begin(Start(row, x[row], y[row], clean[row], job), draws.at(row, job))

    state, fresh = begin(fresh[:width], range(1)), fresh[width:]
    while len(state) or len(standing) or len(fresh):
        # Together, whatever the room, so that a sample's way does not depend on its neighbours.
        count = max((width - len(state)) // others, 0 if len(state) else 1) if len(standing) else 0
        if count:
            state = state.join(begin(standing[:count], range(1, search.jobs)))
            standing = standing[count:]
        if len(fresh) and len(state) < width:
            room = width - len(state)
            state, fresh = state.join(begin(fresh[:room], range(1))), fresh[room:]
        ended = _advance(search, victim, state, found, thorough)
        if ended is not None:
            if others:
                first = state.row[ended & (state.job == 0)]
                standing = torch.cat([standing, first[~_settled(found, victim, first, y)]])
            state = state.take(~ended)
    return found


def _advance(search: Search[S], victim: Victim, state: S, found: Found, thorough: bool) -> Tensor | None:
    """Ask about every row's point and take the answers in; which rows have ended, None where none has."""
    with victim.serving(state.row):
        answer = search.ask(victim, state)
    asked, allowed = state.point, search.allowed(state)
    hit = allowed & (answer.logits.argmax(1) != state.y)
    search.step(state, answer)
    lacking = None if thorough else search.lacking(state)
    if lacking is not None:
        stop_early(state, lacking, search.length)
    # All that the host has to know of a step, at once: on a GPU it waits for the answer each time.
    facts = torch.stack([answer.logits.isfinite().all(), hit.any(), state.over.any()])
    finite, some_hit, some_over = facts.tolist()
    _check(finite)
    if victim.model.stochastic:  # the mean of its draws may go on rising where it is wrong already
        found.weigh(state.row, asked, margin(answer.logits, state.y).where(allowed, -torch.inf))
        return state.over if some_over else None
    if some_hit:
        _note_hits(found, victim, state, asked, hit)
    return state.over | found.broken[state.row] if some_over or some_hit else None


def _first_of_each(rows: Tensor) -> Tensor:
    """The places at which a value of ``rows`` stands for the first time."""
    order = rows.argsort(stable=True)
    ordered = rows[order]
    new = torch.ones_like(rows, dtype=torch.bool)
    new[1:] = ordered[1:] != ordered[:-1]
    return order[new]


def clean_logits(search: Search[Any], victim: Victim, x: Tensor) -> Tensor:
    """The logits at the clean pictures, of no class where the search does not look at them."""
    return victim.logits(x).logits if search.ranks else x.new_empty(len(x), 0)


def _check(finite: bool) -> None:
    if not finite:
        raise UserError(
            "the model returned NaN or infinite logits under attack",
            expected="numbers everywhere in the box", remedy="'robustgen check MODEL' says more",
        )  # fmt: skip


def _settled(found: Found, victim: Victim, rows: Tensor, y: Tensor) -> Tensor:
    """Which of these samples need no other job: they are broken, by draws that the search has not seen."""
    broken = found.broken[rows]
    if victim.model.stochastic and bool(broken.any()):
        with victim.serving(rows):
            broken = broken & victim.confirm(found.images[rows], y[rows])
    return broken


def _note_hits(found: Found, victim: Victim, state: State, points: Tensor, hit: Tensor) -> None:
    at = hit.nonzero().squeeze(1)
    with victim.serving(state.row[at]):
        at = at[victim.confirm(points[at], state.y[at])]
    found.note(state.row[at], points[at])
