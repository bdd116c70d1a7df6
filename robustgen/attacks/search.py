"""The loop that runs a search for adversarial images over a batch, each row at its own step.

A search is written for one image: query the model at a point, then choose the next point. Rows that succeed
or use up their steps leave at once and others take their place, so that the model is always called at a
good batch size. Further restarts and target classes of an image that withstood its first job run as rows
side by side. A row depends on its own image and random stream only, so its result does not depend on the
rest of the batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import Any, Generic, NamedTuple, Self, TypeVar

import torch
from torch import Tensor

from robustgen.attacks.early_stopping import stop_early
from robustgen.attacks.losses import margin
from robustgen.attacks.victim import Answer, Victim
from robustgen.draws import Draws
from robustgen.errors import UserError


@dataclass
class State:
    """The rows of a running search; the first dimension of every field is the row.

    ``row``: index in the batch; ``x``, ``y``: clean image and label; ``clean``: the model's logits at x, of
    width 0 unless the search ``needs_clean_logits``; ``job``: the number of the restart or target class;
    ``step``: queries of this job so far; ``point``: where the next query goes; ``done``: whether the job is
    over. For early stopping: ``initial_gap``, the first known gap of the job; ``last_gap``, its gap at the
    last check, which was at step ``last_check``.
    """

    row: Tensor
    x: Tensor
    y: Tensor
    clean: Tensor
    job: Tensor
    step: Tensor
    point: Tensor
    done: Tensor
    initial_gap: Tensor
    last_gap: Tensor
    last_check: Tensor

    def __len__(self) -> int:
        return len(self.row)

    def take(self, rows: Tensor) -> Self:
        """The rows of a mask or an index."""
        return replace(self, **{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    def join(self, other: Self) -> Self:
        """These rows, then the other's."""
        both = {f.name: torch.cat([getattr(self, f.name), getattr(other, f.name)]) for f in fields(self)}
        return replace(self, **both)


S = TypeVar("S", bound=State)


class Start(NamedTuple):
    """Rows whose next job is about to begin; fields as in ``State``."""

    row: Tensor
    x: Tensor
    y: Tensor
    clean: Tensor
    job: Tensor

    def fields(self) -> dict[str, Tensor]:
        """The fields of a new State except ``point``."""
        zeros = torch.zeros_like(self.job)
        unknown = torch.full_like(self.job, torch.inf, dtype=torch.float32)
        gaps = {"initial_gap": unknown, "last_gap": unknown, "last_check": zeros}
        return {**self._asdict(), "step": zeros, "done": zeros.bool(), **gaps}

    def target(self) -> Tensor:
        """The class that a targeted job aims at, (rows,): job k takes the class ranked k + 2 by the clean
        logits, where the label counts as first even if others tie with it."""
        order = self.clean.scatter(1, self.y[:, None], torch.inf).sort(1).indices
        return order.gather(1, order.shape[1] - 2 - self.job[:, None]).squeeze(1)


class Search(ABC, Generic[S]):
    """One attack, as a loop for one image; S is the type of its rows.

    ``jobs``: how many times the loop runs for an image, with other draws or another target class each time.
    The first job runs alone, since it breaks most images, then the others side by side.
    """

    jobs: int = 1
    n_steps: int
    """The steps of a full job; only for searches with a ``gap``."""
    needs_clean_logits: bool = False
    """Whether jobs begin with the model's logits at the clean images."""

    @abstractmethod
    def begin(self, start: Start, draws: Draws) -> S:
        """The state before the first query; ``draws`` are the streams of these rows and jobs."""

    @abstractmethod
    def query(self, victim: Victim, state: S) -> Answer:
        """Query the victim at ``state.point``: once a step."""

    @abstractmethod
    def update(self, state: S, answer: Answer) -> None:
        """Process the answer: set the next ``state.point``, increment ``state.step``, set ``state.done``."""

    def gap(self, state: S) -> Tensor | None:
        """How far the best point of each job is from success, (rows,), in any unit; inf where not known yet.
        None for a search whose jobs are never ended early."""
        return None

    def within_budget(self, state: S) -> Tensor:
        """Whether ``state.point`` counts as a result, (rows,): most searches never leave the budget."""
        return torch.ones_like(state.done)


@dataclass
class SearchResult:
    """The best image found for each sample of a batch.

    ``images``: the clean image where nothing was found; ``broken``: whether the model misclassifies them. A
    stochastic model's single answers decide nothing: there the image of highest ``margin`` is kept, by the
    mean probability over draws, and counts as broken where that margin is positive.
    """

    images: Tensor
    broken: Tensor
    margin: Tensor

    @classmethod
    def initial(cls, x: Tensor) -> SearchResult:
        """The result before any search from the clean images x."""
        lowest = torch.full((len(x),), -torch.inf, device=x.device)
        return cls(x.clone(), torch.zeros_like(lowest, dtype=torch.bool), lowest)

    def add_hits(self, rows: Tensor, points: Tensor) -> None:
        """Record points that break the samples ``rows``; of several points of a sample the first is kept."""
        first = _first_of_each(rows)
        self.images[rows[first]] = points[first]
        self.broken[rows] = True

    def keep_highest(self, rows: Tensor, points: Tensor, margins: Tensor) -> None:
        """Keep each point whose margin is higher than that of all points before it."""
        order = margins.argsort(descending=True, stable=True)
        order = order[_first_of_each(rows[order])]
        best = order[margins[order] > self.margin[rows[order]]]
        rows = rows[best]
        self.images[rows], self.margin[rows] = points[best], margins[best].to(self.margin)
        self.broken[rows] = self.margin[rows] > 0


