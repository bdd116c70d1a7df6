"""Auto-PGD (Croce and Hein 2020, arXiv:2003.01690, algorithm 1): PGD that finds its step size itself.

Linf and L2 as there; L1 with sparse steps and a shrinking ball as in Croce and Hein 2021
(arXiv:2103.01208). Where paper and reference code differ, the code is followed.
"""

from __future__ import annotations

import math
from abc import ABC
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from robustgen.attacks.ball import direction, steepest, unit, wide
from robustgen.attacks.losses import LOSSES, TARGETED_LOSSES, ZERO
from robustgen.attacks.projections import project_l1_box
from robustgen.attacks.search import Search, Start, State
from robustgen.attacks.victim import Answer, Victim
from robustgen.draws import Draws
from robustgen.threat import ThreatModel

MOMENTUM = 0.75  # alpha of equation 2
RHO = 0.75  # a smaller share of steps upwards halves the step size


@dataclass
class Climb(State):
    """Rows of APGD: where each has been, and what its step size is decided by."""

    target: Tensor
    before: Tensor  # the point that the step before left from
    here: Tensor  # the point that the next step leaves from, and the gradient there
    gradient: Tensor
    best: Tensor  # the point of highest loss so far, its gradient and its loss
    best_gradient: Tensor
    best_loss: Tensor
    last_loss: Tensor
    size: Tensor  # of the step

    def take_in(self, answer: Answer, first: Tensor, zero: float) -> Tensor:
        """Note the answer at ``point``, and the best one; returns where the loss rose. ``first``: rows
        whose climb begins with this answer."""
        loss, gradient = answer.ascent
        self.before = torch.where(wide(first), self.point, self.here)
        self.here, self.gradient = self.point, gradient
        better = first | (loss > self.best_loss)
        self.best = torch.where(wide(better), self.here, self.best)
        self.best_gradient = torch.where(wide(better), self.gradient, self.best_gradient)
        self.best_loss = torch.where(better, loss, self.best_loss)
        rose = (loss > self.last_loss) & ~first
        # The reference compares the loss after the first step with 0, not with the loss before it.
        self.last_loss = torch.where(first, zero, loss)
        return rose

    def go_back(self, rows: Tensor) -> None:
        """Let the next step of these rows (a mask) leave from the best point."""
        self.here = torch.where(wide(rows), self.best, self.here)
        self.gradient = torch.where(wide(rows), self.best_gradient, self.gradient)


C = TypeVar("C", bound=Climb)


class APGD(Search[C], ABC):
    """APGD on a loss of ``losses.LOSSES``. Job k aims a targeted loss at the class that the clean
    picture's logits rank (k + 2)th, and is a restart otherwise."""

    def __init__(self, threat: ThreatModel, loss: str, *, jobs: int = 1, n_iter: int = 100) -> None:
        self.threat = threat
        self.loss = LOSSES[loss]
        self.zero = ZERO[loss]
        self.targeted = self.ranks = loss in TARGETED_LOSSES
        self.jobs = jobs
        self.n_iter = self.length = n_iter

    def ask(self, victim: Victim, state: C) -> Answer:
        return victim.gradient(state.point, lambda logits: self.loss(logits, state.y, state.target))

    def _climb(self, start: Start, point: Tensor) -> dict[str, Any]:
        unknown = torch.zeros_like(point[:, 0, 0, 0])
        none = torch.zeros_like(point)
        target = start.target() if self.targeted else start.y
        return {
            **start.fields(), "point": point, "target": target, "before": point,
            "here": point, "gradient": none, "best": point, "best_gradient": none, "best_loss": unknown,
            "last_loss": unknown, "size": unknown,
        }  # fmt: skip


@dataclass
class DenseClimb(Climb):
    """Rows of APGD in Linf and L2."""

    rises: Tensor  # steps upwards since the last checkpoint
    best_then: Tensor  # the best loss at the last checkpoint
    halved_then: Tensor  # whether the step was halved there


