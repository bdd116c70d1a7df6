"""Accuracy against eps in one call: every radius starts from what smaller ones have found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from robustgen.classifiers.base import Classifier, serving
from robustgen.draws import Draws
from robustgen.errors import UserError
from robustgen.perturb import Attack, enforce_budget
from robustgen.threat import ThreatModel
from robustgen.types import Norm


class RobustCurve(NamedTuple):
    """``eps`` (radii,), rising; ``images`` (radii, batch, channels, height, width), each in its ball;
    ``robust`` (radii, batch): whether the model is still right there, never again true once it was not."""

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
    """Attack pictures x (batch, ...) with labels y at several radii, the smallest first.

    ``make``: an attack for a threat, such as ``autoattack.AutoAttack``. A picture that broke a sample
    at one radius lies in every larger ball, so the sample counts as broken there and is not attacked
    again: the curve falls by construction, and costs little more than its largest radius. Every
    picture passes ``perturb.enforce_budget`` and a fresh forward. Raises UserError for no radii, and for a
    stochastic model, whose verdicts take several draws.
    """
    if not epsilons:
        raise UserError("a curve needs radii", expected="one eps or more", got="none")
    if model.stochastic:
        raise UserError(
            "a curve is for deterministic models", remedy="'robustgen report' with a protocol that lists eps"
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
