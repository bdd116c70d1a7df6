"""The adaptive attack on joint and stochastic models: AutoAttack, then stages for what it cannot attack.

The standard version's parts come first, so no sample counts as more robust than under AutoAttack, and
``broken_by`` tells what the other stages add.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from pydantic import Field

from robustgen.attacks.apgd import APGD, apgd
from robustgen.attacks.autoattack import STANDARD, AutoAttack, AutoAttackBudget
from robustgen.attacks.cascade import Stage
from robustgen.attacks.substitute_gradients import BPDA, NES, Smoothed, hides_gradients
from robustgen.attacks.victim import EOT, Victim, VictimFactory
from robustgen.classifiers.base import Classifier
from robustgen.threat import ThreatModel

ADAPTIVE = ("apgd-margin", "apgd-margin-t", "smoothed-1", "smoothed-2", "estimated", "bpda")
SMOOTHED_LEVELS = {"smoothed-1": 1.0, "smoothed-2": 2.0}  # sigma, in units of ``noise_size``
ESTIMATED_LEVEL = 1 / 3
NEAREST_CLASSES = 3  # how many classes the stages aim at that take many calls a step
SMOOTHED_DRAWS = 8
ESTIMATED_DRAWS = 32


class JointBudget(AutoAttackBudget):
    """The budget of the standard version and of the adaptive stages.

    The margin stages take the same steps and restarts and aim at ``n_target_classes`` (None: all others);
    stages with many calls a step take half of the steps. ``eot``: draws of a stochastic model a call.
    """

    eot: int = Field(default=16, gt=0)


class JointAdaptive(AutoAttack):
    """AutoAttack's standard version, then the adaptive stages.

    - apgd-margin, apgd-margin-t: APGD on the margin of the log-joints, z_k - z_y, whose gradient never
    underflows; untargeted, and targeted at every class. - smoothed-1, smoothed-2: APGD along the gradient
    smoothed over noise (``Smoothed``), which for a noise-conditional joint model is [D(x, k) - D(x, y)] /
    sigma^2. - estimated: APGD along a gradient estimated from logits alone (``NES``). - bpda: where the
    model rounds, has a backward pass of its own or offers a ``surrogate``, APGD with ``BPDA``.

    A stochastic model is attacked through the mean over its draws (``EOT``) in every stage.
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
        self.stage_names = STANDARD + ADAPTIVE

    def stages(self, model: Classifier) -> list[Stage]:
        victim: VictimFactory = partial(EOT, m=self.budget.eot) if model.stochastic else Victim
        standard = [stage._replace(victim=victim) for stage in super().stages(model)]
        return standard + self._adaptive(model, victim)

    def _adaptive(self, model: Classifier, victim: VictimFactory) -> list[Stage]:
        threat, n_iter = self.threat, self.budget.n_iter
        others = model.num_classes - 1
        size = noise_size(threat, math.prod(model.input_shape))

        def targeted(classes: int, steps: int) -> APGD[Any]:
            return apgd(threat, "margin-targeted", jobs=min(classes, others), n_iter=steps)

        untargeted = apgd(threat, "margin", jobs=self.budget.restarts or 1, n_iter=n_iter)
        every = targeted(self.budget.n_target_classes or others, n_iter)
        nearest = targeted(NEAREST_CLASSES, math.ceil(n_iter / 2))
        stages = [Stage("apgd-margin", untargeted, victim), Stage("apgd-margin-t", every, victim)]
        for name, level in SMOOTHED_LEVELS.items():
            stages.append(Stage(name, nearest, _smoothed(victim, level * size)))
        stages.append(Stage("estimated", nearest, _estimated(victim, ESTIMATED_LEVEL * size)))
        if hides_gradients(model):
            stages.append(Stage("bpda", every, lambda m: BPDA(victim(m))))
        return stages


def _smoothed(victim: VictimFactory, sigma: float) -> VictimFactory:
    return lambda model: Smoothed(victim(model), sigma, SMOOTHED_DRAWS)


def _estimated(victim: VictimFactory, sigma: float) -> VictimFactory:
    return lambda model: NES(victim(model), sigma, ESTIMATED_DRAWS)


def noise_size(threat: ThreatModel, pixels: int) -> float:
    """The standard deviation of pixel noise whose norm is about eps, in the threat's norm."""
    return threat.eps / {"linf": 1.0, "l2": math.sqrt(pixels), "l1": float(pixels)}[threat.norm]