class DenseAPGD(APGD[DenseClimb]):
    """APGD in Linf and L2: steps of all pixels, with momentum, halved where they no longer climb."""

    def __init__(self, threat: ThreatModel, loss: str, *, jobs: int = 1, n_iter: int = 100) -> None:
        super().__init__(threat, loss, jobs=jobs, n_iter=n_iter)
        self.intervals = checkpoint_intervals(n_iter)

    def begin(self, start: Start, draws: Draws) -> DenseClimb:
        self.intervals = self.intervals.to(start.x.device)
        noise = unit(direction(start.x, self.threat.norm, draws).to(start.x), self.threat.norm)
        point = (start.x + self.threat.eps * noise).clamp(*self.threat.box)
        climb = self._climb(start, point)
        return DenseClimb(
            **climb, rises=torch.zeros_like(start.job), best_then=climb["best_loss"],
            halved_then=torch.ones_like(climb["over"]),
        )  # fmt: skip

    def step(self, state: DenseClimb, answer: Answer) -> None:
        first = state.step == 0
        state.rises = state.rises + state.take_in(answer, first, self.zero)
        state.best_then = torch.where(first, state.best_loss, state.best_then)
        state.size = torch.where(first, 2 * self.threat.eps, state.size)
        self._adapt(state)
        state.point = self._next(state)
        state.step = state.step + 1
        state.over = state.step > self.n_iter

    def lacking(self, state: DenseClimb) -> Tensor:
        return -state.best_loss

    def _adapt(self, state: DenseClimb) -> None:
        """At a checkpoint, halve the step of rows that do not climb any more (conditions 1 and 2)."""
        interval = self.intervals[state.step]  # 0 between checkpoints
        checked = interval > 0
        stuck = state.rises <= RHO * interval
        idle = ~state.halved_then & (state.best_then >= state.best_loss)
        halved = checked & (stuck | idle)
        state.size = torch.where(halved, state.size / 2, state.size)
        state.go_back(halved)
        state.halved_then = torch.where(checked, halved, state.halved_then)
        state.best_then = torch.where(checked, state.best_loss, state.best_then)
        state.rises = torch.where(checked, 0, state.rises)

    def _next(self, state: DenseClimb) -> Tensor:
        """Equation 2: a step along the gradient, then a mean with the way that came before."""
        x, here, size = state.x, state.here, wide(state.size)
        stepped = self._project(x, here + size * steepest(state.gradient, self.threat.norm))
        a = wide(torch.where(state.step == 0, 1.0, MOMENTUM)).to(x.dtype)
        return self._project(x, here + (stepped - here) * a + (here - state.before) * (1 - a))

    def _project(self, x: Tensor, point: Tensor) -> Tensor:
        eps, box = self.threat.eps, self.threat.box
        if self.threat.norm == "linf":
            return torch.minimum(torch.maximum(point, x - eps), x + eps).clamp(*box)
        delta = point - x
        norm = delta.flatten(1).norm(dim=1).clamp_max(eps)
        return (x + unit(delta, "l2") * wide(norm)).clamp(*box)


@dataclass
class SparseClimb(Climb):
    """Rows of APGD in L1; ``share`` of the pixels moves in a step, ``moved`` pixels of the best point
    differ from the clean picture."""

    share: Tensor
    moved: Tensor


