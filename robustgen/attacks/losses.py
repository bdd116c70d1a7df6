"""The losses that attacks maximise.

Each maps logits (batch, classes), labels (batch,) and target classes (batch,), which untargeted losses
ignore, to values (batch,).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

LabelledLoss: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]


def log_odds(logits: Tensor, y: Tensor, target: Tensor | None = None) -> Tensor:
    """L = log((1 - p_y) / p_y) = log sum over j != y of exp(z_j) - z_y, in place of the cross-entropy.

    The cross-entropy is log(1 + exp(L)), a rising function of L, so both rank points alike and have
    gradients of the same direction; an attack that uses only these behaves the same. But the
    cross-entropy's gradient has the factor 1 - p_y, which is exactly 0 in float32 where the label leads by
    more than about 104 nats, as it does in log-joint densities of many pixels. The gradient of L does not
    vanish there.
    """
    return _others(logits, y).logsumexp(1) - _pick(logits, y)


def margin(logits: Tensor, y: Tensor, target: Tensor | None = None) -> Tensor:
    """max over j != y of z_j - z_y: positive exactly where y is not predicted."""
    return _others(logits, y).amax(1) - _pick(logits, y)


def targeted_margin(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """z_t - z_y; for log-joints log p(x, t) - log p(x, y), whose gradient never saturates."""
    return _pick(logits, target) - _pick(logits, y)


def dlr(logits: Tensor, y: Tensor, target: Tensor | None = None) -> Tensor:
    """The difference-of-logits ratio -(z_y - max_{i != y} z_i) / (z_pi1 - z_pi3) (arXiv:2003.01690, eq.
    6)."""
    ordered = logits.sort(1, descending=True).values
    return margin(logits, y) / (ordered[:, 0] - ordered[:, 2] + 1e-12)


def targeted_dlr(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """The targeted DLR -(z_y - z_t) / (z_pi1 - (z_pi3 + z_pi4) / 2) (arXiv:2003.01690, eq. 7)."""
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
INITIAL_LOSS = dict.fromkeys(LOSSES, 0.0) | {"ce": -torch.inf}
"""What APGD compares the first loss with: 0, as the reference does; the log odds where the cross-entropy is
0."""
TARGETED_LOSSES = frozenset({"margin-targeted", "dlr-targeted"})
CLASSES_NEEDED = {"dlr": 3, "dlr-targeted": 4}
"""The fewest classes for which a loss is defined."""
