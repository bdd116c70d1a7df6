"""Random noise of size eps: the baseline that every attack has to beat."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from robustgen.attacks.ball import random_point
from robustgen.attacks.options import AttackOptions
from robustgen.classifiers.base import Classifier
from robustgen.draws import Draws
from robustgen.errors import UnsupportedError
from robustgen.perturb import Attack, Perturbed
from robustgen.threat import ThreatModel


class RandomNoise(Attack):
    """One random point, uniform in the Linf ball or on the L2 sphere, clipped to the box; the model is not
    queried."""

    reference = "no search: uniform in the Linf ball, on the L2 sphere"

    def __init__(self, threat: ThreatModel, **options: Any) -> None:
        if threat.norm == "l1":
            raise UnsupportedError(
                "the attack 'noise' does not support L1", expected="linf or l2", got="l1",
                remedy="remove this evaluation, or use another norm",
            )  # fmt: skip
        super().__init__(threat)
        self.name = AttackOptions.validated(options, "noise").attack_name("noise")

    def __call__(self, model: Classifier, x: Tensor, y: Tensor, draws: Draws) -> Perturbed:
        return Perturbed(random_point(self.threat, x, draws))
