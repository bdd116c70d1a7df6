"""An attack of a fixed number of steps from every picture, none ending early.

What stops at the first wrong answer leaves pictures of any confidence, clean ones among them. Here
all spend the same budget on one objective, so calibration and scores can be read of what comes out:
calibration under attack, and foreign pictures made to look familiar.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from robustgen.attacks.ball import random_point, steepest
from robustgen.attacks.losses import log_odds
from robustgen.attacks.victim import default_victim
from robustgen.classifiers.base import Classifier
from robustgen.draws import Draws
from robustgen.perturb import Attack, Perturbed
from robustgen.threat import ThreatModel

Objective = Literal["label", "energy", "msp"]
STEPS = 20


class FixedSteps(Attack):
    """Steepest ascent of an objective by ``steps`` steps of 2.5 eps / steps from one random start.

    ``objective``: ``label``, the odds against the label; ``energy``, logsumexp of the logits, and
    ``msp``, the odds of the most probable class: lowered on the data's own pictures, raised on
    ``foreign`` ones. Of all points asked about, the clean picture among them, the one of the best
    objective is kept; whether it is misclassified does not matter. Norms linf and l2.
    """

    reference = "projected gradient ascent, Madry et al. 2018, arXiv:1706.06083"

    def __init__(
        self, threat: ThreatModel, objective: Objective, steps: int = STEPS, *, foreign: bool = False
    ) -> None:
        super().__init__(threat)
        self.objective = objective
        self.steps = steps
        self.foreign = foreign
        self.name = f"fixed-{objective}" + ("" if steps == STEPS else f"-s{steps}")

    def loss(self, logits: Tensor, y: Tensor) -> Tensor:
        """What is climbed, (batch,), from logits (batch, classes) and labels (batch,)."""
        if self.objective == "label":
            return log_odds(logits, y)
        # the odds of the top class rise with msp, whose own log is flat in float32 where the model is sure
        score = logits.logsumexp(1) if self.objective == "energy" else -log_odds(logits, logits.argmax(1))
        return score if self.foreign else -score

    def __call__(self, model: Classifier, x: Tensor, y: Tensor, draws: Draws) -> Perturbed:
        victim = default_victim(model)
        best = x.clone()
        with torch.no_grad():
            height = victim.loss_of(victim.output(x), lambda logits: self.loss(logits, y))
        point = random_point(self.threat, x, draws)
        size = 2.5 * self.threat.eps / self.steps
        for step in range(self.steps + 1):
            loss, gradient = victim.gradient(point, lambda logits: self.loss(logits, y)).loss_and_gradient
            better = loss > height
            best[better], height = point[better], torch.maximum(height, loss)
            if step < self.steps:
                point = self.threat.project(x, point + size * steepest(gradient, self.threat.norm))
        return Perturbed(best)
