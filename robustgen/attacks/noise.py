"""Random noise at eps: no search at all. An attack that does no better than this one does nothing."""

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
    """One random point of the ball: uniform in it in Linf, uniform on its sphere in L2.

    The model is not asked, and the picture is clipped to the box. Draws belong to the sample.
    """

    reference = "no search: uniform in the Linf ball, on the L2 sphere"

    def __init__(self, threat: ThreatModel, **options: Any) -> None:
        if threat.norm == "l1":
            raise UnsupportedError(
                "there is no random noise in L1 here", expected="linf or l2", got="l1",
                remedy="take the noise evaluation out, or name another norm",
            )  # fmt: skip
        super().__init__(threat)
        self.name = AttackOptions.validated(options, "noise").attack_name("noise")

    def __call__(self, model: Classifier, x: Tensor, y: Tensor, draws: Draws) -> Perturbed:
        return Perturbed(random_point(self.threat, x, draws))
