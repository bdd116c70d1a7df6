"""What attacks climb: functions of logits and labels, larger where the attack is nearer to its goal.

Each maps logits (batch, classes), labels (batch,) and the targeted classes (batch,), which
untargeted losses do not look at, to values (batch,).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

LabelledLoss: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]


def log_odds(logits: Tensor, y: Tensor, target: Tensor | None = None) -> Tensor:
    """L = log sum over j != y of exp(z_j), less z_y = log((1 - p_y) / p_y): the cross-entropy's twin.

    The cross-entropy is log(1 + exp(L)), which grows with L, so both have the same order of points
    and gradients of the same direction; an attack that takes only these two from its loss takes the
    same way. But the cross-entropy's gradient carries the factor 1 - p_y, which is exactly 0 in
    float32 where the label leads by more than about 104 nats, as it does in log-joint densities of
    many pixels. L's own gradient is not.
    """
    return _others(logits, y).logsumexp(1) - _pick(logits, y)


def margin(logits: Tensor, y: Tensor, target: Tensor | None = None) -> Tensor:
    """max over j != y of z_j, less z_y: positive exactly where y is not predicted."""
    return _others(logits, y).amax(1) - _pick(logits, y)


def targeted_margin(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """z_t - z_y. Of log-joints, log p(x, t) - log p(x, y): its gradient never saturates."""
    return _pick(logits, target) - _pick(logits, y)


def dlr(logits: Tensor, y: Tensor, target: Tensor | None = None) -> Tensor:
    """The ratio -(z_y - max_{i != y} z_i) / (z_pi1 - z_pi3) of logits (arXiv:2003.01690, eq. 6)."""
    ordered = logits.sort(1, descending=True).values
    return margin(logits, y) / (ordered[:, 0] - ordered[:, 2] + 1e-12)


def targeted_dlr(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """-(z_y - z_t) / (z_pi1 - (z_pi3 + z_pi4) / 2) (arXiv:2003.01690, eq. 7)."""
    ordered = logits.sort(1, descending=True).values
    scale = ordered[:, 0] - (ordered[:, 2] + ordered[:, 3]) / 2
    return targeted_margin(logits, y, target) / (scale + 1e-12)


def _others(logits: Tensor, y: Tensor) -> Tensor:
    return logits.scatter(1, y[:, None], -torch.inf)


def _pick(logits: Tensor, y: Tensor) -> Tensor:
    return logits.gather(1, y[:, None]).squeeze(1)


LOSSES: dict[str, LabelledLoss] = {
    "ce": log_odds,
    "margin": margin,
    "dlr": dlr,
    "margin-targeted": targeted_margin,
    "dlr-targeted": targeted_dlr,
}
# Where a loss stands that is no gain yet: the cross-entropy is positive, and so are log odds above -inf.
ZERO = dict.fromkeys(LOSSES, 0.0) | {"ce": -torch.inf}
TARGETED_LOSSES = frozenset({"margin-targeted", "dlr-targeted"})
CLASSES_NEEDED = {"dlr": 3, "dlr-targeted": 4}
