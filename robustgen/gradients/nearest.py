"""The nearest adversarial image in L2, at any distance: FAB iterations, then a bisection."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from robustgen.attacks.fab import BETA, beyond_boundary, nearest_boundary
from robustgen.attacks.victim import Victim
from robustgen.classifiers.base import Classifier

BISECTIONS = 10


class Nearest(NamedTuple):
    """For each image: the nearest adversarial one found, its class and its L2 distance; and at the clean
    image, the logit margin z_y - max z_k and the first-order radius min over k of (z_y - z_k) /
    |grad (z_y - z_k)|.

    A misclassified clean image has a negative margin, distance 0 and a meaningless radius. If nothing was
    found, the distance is NaN and ``picture`` is the clean image.
    """

    picture: Tensor
    label: Tensor
    distance: Tensor
    margin: Tensor
    first_order: Tensor


def nearest_wrong(model: Classifier, x: Tensor, y: Tensor, steps: int) -> Nearest:
    """Run ``steps`` iterations of FAB (Croce and Hein 2020, algorithm 1, untargeted, without random starts),
    then bisect between the clean image and the best one.

    x (batch, channels, height, width) in [0, 1], y labels (batch,). Costs about 2 (classes - 1) passes
    per iteration.
    """
    victim = Victim(model, bfloat16_gradients=False)
    victim.fast = model  # what is measured does not depend on whether a run has a quick copy
    first = nearest_boundary(victim, x, y, "l2")
    loss, gradient = first.loss_and_gradient
    slope = gradient.flatten(1).double().norm(dim=1).clamp_min(1e-300)
    radius = -loss.double() / slope
    right = first.logits.argmax(1) == y
    others = first.logits.scatter(1, y[:, None], -torch.inf).amax(1)
    margin = first.logits.gather(1, y[:, None])[:, 0] - others

    best, distance = x.clone(), torch.where(right, torch.inf, 0.0).to(x)
    point, answer = x.clone(), first
    for _ in range(steps):
        point = beyond_boundary(x, point, point, answer, "l2", (0.0, 1.0))
        wrong = victim.logits(point).logits.argmax(1) != y
        far = (point - x).flatten(1).norm(dim=1)
        nearer = wrong & (far < distance)
        best = torch.where(nearer.view(-1, 1, 1, 1), point, best)
        distance = torch.where(nearer, far, distance)
        point = torch.where(wrong.view(-1, 1, 1, 1), x + BETA * (point - x), point)
        answer = nearest_boundary(victim, point, y, "l2")
    best = _bisected(victim, x, best, y)
    found = distance.isfinite()
    length = (best - x).flatten(1).double().norm(dim=1)
    label = victim.logits(best).logits.argmax(1)
    return Nearest(best, label, torch.where(found, length, torch.nan), margin, radius)


def _bisected(victim: Victim, x: Tensor, wrong: Tensor, y: Tensor) -> Tensor:
    """The nearest misclassified image between x and ``wrong``, to within 2^-BISECTIONS of their distance."""
    low, high = torch.zeros(len(x)).to(x), torch.ones(len(x)).to(x)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        still = victim.logits(x + middle.view(-1, 1, 1, 1) * (wrong - x)).logits.argmax(1) != y
        low, high = torch.where(still, low, middle), torch.where(still, middle, high)
    return x + high.view(-1, 1, 1, 1) * (wrong - x)