def run(
    search: Search[S], victim: Victim, x: Tensor, y: Tensor, draws: Draws, *, width: int | None = None,
    thorough: bool = True,
) -> SearchResult:  # fmt: skip
    """Search from the images x (batch, ...) with labels y.

    ``width``: how many points are queried at a time (None: all), or one sample's jobs if these are more.
    Unless ``thorough``, jobs that are unlikely to succeed end early (early_stopping.py). Raises UserError
    where the model returns NaN or infinite logits.
    """
    result = SearchResult.initial(x)
    waiting = torch.arange(len(x), device=x.device)  # samples whose first job has not begun
    retrying = waiting[:0]  # samples whose first job failed and whose other jobs have not begun
    others = search.jobs - 1
    width = width or len(x) * search.jobs
    with victim.serving(waiting):
        clean = clean_logits(search, victim, x)

    def begin(samples: Tensor, jobs: range) -> S:
        row = samples.repeat_interleave(len(jobs))
        job = torch.tensor(jobs, device=x.device).repeat(len(samples))
        return search.begin(Start(row, x[row], y[row], clean[row], job), draws.at(row, job))

    state, waiting = begin(waiting[:width], range(1)), waiting[width:]
    while len(state) or len(retrying) or len(waiting):
        # A sample's other jobs begin together, even beyond the width: else their outcome, which may end them
        # all, would depend on how full the batch was.
        count = max((width - len(state)) // others, 0 if len(state) else 1) if len(retrying) else 0
        if count:
            state = state.join(begin(retrying[:count], range(1, search.jobs)))
            retrying = retrying[count:]
        if len(waiting) and len(state) < width:
            room = width - len(state)
            state, waiting = state.join(begin(waiting[:room], range(1))), waiting[room:]
        ended = _advance(search, victim, state, result, thorough)
        if ended is not None:
            if others:
                first = state.row[ended & (state.job == 0)]
                retrying = torch.cat([retrying, first[~_is_broken(result, victim, first, y)]])
            state = state.take(~ended)
    return result


def _advance(
    search: Search[S], victim: Victim, state: S, result: SearchResult, thorough: bool
) -> Tensor | None:
    """One step of every row. Returns which rows have ended, None where none has."""
    with victim.serving(state.row):
        answer = search.query(victim, state)
    queried, within = state.point, search.within_budget(state)
    hit = within & (answer.logits.argmax(1) != state.y)
    search.update(state, answer)
    gap = None if thorough else search.gap(state)
    if gap is not None:
        stop_early(state, gap, search.n_steps)
    # All that the host needs to know, in one transfer: on a GPU each one waits for the step to finish.
    facts = torch.stack([answer.logits.isfinite().all(), hit.any(), state.done.any()])
    finite, some_hit, some_done = facts.tolist()
    if not finite:
        raise UserError(
            "the model returned NaN or infinite logits under attack",
            expected="finite logits everywhere in the box", remedy="'robustgen check MODEL' says more",
        )  # fmt: skip
    if victim.model.stochastic:  # no row stops at a hit: the mean over draws may still rise
        result.keep_highest(state.row, queried, margin(answer.logits, state.y).where(within, -torch.inf))
        return state.done if some_done else None
    if some_hit:
        _add_confirmed_hits(result, victim, state, queried, hit)
    return state.done | result.broken[state.row] if some_done or some_hit else None


def _add_confirmed_hits(
    result: SearchResult, victim: Victim, state: State, points: Tensor, hit: Tensor
) -> None:
    rows = hit.nonzero().squeeze(1)
    with victim.serving(state.row[rows]):
        rows = rows[victim.confirm(points[rows], state.y[rows])]
    result.add_hits(state.row[rows], points[rows])


def _is_broken(result: SearchResult, victim: Victim, rows: Tensor, y: Tensor) -> Tensor:
    """Which of these samples need no further job; for a stochastic model, fresh draws have to agree."""
    broken = result.broken[rows]
    if victim.model.stochastic and bool(broken.any()):
        with victim.serving(rows):
            broken = broken & victim.confirm(result.images[rows], y[rows])
    return broken


def clean_logits(search: Search[Any], victim: Victim, x: Tensor) -> Tensor:
    """The logits at the clean images, of width 0 where the search does not need them."""
    return victim.logits(x).logits if search.needs_clean_logits else x.new_empty(len(x), 0)


def _first_of_each(rows: Tensor) -> Tensor:
    """The positions at which each value of ``rows`` occurs first."""
    order = rows.argsort(stable=True)
    ordered = rows[order]
    new = torch.ones_like(rows, dtype=torch.bool)
    new[1:] = ordered[1:] != ordered[:-1]
    return order[new]
