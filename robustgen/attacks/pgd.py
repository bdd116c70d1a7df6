"""Projected gradient descent, the first attack to try (Madry et al. 2018, arXiv:1706.06083)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from robustgen import config
from robustgen.attacks.options import Options
from robustgen.classifiers.base import Classifier, serving
from robustgen.draws import Draws
from robustgen.errors import UnsupportedError
from robustgen.perturb import Attack, Perturbed
from robustgen.threat import ThreatModel

Loss = Callable[[Tensor, Tensor], Tensor]


class PGDOptions(Options):
    """``steps`` of ``rel_stepsize * eps`` each (None: 2.5 eps / steps), from ``restarts`` random starts.

    ``loss`` is what is climbed: the cross-entropy, the margin, or both in turn, a restart each. On
    trained nets the cross-entropy usually finds more; where classes pull apart, as in a linear model,
    only the margin goes straight to the nearest one.
    """

    steps: int = Field(default=20, gt=0)
    restarts: int = Field(default=2, gt=0)
    rel_stepsize: float | None = Field(default=None, gt=0)
    loss: Literal["both", "ce", "margin"] = "both"


class PGD(Attack):
    """Steepest ascent of a loss in the norm of the threat, projected to ball and box after each step.

    x <- project(x + a d), with d = sign(g) in Linf and d = g / |g| in L2. Restarts begin at random:
    uniform in the Linf ball, on the L2 sphere. What is returned is the iterate of highest margin of
    the first restart that broke the sample (of all where none did), and the clean picture where that
    was wrong already. Draws and results belong to the sample: neighbours do not matter.
    """

    reference = "Madry et al. 2018, arXiv:1706.06083"

    def __init__(self, threat: ThreatModel, **options: Any) -> None:
        if threat.norm == "l1":
            raise UnsupportedError(
                "PGD has no L1 steps here: steepest ascent in L1 moves one pixel at a time",
                expected="linf or l2",
                got="l1",
                remedy="take apgd-ce or autoattack, which move a few pixels at a time",
            )
        super().__init__(threat)
        self.options = config.validate(PGDOptions, options, where="options of the attack 'pgd'")
        self.name = self.options.mark("pgd")

    def __call__(self, model: Classifier, x: Tensor, y: Tensor, draws: Draws) -> Perturbed:
        best = x.clone()
        with torch.no_grad():
            best_margin = margin(model.logits(x), y)
        for restart in range(self.options.restarts):
            # Drawn for every sample, so that the next restart's draws do not depend on who is left.
            start = self._start(x, draws)
            # A row that leaves between restarts does not change the others: FixedBatch pads.
            left = torch.nonzero(~(best_margin > 0)).squeeze(1)
            if len(left) == 0:
                break
            loss = self._loss(restart)
            with serving(model, left):
                found, found_margin = self._climb(model, loss, x[left], y[left], start[left])
            better = found_margin > best_margin[left]
            best[left[better]] = found[better]
            best_margin[left[better]] = found_margin[better]
        return Perturbed(best)

    def _climb(
        self, model: Classifier, loss: Loss, x: Tensor, y: Tensor, x_adv: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The iterate of highest margin on the way from x_adv, and that margin."""
        size = (self.options.rel_stepsize or 2.5 / self.options.steps) * self.threat.eps
        best, best_margin = x_adv, torch.full_like(x[:, 0, 0, 0], -torch.inf)
        for step in range(self.options.steps + 1):
            last = step == self.options.steps
            x_adv = x_adv.detach().requires_grad_(not last)
            with torch.set_grad_enabled(not last):
                logits = model.logits(x_adv)
            current = margin(logits.detach(), y)
            better = current > best_margin
            best = torch.where(better.view(-1, 1, 1, 1), x_adv.detach(), best)
            best_margin = torch.where(better, current, best_margin)
            if not last:
                with torch.enable_grad():
                    gradient = torch.autograd.grad(loss(logits, y).sum(), x_adv)[0]
                x_adv = self.threat.project(x, x_adv.detach() + size * self._direction(gradient))
        return best, best_margin

    def _loss(self, restart: int) -> Loss:
        chosen = ("ce", "margin")[restart % 2] if self.options.loss == "both" else self.options.loss
        return log_odds if chosen == "ce" else margin

    def _direction(self, gradient: Tensor) -> Tensor:
        return gradient.sign() if self.threat.norm == "linf" else _unit(gradient)

    def _start(self, x: Tensor, draws: Draws) -> Tensor:
        shape = x.shape[1:]
        if self.threat.norm == "linf":
            delta = draws.uniform(*shape) * 2 - 1
        else:
            delta = _unit(draws.normal(*shape))
        return self.threat.project(x, x + self.threat.eps * delta.to(x.device))


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """max over j != y of z_j, less z_y, shape (batch,): positive exactly where y is not predicted."""
    others = logits.scatter(1, y[:, None], -torch.inf).max(1).values
    return others - logits.gather(1, y[:, None]).squeeze(1)


def log_odds(logits: Tensor, y: Tensor) -> Tensor:
    """L = log sum over j != y of exp(z_j), less z_y = log((1 - p_y) / p_y), shape (batch,).

    The cross-entropy is log(1 + exp(L)), so its gradient is a positive multiple of L's, and steps
    that take only the gradient's sign or direction are the same. The multiple, 1 - p_y, is exactly 0
    in float32 where the label leads by more than about 104 nats, as it does in log-joint densities
    of many pixels; L's own gradient is not.
    """
    others = logits.scatter(1, y[:, None], -torch.inf).logsumexp(1)
    return others - logits.gather(1, y[:, None]).squeeze(1)


def _unit(x: Tensor) -> Tensor:
    return x / x.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)
