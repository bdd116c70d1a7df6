"""An attack that spends the same number of steps on every image, for measures other than accuracy.

Attacks that stop at the first success return images of arbitrary confidence, clean ones among them. Here
all images spend the same budget on one objective, so that calibration under attack and out-of-distribution
scores under attack can be measured on them.
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
    """Steepest ascent of an objective by ``steps`` steps of 2.5 eps / steps from one random start, in Linf
    or L2.

    ``objective``: "label", the odds against the label; "energy", the logsumexp of the logits, or "msp", the
    odds of the most probable class: both lowered on the data's own images and raised on ``foreign`` ones.
    Returns the queried point of highest objective, the clean image among them, whether or not it is
    misclassified.
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
        """What is maximised, (batch,), given logits (batch, classes) and labels (batch,)."""
        if self.objective == "label":
            return log_odds(logits, y)
        # The odds of the top class rise with msp, whose own log is flat in float32 where the model is sure.
        score = logits.logsumexp(1) if self.objective == "energy" else -log_odds(logits, logits.argmax(1))
        return score if self.foreign else -score

    def __call__(self, model: Classifier, x: Tensor, y: Tensor, draws: Draws) -> Perturbed:
        victim = default_victim(model)
        best = x.clone()
        with torch.no_grad():
            best_loss = victim.loss_of(victim.output(x), lambda logits: self.loss(logits, y))
        point = random_point(self.threat, x, draws)
        step_size = 2.5 * self.threat.eps / self.steps
        for step in range(self.steps + 1):
            loss, gradient = victim.gradient(point, lambda logits: self.loss(logits, y)).loss_and_gradient
            better = loss > best_loss
            best[better], best_loss = point[better], torch.maximum(best_loss, loss)
            if step < self.steps:
                point = self.threat.project(x, point + step_size * steepest(gradient, self.threat.norm))
        return Perturbed(best)
