"""FAB (Croce and Hein 2020, arXiv:1907.02044): walk along the decision boundary to where it is nearest.

The model is taken as linear at the point; the next point lies just behind the boundary of that
linear model, where it is nearest to the point, drawn a little to where it is nearest to the clean
picture. Constants and order of the steps are those of the reference code.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from robustgen.attacks.ball import DUAL, ORDER, direction, wide
from robustgen.attacks.hyperplanes import to_hyperplane
from robustgen.attacks.losses import targeted_margin
from robustgen.attacks.search import Search, Start, State
from robustgen.attacks.victim import Answer, Victim
from robustgen.draws import Draws
from robustgen.threat import ThreatModel
from robustgen.types import Norm

ALPHA_MAX = 0.1  # the clean picture's projection has at most this weight
ETA = 1.05  # how far a projection goes, as a share of the way to the boundary
BETA = 0.9  # the share of the perturbation that an adversarial point keeps


@dataclass
class Walk(State):
    """Rows of FAB. ``target``: the class aimed at; ``nearest``: the distance of the nearest adversarial
    point so far; ``iteration``: how many are done; ``ends_one``: whether ``point`` is where an iteration
    went (there its verdict counts), or only where one begins."""

    target: Tensor
    nearest: Tensor
    iteration: Tensor
    ends_one: Tensor


class FAB(Search[Walk]):
    """FAB aimed at one class: job k at the class that the clean picture's logits rank (k + 2)th.

    One question serves as the check of an iteration and as the gradient of the next, unless the point was
    adversarial: then the next one starts nearer to the clean picture and asks there first. As iterations
    end just behind the boundary, that is nearly always, so this class costs what the reference does
    (LeanFAB does not).
    """

    ranks = True

    def __init__(self, threat: ThreatModel, *, jobs: int = 1, n_iter: int = 100) -> None:
        self.threat = threat
        self.jobs = jobs
        self.n_iter = self.length = n_iter

    def begin(self, start: Start, draws: Draws) -> Walk:
        return self._walk(start, start.x, start.target())

    def ask(self, victim: Victim, state: Walk) -> Answer:
        return victim.gradient(state.point, lambda logits: targeted_margin(logits, state.y, state.target))

    def allowed(self, state: Walk) -> Tensor:
        return state.ends_one & (self.threat.distance(state.x, state.point) <= self.threat.eps)

    def lacking(self, state: Walk) -> Tensor:
        return (state.nearest / self.threat.eps).log()  # a walk comes nearer by shares of its distance

    def step(self, state: Walk, answer: Answer) -> None:
        back = state.ends_one & (answer.logits.argmax(1) != state.y)
        distance = self.threat.distance(state.x, state.point).to(state.nearest)
        state.nearest = torch.where(back, state.nearest.minimum(distance), state.nearest)
        state.step = state.step + 1
        state.iteration = state.iteration + state.ends_one
        state.over = state.iteration >= self.n_iter
        self._go_on(state, answer, back, state.x + BETA * (state.point - state.x))

    def _go_on(self, state: Walk, answer: Answer, back: Tensor, nearer: Tensor) -> None:
        """Set the next point; the next iteration of the rows ``back`` is to leave from ``nearer``."""
        state.point = torch.where(wide(back), nearer, self._next(state, answer, state.point))
        state.ends_one = ~back

    def _walk(self, start: Start, point: Tensor, target: Tensor) -> Walk:
        fields = start.fields()
        return Walk(
            **fields, point=point, target=target, nearest=fields["lacked"], iteration=fields["step"],
            ends_one=fields["over"],
        )  # fmt: skip

    def _next(self, state: Walk, answer: Answer, leave: Tensor) -> Tensor:
        """Where an iteration that leaves from ``leave`` goes, by the ``answer`` at ``point``."""
        return behind_boundary(state.x, leave, state.point, answer, self.threat.norm, self.threat.box)


class UntargetedFAB(FAB):
    """FAB aimed, in every iteration anew, at the class whose boundary seems nearest: needs a gradient
    for each class. Job 0 starts at the clean picture, the others at random in the ball of eps / 2."""

    ranks = False

    def begin(self, start: Start, draws: Draws) -> Walk:
        point = start.x
        if bool((start.job > 0).any()):
            noise = direction(start.x, self.threat.norm, draws).to(start.x)
            length = _norm(noise.flatten(1), ORDER[self.threat.norm])
            moved = (point + self.threat.eps / 2 * noise / wide(length)).clamp(*self.threat.box)
            point = torch.where(wide(start.job > 0), moved, point)
        return self._walk(start, point, start.y)

    def ask(self, victim: Victim, state: Walk) -> Answer:
        return nearest_boundary(victim, state.point, state.y, self.threat.norm)


class LeanFAB(FAB):
    """FAB that asks once an iteration: behind the boundary it takes the model for linear as it is
    there, and does not ask again on the way back.

    Both points lie within about a tenth of the way from the boundary, so the linear models are worth
    the same: half the questions for distances that are as small.
    """

    def _go_on(self, state: Walk, answer: Answer, back: Tensor, nearer: Tensor) -> None:
        state.point = self._next(state, answer, torch.where(wide(back), nearer, state.point))
        state.ends_one = torch.ones_like(back)


class LeanUntargetedFAB(LeanFAB, UntargetedFAB):
    """UntargetedFAB that asks once an iteration."""

    ranks = False


def behind_boundary(
    x: Tensor, leave: Tensor, asked: Tensor, answer: Answer, norm: Norm, box: tuple[float, float]
) -> Tensor:
    """Just behind the boundary, the model being linear as the ``answer`` at ``asked`` says: from ``leave``
    the shortest way there, drawn a little to where it is nearest to x (algorithm 1, lines 4 to 9)."""
    loss, gradient = answer.ascent
    normal = gradient.flatten(1)
    both = torch.stack([leave.flatten(1), x.flatten(1)])
    gap = loss + (normal * (both - asked.flatten(1))).sum(-1)
    moves = to_hyperplane(both, normal, gap, norm, box)
    lengths = _norm(moves, ORDER[norm]).clamp_min(1e-8)
    alpha = (lengths[0] / lengths.sum(0)).clamp_max(ALPHA_MAX)
    ahead, from_clean = both + ETA * moves
    mixed = ahead + alpha[:, None] * (from_clean - ahead)
    return mixed.clamp(*box).view_as(x)


def nearest_boundary(victim: Victim, x: Tensor, y: Tensor, norm: Norm) -> Answer:
    """Logits, and of the class whose boundary with y is nearest, if the model were linear, the loss
    z_c - z_y and its gradient: one forward pass, and a backward pass for each other class. They are
    taken one after another, so that no more than two are held at a time, however many classes there are."""
    least, its_gradient = torch.zeros_like(x[:, 0, 0, 0]), torch.zeros_like(x)
    nearest = torch.full_like(least, torch.inf)
    others = [k + (y <= k) for k in range(victim.model.num_classes - 1)]  # the kth class without y
    for answer in victim.gradients(x, [partial(targeted_margin, y=y, target=other) for other in others]):
        loss, gradient = answer.ascent
        distance = loss.abs() / (_norm(gradient.flatten(1), DUAL[norm]) + 1e-12)
        nearer = distance < nearest
        nearest = torch.where(nearer, distance, nearest)
        least = torch.where(nearer, loss, least)
        its_gradient = torch.where(wide(nearer), gradient, its_gradient)
    return Answer(answer.logits, least, its_gradient)


def _norm(x: Tensor, order: float) -> Tensor:
    return torch.linalg.vector_norm(x, ord=order, dim=-1)
