"""Auto-PGD (Croce and Hein 2020, arXiv:2003.01690, algorithm 1): PGD that adapts its step size.

Linf and L2 as there; L1 with sparse steps and a shrinking ball as in Croce and Hein 2021 (arXiv:2103.01208).
Where paper and reference code differ, this follows the code.
"""

from __future__ import annotations

import math
from abc import ABC
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from robustgen.attacks.ball import normalise, random_direction, steepest, to_4d
from robustgen.attacks.losses import INITIAL_LOSS, LOSSES, TARGETED_LOSSES
from robustgen.attacks.projections import project_l1_box
from robustgen.attacks.search import Search, Start, State
from robustgen.attacks.victim import Answer, Victim
from robustgen.draws import Draws
from robustgen.threat import ThreatModel

MOMENTUM = 0.75  # alpha of equation 2
RHO = 0.75  # the step size is halved where a smaller share of the steps raised the loss


@dataclass
class APGDState(State):
    """Rows of APGD: the iterates, and what the step size is adapted by."""

    target: Tensor
    previous: Tensor  # the iterate before ``current``
    current: Tensor  # the iterate that the next step starts from, and the gradient there
    gradient: Tensor
    best: Tensor  # the iterate of highest loss so far, with its gradient and loss
    best_gradient: Tensor
    best_loss: Tensor
    last_loss: Tensor
    step_size: Tensor

    def record(self, answer: Answer, first: Tensor, initial_loss: float) -> Tensor:
        """Make ``point`` the current iterate, and the best one where its loss is highest. ``first``: rows
        of which this is the first answer. Returns where the loss rose."""
        loss, gradient = answer.loss_and_gradient
        self.previous = torch.where(to_4d(first), self.point, self.current)
        self.current, self.gradient = self.point, gradient
        better = first | (loss > self.best_loss)
        self.best = torch.where(to_4d(better), self.current, self.best)
        self.best_gradient = torch.where(to_4d(better), self.gradient, self.best_gradient)
        self.best_loss = torch.where(better, loss, self.best_loss)
        rose = (loss > self.last_loss) & ~first
        # The reference compares the loss after the first step with 0, not with the loss before it.
        self.last_loss = torch.where(first, initial_loss, loss)
        return rose

    def return_to_best(self, rows: Tensor) -> None:
        """Let the next step of these rows (a mask) start from the best iterate."""
        self.current = torch.where(to_4d(rows), self.best, self.current)
        self.gradient = torch.where(to_4d(rows), self.best_gradient, self.gradient)


A = TypeVar("A", bound=APGDState)


class APGD(Search[A], ABC):
    """APGD on a loss of ``losses.LOSSES``. With a targeted loss job k aims at the class ranked k + 2 by the
    clean logits; otherwise each job is a restart."""

    def __init__(self, threat: ThreatModel, loss: str, *, jobs: int = 1, n_iter: int = 100) -> None:
        self.threat = threat
        self.loss = LOSSES[loss]
        self.initial_loss = INITIAL_LOSS[loss]
        self.targeted = self.needs_clean_logits = loss in TARGETED_LOSSES
        self.jobs = jobs
        self.n_iter = self.n_steps = n_iter

    def query(self, victim: Victim, state: A) -> Answer:
        return victim.gradient(state.point, lambda logits: self.loss(logits, state.y, state.target))

    def _initial_fields(self, start: Start, point: Tensor) -> dict[str, Any]:
        """The fields of an APGDState that is about to query its first point."""
        unknown = torch.zeros_like(point[:, 0, 0, 0])
        none = torch.zeros_like(point)
        target = start.target() if self.targeted else start.y
        return {
            **start.fields(), "point": point, "target": target, "previous": point,
            "current": point, "gradient": none, "best": point, "best_gradient": none, "best_loss": unknown,
            "last_loss": unknown, "step_size": unknown,
        }  # fmt: skip


