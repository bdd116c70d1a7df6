"""Robust accuracy at several eps in one call: what breaks a sample at one radius breaks it at every larger
one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from robustgen.classifiers.base import Classifier
from robustgen.classifiers.fixed_batch import serving
from robustgen.draws import Draws
from robustgen.errors import UserError
from robustgen.perturb import Attack, enforce_budget
from robustgen.threat import ThreatModel
from robustgen.types import Norm


class RobustCurve(NamedTuple):
    """``eps`` (radii,), ascending; ``images`` (radii, batch, channels, height, width), each within its
    radius; ``robust`` (radii, batch): whether the model still classifies the sample right."""

    eps: Tensor
    images: Tensor
    robust: Tensor

    @property
    def accuracy(self) -> Tensor:
        """Robust accuracy at each eps, (radii,)."""
        return self.robust.double().mean(1)


def robust_curve(
    make: Callable[[ThreatModel], Attack],
    model: Classifier,
    x: Tensor,
    y: Tensor,
    *,
    norm: Norm,
    epsilons: Sequence[float],
    draws: Draws,
) -> RobustCurve:
    """Attack the images x (batch, ...) with labels y at several radii, the smallest first.

    ``make`` builds the attack for a threat, such as ``autoattack.AutoAttack``. A sample that is broken at
    one radius counts as broken at all larger ones and is not attacked again, so the curve falls by
    construction and costs little more than its largest radius. Every image passes
    ``perturb.enforce_budget`` and a fresh forward. Raises UserError where ``epsilons`` is empty, and for a
    stochastic model, whose verdicts take several draws.
    """
    if not epsilons:
        raise UserError("robust_curve got no radii", expected="one eps or more", got="none")
    if model.stochastic:
        raise UserError(
            "robust_curve supports deterministic models only",
            remedy="'robustgen report' with a protocol that lists several eps",
        )
    radii = sorted(epsilons)
    images, robust = [], []
    found = x.clone()
    with torch.no_grad():
        standing = model.logits(x).argmax(1) == y
    for place, eps in enumerate(radii):
        threat = ThreatModel(norm, eps)
        left = standing.nonzero().squeeze(1)
        if len(left):
            with serving(model, left):
                attacked = make(threat)(model, x[left], y[left], draws.at(left, place)).images
            attacked = enforce_budget(threat, x[left], attacked).images
            with torch.no_grad():
                broken = model.logits(attacked).argmax(1) != y[left]
            found[left[broken]] = attacked[broken]
            standing[left[broken]] = False
        images.append(found.clone())
        robust.append(standing.clone())
    return RobustCurve(torch.tensor(radii), torch.stack(images), torch.stack(robust))