class SparseAPGD(APGD[SparseClimb]):
    """APGD in L1: steps of the pixels of largest gradient, in balls of 3, 2 and 1 eps one after another.

    Only the last ball is the threat's; what was best in one is where the next begins. Unless
    ``shrinking``, all steps are in the threat's ball, and the first moves a fifth of the pixels.
    """

    def __init__(
        self, threat: ThreatModel, loss: str, *, jobs: int = 1, n_iter: int = 100, shrinking: bool = True
    ) -> None:
        super().__init__(threat, loss, jobs=jobs, n_iter=n_iter)
        early = math.ceil(0.3 * n_iter)
        balls, lengths = [3, 2, 1], [early, early, max(0, n_iter - 2 * early)]
        if not shrinking:
            balls, lengths = [1], [n_iter]
        self.shrinking = shrinking
        # Of every step: the ball's radius, whether its climb begins or ends there, whether it is checked.
        self.eps = torch.tensor([e for e, n in zip(balls, lengths, strict=True) for _ in range(n + 1)])
        self.eps = self.eps * threat.eps
        self.first = torch.tensor([i == 0 for n in lengths for i in range(n + 1)])
        self.last = torch.tensor([i == n for n in lengths for i in range(n + 1)])
        self.checked = torch.tensor(
            [i > 0 and i % max(int(0.04 * n), 1) == 0 for n in lengths for i in range(n + 1)]
        )

    def begin(self, start: Start, draws: Draws) -> SparseClimb:
        device = start.x.device
        self.eps, self.first, self.last = self.eps.to(start.x), self.first.to(device), self.last.to(device)
        self.checked = self.checked.to(device)
        noise = direction(start.x, self.threat.norm, draws).to(start.x)
        point = self._project(start.x, start.x + noise, torch.full_like(start.job, 0))
        climb = self._climb(start, point)
        return SparseClimb(**climb, share=climb["size"], moved=climb["size"])

    def allowed(self, state: SparseClimb) -> Tensor:
        return self.eps[state.step] <= self.threat.eps

    def step(self, state: SparseClimb, answer: Answer) -> None:
        step = state.step
        eps, first, last, checked = self.eps[step], self.first[step], self.last[step], self.checked[step]
        state.take_in(answer, first, self.zero)
        # x + delta - x is not delta to the last bit: what rounding leaves is no pixel that moved
        moved = ((state.best - state.x).abs() > 1e-9).flatten(1).sum(1).to(state.x.dtype)
        fewer = checked & (moved / state.moved < 0.95)
        state.size = torch.where(fewer | first, eps, torch.where(checked, state.size / 1.5, state.size))
        state.size = state.size.clamp(eps / 10, eps)
        pixels = state.x[0].numel()
        known = checked | (first & self.shrinking)
        state.share = torch.where(known, moved / pixels / 1.5, torch.where(first, 0.2, state.share))
        state.moved = torch.where(known, moved, torch.where(first, pixels, state.moved))
        state.go_back(fewer)
        follows = (step + 1).clamp_max(len(self.eps) - 1)
        point = torch.where(wide(last), state.best, self._stepped(state))
        state.point = self._project(state.x, point, follows)
        state.step = step + 1
        state.over = state.step >= len(self.eps)

    def _stepped(self, state: SparseClimb) -> Tensor:
        """The point one sparse step on: its length in L1 is ``size``."""
        magnitude = state.gradient.abs().flatten(1)
        pixels = magnitude.shape[1]
        place = ((1 - state.share) * pixels).clamp(0, pixels - 1).long()
        least = magnitude.sort(1).values.gather(1, place[:, None])
        sign = torch.where(magnitude >= least, state.gradient.flatten(1).sign(), 0.0)
        move = (sign / (sign.abs().sum(1, keepdim=True) + 1e-10)).view_as(state.gradient)
        return state.here + wide(state.size) * move

    def _project(self, x: Tensor, point: Tensor, step: Tensor) -> Tensor:
        return project_l1_box(x, point, self.eps[step], self.threat.box)


def apgd(
    threat: ThreatModel, loss: str, *, jobs: int = 1, n_iter: int = 100, shrinking: bool = True
) -> APGD[Any]:
    """APGD in the norm of the threat; ``shrinking`` is for L1 (see ``SparseAPGD``)."""
    if threat.norm == "l1":
        return SparseAPGD(threat, loss, jobs=jobs, n_iter=n_iter, shrinking=shrinking)
    return DenseAPGD(threat, loss, jobs=jobs, n_iter=n_iter)


def checkpoint_intervals(n_iter: int) -> Tensor:
    """For every step 0 .. n_iter the length of the interval that ends there, 0 where none does.

    The intervals are 22 %, 19 %, 16 %, ... of the steps, 6 % at least (Croce and Hein 2020, section 3.2).
    """
    length, end = max(int(0.22 * n_iter), 1), 0
    intervals = torch.zeros(n_iter + 1, dtype=torch.long)
    while end + length <= n_iter:
        end += length
        intervals[end] = length
        length = max(length - max(int(0.03 * n_iter), 1), max(int(0.06 * n_iter), 1))
    return intervals