@dataclass
class DenseState(APGDState):
    """Rows of APGD in Linf and L2."""

    rises: Tensor  # how many steps raised the loss since the last checkpoint
    checkpoint_best: Tensor  # the best loss at the last checkpoint
    checkpoint_halved: Tensor  # whether the step size was halved there


class DenseAPGD(APGD[DenseState]):
    """APGD in Linf and L2: dense steps with momentum; the step size is halved where the loss stagnates."""

    def __init__(self, threat: ThreatModel, loss: str, *, jobs: int = 1, n_iter: int = 100) -> None:
        super().__init__(threat, loss, jobs=jobs, n_iter=n_iter)
        self.intervals = checkpoint_intervals(n_iter)

    def begin(self, start: Start, draws: Draws) -> DenseState:
        self.intervals = self.intervals.to(start.x.device)
        noise = normalise(random_direction(start.x, self.threat.norm, draws).to(start.x), self.threat.norm)
        point = (start.x + self.threat.eps * noise).clamp(*self.threat.box)
        initial = self._initial_fields(start, point)
        return DenseState(
            **initial, rises=torch.zeros_like(start.job), checkpoint_best=initial["best_loss"],
            checkpoint_halved=torch.ones_like(initial["done"]),
        )  # fmt: skip

    def update(self, state: DenseState, answer: Answer) -> None:
        first = state.step == 0
        state.rises = state.rises + state.record(answer, first, self.initial_loss)
        state.checkpoint_best = torch.where(first, state.best_loss, state.checkpoint_best)
        state.step_size = torch.where(first, 2 * self.threat.eps, state.step_size)
        self._adapt_step_size(state)
        state.point = self._next(state)
        state.step = state.step + 1
        state.done = state.step > self.n_iter

    def gap(self, state: DenseState) -> Tensor:
        return -state.best_loss

    def _adapt_step_size(self, state: DenseState) -> None:
        """At a checkpoint, halve the step size of rows whose loss stagnates (conditions 1 and 2)."""
        interval = self.intervals[state.step]  # 0 between checkpoints
        at_checkpoint = interval > 0
        few_rises = state.rises <= RHO * interval
        no_progress = ~state.checkpoint_halved & (state.checkpoint_best >= state.best_loss)
        halved = at_checkpoint & (few_rises | no_progress)
        state.step_size = torch.where(halved, state.step_size / 2, state.step_size)
        state.return_to_best(halved)
        state.checkpoint_halved = torch.where(at_checkpoint, halved, state.checkpoint_halved)
        state.checkpoint_best = torch.where(at_checkpoint, state.best_loss, state.checkpoint_best)
        state.rises = torch.where(at_checkpoint, 0, state.rises)

    def _next(self, state: DenseState) -> Tensor:
        """Equation 2: a gradient step, averaged with the previous step."""
        x, current = state.x, state.current
        step = to_4d(state.step_size) * steepest(state.gradient, self.threat.norm)
        stepped = self._project(x, current + step)
        a = to_4d(torch.where(state.step == 0, 1.0, MOMENTUM)).to(x.dtype)
        return self._project(x, current + (stepped - current) * a + (current - state.previous) * (1 - a))

    def _project(self, x: Tensor, point: Tensor) -> Tensor:
        eps, box = self.threat.eps, self.threat.box
        if self.threat.norm == "linf":
            return torch.minimum(torch.maximum(point, x - eps), x + eps).clamp(*box)
        delta = point - x
        norm = delta.flatten(1).norm(dim=1).clamp_max(eps)
        return (x + normalise(delta, "l2") * to_4d(norm)).clamp(*box)


@dataclass
class SparseState(APGDState):
    """Rows of APGD in L1."""

    share: Tensor  # the share of the pixels that a step changes
    moved: Tensor  # how many pixels of the best iterate differ from the clean image


