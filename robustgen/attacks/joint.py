"""The attack made for joint and stochastic models: AutoAttack, then stages for what it cannot see through.

The standard version's parts come first, so no sample is called more robust than by it, and
``broken_by`` says what the others add.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from pydantic import Field

from robustgen.attacks.apgd import APGD, apgd
from robustgen.attacks.autoattack import STANDARD, AutoAttack, Budget
from robustgen.attacks.cascade import Stage
from robustgen.attacks.victim import MakeVictim, Victim
from robustgen.attacks.victims import Averaged, Estimated, Smoothed, Straight, hides_gradients
from robustgen.classifiers.base import Classifier
from robustgen.threat import ThreatModel

ADAPTIVE = ("apgd-margin", "apgd-margin-t", "smoothed-1", "smoothed-2", "estimated", "bpda")
LEVELS = {"smoothed-1": 1.0, "smoothed-2": 2.0}  # sigma, in units of ``noise_size``
ESTIMATED_LEVEL = 1 / 3
RIVALS = 3  # stages of many calls a step aim at the classes nearest to the label, not at all of them
SMOOTHED_DRAWS = 8
ESTIMATED_DRAWS = 32


class JointBudget(Budget):
    """The budget of the standard version, and of what comes after it: the margin's stage takes the same
    steps and restarts and aims at ``n_target_classes`` (None: all of them), stages of many calls a
    step take half of the steps. ``eot``: draws of a stochastic model's own randomness a call."""

    eot: int = Field(default=16, gt=0)


class JointAdaptive(AutoAttack):
    """AutoAttack's standard version, then the adaptive stages.

    APGD on the margin of the log-joints, z_k - z_y, whose gradient underflows nowhere: untargeted, and
    at every class. APGD along the gradient smoothed over noise, for a noise-conditional joint model
    [D(x, k) - D(x, y)] / sigma^2. APGD along a gradient estimated from logits alone. Where the model
    rounds, has a backward pass of its own or offers a ``surrogate``, APGD past that (see ``Straight``).

    A stochastic model is seen through the mean over its draws in every stage, the standard ones too.
    """

    reference = (
        "Croce and Hein 2020, arXiv:2003.01690; Athalye et al. 2018, arXiv:1802.00420; "
        "Tramer et al. 2020, arXiv:2002.08347"
    )
    title = "joint-adaptive"
    options_type = budget_type = JointBudget
    budget: JointBudget

    def __init__(self, threat: ThreatModel, **options: Any) -> None:
        super().__init__(threat, **options)
        self.names = STANDARD + ADAPTIVE

    def stages(self, model: Classifier) -> list[Stage]:
        view: MakeVictim = partial(Averaged, m=self.budget.eot) if model.stochastic else Victim
        standard = [stage._replace(victim=view) for stage in super().stages(model)]
        return standard + self._adaptive(model, view)

    def _adaptive(self, model: Classifier, view: MakeVictim) -> list[Stage]:
        threat, n_iter = self.threat, self.budget.n_iter
        others = model.num_classes - 1
        size = noise_size(threat, math.prod(model.input_shape))

        def towards(classes: int, steps: int) -> APGD[Any]:
            return apgd(threat, "margin-targeted", jobs=min(classes, others), n_iter=steps)

        untargeted = apgd(threat, "margin", jobs=self.budget.restarts or 1, n_iter=n_iter)
        every = towards(self.budget.n_target_classes or others, n_iter)
        few = towards(RIVALS, math.ceil(n_iter / 2))
        stages = [Stage("apgd-margin", untargeted, view), Stage("apgd-margin-t", every, view)]
        stages += [Stage(name, few, _smoothed(view, level * size)) for name, level in LEVELS.items()]
        stages.append(Stage("estimated", few, _estimated(view, ESTIMATED_LEVEL * size)))
        if hides_gradients(model):
            stages.append(Stage("bpda", every, lambda m: Straight(view(m))))
        return stages


def _smoothed(view: MakeVictim, sigma: float) -> MakeVictim:
    return lambda model: Smoothed(view(model), sigma, SMOOTHED_DRAWS)


def _estimated(view: MakeVictim, sigma: float) -> MakeVictim:
    return lambda model: Estimated(view(model), sigma, ESTIMATED_DRAWS)


def noise_size(threat: ThreatModel, pixels: int) -> float:
    """The standard deviation of pixel noise that is about as long as eps in the threat's norm."""
    return threat.eps / {"linf": 1.0, "l2": math.sqrt(pixels), "l1": float(pixels)}[threat.norm]
