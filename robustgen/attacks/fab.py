"""FAB (Croce and Hein 2020, arXiv:1907.02044): follow the decision boundary to where it is nearest.

Each iteration linearises the model at the point and goes just beyond the boundary of that linear model: to
the projection of the point, mixed with a little of the projection of the clean image. Constants and order
of the steps are the reference code's.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from robustgen.attacks.ball import DUAL, ORDER, random_direction, to_4d
from robustgen.attacks.hyperplanes import to_hyperplane
from robustgen.attacks.losses import targeted_margin
from robustgen.attacks.search import Search, Start, State
from robustgen.attacks.victim import Answer, Victim
from robustgen.draws import Draws
from robustgen.threat import ThreatModel
from robustgen.types import Norm

ALPHA_MAX = 0.1  # the largest weight of the clean image's projection
ETA = 1.05  # overshoot: projections go this share of the way to the boundary
BETA = 0.9  # an iteration that starts from an adversarial point first shrinks its perturbation to this share


@dataclass
class FABState(State):
    """Rows of FAB. ``target``: the class aimed at; ``nearest``: the distance of the nearest adversarial
    point so far; ``iteration``: how many are done; ``ends_iteration``: whether ``point`` is where an
    iteration went (there its verdict counts), or only where one begins."""

    target: Tensor
    nearest: Tensor
    iteration: Tensor
    ends_iteration: Tensor


class FAB(Search[FABState]):
    """Targeted FAB: job k aims at the class ranked k + 2 by the clean logits.

    One query serves as the check of an iteration and as the gradient of the next, unless the point is
    adversarial: then the next iteration starts nearer to the clean image and queries there first. Since
    iterations end just beyond the boundary, that is nearly always so, and the cost is the reference's (two
    queries an iteration; see LeanFAB).
    """

    needs_clean_logits = True

    def __init__(self, threat: ThreatModel, *, jobs: int = 1, n_iter: int = 100) -> None:
        self.threat = threat
        self.jobs = jobs
        self.n_iter = self.n_steps = n_iter

    def begin(self, start: Start, draws: Draws) -> FABState:
        return self._initial_state(start, start.x, start.target())

    def query(self, victim: Victim, state: FABState) -> Answer:
        return victim.gradient(state.point, lambda logits: targeted_margin(logits, state.y, state.target))

    def within_budget(self, state: FABState) -> Tensor:
        return state.ends_iteration & (self.threat.distance(state.x, state.point) <= self.threat.eps)

    def gap(self, state: FABState) -> Tensor:
        return (state.nearest / self.threat.eps).log()  # distances shrink by a factor an iteration

    def update(self, state: FABState, answer: Answer) -> None:
        adversarial = state.ends_iteration & (answer.logits.argmax(1) != state.y)
        distance = self.threat.distance(state.x, state.point).to(state.nearest)
        state.nearest = torch.where(adversarial, state.nearest.minimum(distance), state.nearest)
        state.step = state.step + 1
        state.iteration = state.iteration + state.ends_iteration
        state.done = state.iteration >= self.n_iter
        self._set_next(state, answer, adversarial, state.x + BETA * (state.point - state.x))

    def _set_next(self, state: FABState, answer: Answer, adversarial: Tensor, nearer: Tensor) -> None:
        """Set the next point. Where ``point`` is adversarial, the next iteration starts from ``nearer``."""
        state.point = torch.where(to_4d(adversarial), nearer, self._iterate(state, answer, state.point))
        state.ends_iteration = ~adversarial

    def _initial_state(self, start: Start, point: Tensor, target: Tensor) -> FABState:
        unknown = torch.full_like(start.job, torch.inf, dtype=torch.float32)
        zeros = torch.zeros_like(start.job)
        return FABState(
            **start.fields(), point=point, target=target, nearest=unknown, iteration=zeros,
            ends_iteration=zeros.bool(),
        )  # fmt: skip

    def _iterate(self, state: FABState, answer: Answer, begin: Tensor) -> Tensor:
        """Where an iteration from ``begin`` ends, given the ``answer`` at ``point``."""
        return beyond_boundary(state.x, begin, state.point, answer, self.threat.norm, self.threat.box)


class UntargetedFAB(FAB):
    """Untargeted FAB: each iteration aims at the class whose linearised boundary is nearest, which takes a
    gradient for every class. Job 0 starts at the clean image, the others at random at distance eps / 2."""

    needs_clean_logits = False

    def begin(self, start: Start, draws: Draws) -> FABState:
        point = start.x
        if bool((start.job > 0).any()):
            noise = random_direction(start.x, self.threat.norm, draws).to(start.x)
            length = _norm(noise.flatten(1), ORDER[self.threat.norm])
            moved = (point + self.threat.eps / 2 * noise / to_4d(length)).clamp(*self.threat.box)
            point = torch.where(to_4d(start.job > 0), moved, point)
        return self._initial_state(start, point, start.y)

    def query(self, victim: Victim, state: FABState) -> Answer:
        return nearest_boundary(victim, state.point, state.y, self.threat.norm)


class LeanFAB(FAB):
    """FAB with one query an iteration: from an adversarial point the next iteration starts nearer to the
    clean image, but keeps the linear model of the adversarial point instead of querying again.

    The two points differ by a tenth of the perturbation, so either linear model serves: distances are as
    small, for half of the queries.
    """

    def _set_next(self, state: FABState, answer: Answer, adversarial: Tensor, nearer: Tensor) -> None:
        state.point = self._iterate(state, answer, torch.where(to_4d(adversarial), nearer, state.point))
        state.ends_iteration = torch.ones_like(adversarial)


class LeanUntargetedFAB(LeanFAB, UntargetedFAB):
    """UntargetedFAB with one query an iteration."""


def beyond_boundary(
    x: Tensor, begin: Tensor, queried: Tensor, answer: Answer, norm: Norm, box: tuple[float, float]
) -> Tensor:
    """One iteration from ``begin``: the point just beyond the boundary of the model's linearisation, which
    the ``answer`` at ``queried`` gives (algorithm 1, lines 4 to 9)."""
    loss, gradient = answer.loss_and_gradient
    normal = gradient.flatten(1)
    both = torch.stack([begin.flatten(1), x.flatten(1)])
    gap = loss + (normal * (both - queried.flatten(1))).sum(-1)
    moves = to_hyperplane(both, normal, gap, norm, box)
    lengths = _norm(moves, ORDER[norm]).clamp_min(1e-8)
    alpha = (lengths[0] / lengths.sum(0)).clamp_max(ALPHA_MAX)
    ahead, from_clean = both + ETA * moves
    mixed = ahead + alpha[:, None] * (from_clean - ahead)
    return mixed.clamp(*box).view_as(x)


def nearest_boundary(victim: Victim, x: Tensor, y: Tensor, norm: Norm) -> Answer:
    """The logits, and the loss z_c - z_y with its gradient for the class c whose linearised boundary is
    nearest.

    One forward pass, and a backward pass for each class but y: one after another, so that memory does not
    grow with the number of classes.
    """
    least, its_gradient = torch.zeros_like(x[:, 0, 0, 0]), torch.zeros_like(x)
    nearest = torch.full_like(least, torch.inf)
    others = [k + (y <= k) for k in range(victim.model.num_classes - 1)]  # the kth class without y
    for answer in victim.gradients(x, [partial(targeted_margin, y=y, target=other) for other in others]):
        loss, gradient = answer.loss_and_gradient
        distance = loss.abs() / (_norm(gradient.flatten(1), DUAL[norm]) + 1e-12)
        nearer = distance < nearest
        nearest = torch.where(nearer, distance, nearest)
        least = torch.where(nearer, loss, least)
        its_gradient = torch.where(to_4d(nearer), gradient, its_gradient)
    return Answer(answer.logits, least, its_gradient)


def _norm(x: Tensor, order: float) -> Tensor:
    return torch.linalg.vector_norm(x, ord=order, dim=-1)