class SparseAPGD(APGD[SparseState]):
    """APGD in L1: sparse steps in balls of radius 3, 2 and 1 eps, one after another.

    A step changes the pixels of largest gradient. Only the last ball is the threat's; each begins at the
    best iterate of the one before. Unless ``shrinking``, all steps are in the threat's ball, and the first
    changes a fifth of the pixels.
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
        # For every step: the radius of its ball, whether it is the first or last there, or a checkpoint.
        self.eps = torch.tensor([e for e, n in zip(balls, lengths, strict=True) for _ in range(n + 1)])
        self.eps = self.eps * threat.eps
        self.first = torch.tensor([i == 0 for n in lengths for i in range(n + 1)])
        self.last = torch.tensor([i == n for n in lengths for i in range(n + 1)])
        self.checked = torch.tensor(
            [i > 0 and i % max(int(0.04 * n), 1) == 0 for n in lengths for i in range(n + 1)]
        )

    def begin(self, start: Start, draws: Draws) -> SparseState:
        device = start.x.device
        self.eps, self.first, self.last = self.eps.to(start.x), self.first.to(device), self.last.to(device)
        self.checked = self.checked.to(device)
        noise = random_direction(start.x, self.threat.norm, draws).to(start.x)
        point = self._project(start.x, start.x + noise, torch.full_like(start.job, 0))
        initial = self._initial_fields(start, point)
        return SparseState(**initial, share=initial["step_size"], moved=initial["step_size"])

    def within_budget(self, state: SparseState) -> Tensor:
        return self.eps[state.step] <= self.threat.eps

    def update(self, state: SparseState, answer: Answer) -> None:
        step = state.step
        eps, first, last, checked = self.eps[step], self.first[step], self.last[step], self.checked[step]
        state.record(answer, first, self.initial_loss)
        # x + delta - x leaves a rounding error, which is not a pixel that moved.
        moved = ((state.best - state.x).abs() > 1e-9).flatten(1).sum(1).to(state.x.dtype)
        fewer = checked & (moved / state.moved < 0.95)
        smaller = torch.where(checked, state.step_size / 1.5, state.step_size)
        state.step_size = torch.where(fewer | first, eps, smaller).clamp(eps / 10, eps)
        pixels = state.x[0].numel()
        known = checked | (first & self.shrinking)
        state.share = torch.where(known, moved / pixels / 1.5, torch.where(first, 0.2, state.share))
        state.moved = torch.where(known, moved, torch.where(first, pixels, state.moved))
        state.return_to_best(fewer)
        next_step = (step + 1).clamp_max(len(self.eps) - 1)
        point = torch.where(to_4d(last), state.best, self._stepped(state))
        state.point = self._project(state.x, point, next_step)
        state.step = step + 1
        state.done = state.step >= len(self.eps)

    def _stepped(self, state: SparseState) -> Tensor:
        """The point after one sparse step, whose L1 norm is ``step_size``."""
        magnitude = state.gradient.abs().flatten(1)
        pixels = magnitude.shape[1]
        place = ((1 - state.share) * pixels).clamp(0, pixels - 1).long()
        least = magnitude.sort(1).values.gather(1, place[:, None])
        sign = torch.where(magnitude >= least, state.gradient.flatten(1).sign(), 0.0)
        move = (sign / (sign.abs().sum(1, keepdim=True) + 1e-10)).view_as(state.gradient)
        return state.current + to_4d(state.step_size) * move

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
    """For every step 0 .. n_iter, the length of the checkpoint interval that ends there, 0 where none does.

    The intervals are 22 %, 19 %, 16 %, ..., at least 6 % of the steps (Croce and Hein 2020, section 3.2).
    """
    length, end = max(int(0.22 * n_iter), 1), 0
    intervals = torch.zeros(n_iter + 1, dtype=torch.long)
    while end + length <= n_iter:
        end += length
        intervals[end] = length
        length = max(length - max(int(0.03 * n_iter), 1), max(int(0.06 * n_iter), 1))
    return intervals
