"""Projected gradient descent (Madry et al. 2018, arXiv:1706.06083)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from robustgen.attacks.ball import random_point, steepest
from robustgen.attacks.cascade import Cascade, Stage
from robustgen.attacks.losses import LOSSES
from robustgen.attacks.options import AttackOptions
from robustgen.attacks.search import Search, Start, State
from robustgen.attacks.victim import Answer, Victim
from robustgen.classifiers.base import Classifier
from robustgen.draws import Draws
from robustgen.errors import UnsupportedError
from robustgen.threat import ThreatModel


class PGDOptions(AttackOptions):
    """``steps`` steps of ``rel_stepsize * eps`` each (None: 2.5 eps / steps), from ``restarts`` random
    starts.

    ``loss``: the cross-entropy, the margin, or both in alternate restarts. On trained networks the
    cross-entropy usually finds more; where classes pull in different directions, as in a linear model, only
    the margin goes straight to the nearest one.
    """

    steps: int = Field(default=20, gt=0)
    restarts: int = Field(default=2, gt=0)
    rel_stepsize: float | None = Field(default=None, gt=0)
    loss: Literal["both", "ce", "margin"] = "both"
    iterate: Literal["any", "last"] = "any"
    """Which iterates count as a result: any of them, or, as in much published work, the last one only."""


class PGDSearch(Search[State]):
    """Steepest ascent of a loss in the norm of the threat, projected to ball and box after each step.

    x <- project(x + a d), with d = sign(g) in Linf and d = g / |g| in L2. Every restart begins at a random
    point: uniform in the Linf ball, or on the L2 sphere.
    """

    def __init__(self, threat: ThreatModel, options: PGDOptions) -> None:
        self.threat = threat
        self.jobs = options.restarts
        self.steps = options.steps
        self.last = options.iterate == "last"
        self.step_size = (options.rel_stepsize or 2.5 / options.steps) * threat.eps
        both = ("ce", "margin")
        self.losses = [LOSSES[name] for name in (both if options.loss == "both" else (options.loss,))]

    def begin(self, start: Start, draws: Draws) -> State:
        return State(**start.fields(), point=random_point(self.threat, start.x, draws))

    def query(self, victim: Victim, state: State) -> Answer:
        turn = (state.job % len(self.losses))[None, :]

        def loss(logits: Tensor) -> Tensor:
            if len(self.losses) == 1:
                return self.losses[0](logits, state.y, state.y)
            values = torch.stack([one(logits, state.y, state.y) for one in self.losses])
            return values.gather(0, turn).squeeze(0)

        return victim.gradient(state.point, loss)

    def within_budget(self, state: State) -> Tensor:
        return state.step == self.steps if self.last else torch.ones_like(state.done)

    def update(self, state: State, answer: Answer) -> None:
        _, gradient = answer.loss_and_gradient
        step = self.step_size * steepest(gradient, self.threat.norm)
        state.point = self.threat.project(state.x, state.point + step)
        state.step = state.step + 1
        state.done = state.step > self.steps  # the point after the last step is queried too


class PGD(Cascade):
    """PGD with restarts; returns the first misclassified iterate, the clean image where there is none.

    Random starts and results depend on the sample alone, not on the batch.
    """

    reference = "Madry et al. 2018, arXiv:1706.06083"

    def __init__(self, threat: ThreatModel, **options: Any) -> None:
        if threat.norm == "l1":
            raise UnsupportedError(
                "PGD has no L1 steps here: steepest ascent in L1 moves one pixel at a time",
                expected="linf or l2",
                got="l1",
                remedy="use apgd-ce or autoattack, which move a few pixels at a time",
            )
        super().__init__(threat, ("pgd",))
        self.options = PGDOptions.validated(options, "pgd")
        self.name = self.options.attack_name("pgd")

    def stages(self, model: Classifier) -> list[Stage]:
        return [Stage("pgd", PGDSearch(self.threat, self.options))]
